#!/usr/bin/env node
// Coupons through zvgate, with Node's built-in fetch alone (Node 18 or later).
//
//   coupons.mjs URL list CUSTOMER            prints the coupons that the customer can redeem now
//   coupons.mjs URL redeem CUSTOMER CARD ID  redeems one; ID is your own id of the redemption (bizId)
//   coupons.mjs URL reverse ID CUSTOMER      undoes a redemption
//
// The caller's key, if the gateway wants one, is read from ZVGATE_KEY, and the tenant's name from ZVGATE_TENANT.
// Exit status: 0 done, 1 the gateway or the platform cannot do it now, 2 wrong usage, 3 the platform refused,
// 4 nobody knows whether it was done.

import { setTimeout as sleep } from "node:timers/promises";
import { pathToFileURL } from "node:url";

// Milliseconds. Above the gateway's own limits (server.request_timeout, server.write_request_timeout): the gateway answers first.
const READ_TIMEOUT = 20_000;
const WRITE_TIMEOUT = 30_000;
// How long to go on when the gateway says "later". The gateway retries reads itself: do not retry anything else.
const PATIENCE = 10_000;
// After an unknown outcome: how often to look, with a pause between, since the platform may lag.
const LOOKS = 3;
const LOOK_PAUSE = 2_000;

const ROUTES = "/v3/crm/coupon/";

/** The request failed: `name` is the gateway's name of the error, `status` the HTTP status. */
export class Failed extends Error {
  constructor(status, name, detail, requestId, retryAfter) {
    super(`${name} (${status}): ${detail} [request ${requestId}]`);
    Object.assign(this, { status, name, retryAfter });
  }
}

/** The platform answered with a business exception: the same request will get the same answer. */
export class Refused extends Error {}

/** A write may have been executed, or not. */
export class Unknown extends Error {}

export class Gateway {
  constructor(url, { key, tenant } = {}) {
    this.url = url.replace(/\/+$/, "");
    this.headers = { "Content-Type": "application/json" };
    if (key) this.headers.Authorization = `Bearer ${key}`;
    if (tenant) this.headers["X-Zvgate-Tenant"] = tenant;
  }

  /** A customer's coupons. `fresh`: not from the cache. Ids are strings: as numbers they would lose digits. */
  async coupons(customerId, { cardId, usable = false, fresh = false } = {}) {
    const headers = fresh ? { "Cache-Control": "no-cache" } : {};
    const { answer } = await this.#patiently("/v1/coupons:list", { customerId, cardId, usable }, headers, READ_TIMEOUT);
    if (!answer.complete) console.error("warning: there are more coupons than the platform lists");
    return answer.coupons;
  }

  /** Redeems a coupon; returns if it was redeemed. */
  async redeem(customerId, cardId, bizId) {
    // What the customer sees may be some seconds old; what is about to be redeemed must not be.
    const [coupon] = await this.coupons(customerId, { cardId, fresh: true });
    if (coupon?.status.name !== "unused") throw new Refused(`the coupon is ${coupon?.status.name ?? "not there"}`);
    try {
      await this.#write("writeOffCoupon", { bizId, customerId, couponsCardList: [cardId] });
    } catch (error) {
      if (!(error instanceof Unknown)) throw error;
      for (let look = 0; look < LOOKS; look++) {
        const [now] = await this.coupons(customerId, { cardId, fresh: true });
        if (now?.status.name === "redeemed") return;
        await sleep(LOOK_PAUSE);
      }
      // It may still be under way: undo whatever comes of it, so that another try starts from a known state.
      await this.reverse(bizId, customerId).catch((error) => {
        if (!(error instanceof Refused)) throw error;
      });
      throw new Refused("it was not redeemed; try again with another id");
    }
  }

  /** Undoes a redemption. With the customer, the gateway knows whose coupons changed whatever comes of it. */
  async reverse(bizId, customerId) {
    await this.#write("couponReverse", { bizId }, customerId);
  }

  /** Sends a write. It is repeated only if the gateway says that nothing was sent. */
  async #write(route, params, customerId) {
    const own = customerId ? { "X-Zvgate-Customer": customerId } : {};
    const { status, headers, answer } = await this.#patiently(ROUTES + route, { params }, own, WRITE_TIMEOUT);
    const outcome = headers.get("x-zvgate-outcome");
    if (outcome === "executed") return;
    // The platform writes true or "true", 0 or "0".
    if (outcome === "refused") throw new Refused(`the platform refused: ${answer.code} ${answer.message}`);
    throw new Unknown(`outcome ${outcome}, status ${status}`);
  }

  /** Repeats what was not sent for as long as the gateway asks to wait, within PATIENCE. */
  async #patiently(path, body, headers, timeout) {
    const until = Date.now() + PATIENCE;
    for (;;) {
      try {
        return await this.#send(path, body, headers, timeout);
      } catch (error) {
        const pause = error instanceof Failed ? error.retryAfter : undefined;
        if (pause === undefined || Date.now() + pause > until) throw error;
        await sleep(pause);
      }
    }
  }

  async #send(path, body, headers, timeout) {
    let response, answer;
    try {
      response = await fetch(this.url + path, {
        method: "POST",
        headers: { ...this.headers, ...headers },
        body: JSON.stringify(body),
        signal: AbortSignal.timeout(timeout),
      });
      answer = await response.json();
    } catch (error) {
      // The answer did not come, or not whole.
      const outcome = response?.headers.get("x-zvgate-outcome");
      const wasSent = error.cause?.code !== "ECONNREFUSED" && outcome !== "not-sent";
      if (path.startsWith(ROUTES) && wasSent) throw new Unknown(error.cause?.code ?? error.name);
      throw new Failed(response?.status ?? 0, "unreachable", error.cause?.code ?? error.name);
    }
    if (!response.ok) throw failure(response, answer);
    return { status: response.status, headers: response.headers, answer };
  }
}

function failure(response, body) {
  const { status, headers } = response;
  const outcome = headers.get("x-zvgate-outcome");
  if (outcome === "unknown") return new Unknown(`status ${status}`);
  const name = body.type?.split(":").at(-1) ?? body.error ?? "http";
  if (name === "platform_exception") return new Refused(`${body.platformCode} ${body.platformMessage}`);
  // 429 and 503 say when to come again; of a write, only if nothing was sent.
  const mayRepeat = [429, 503].includes(status) && [null, "not-sent"].includes(outcome);
  const after = headers.get("retry-after") ?? "";
  const retryAfter = mayRepeat && /^\d+$/.test(after) ? Number(after) * 1000 : undefined;
  return new Failed(status, name, body.detail ?? body.message, headers.get("x-request-id"), retryAfter);
}

const USAGE = "usage: coupons.mjs URL list CUSTOMER | redeem CUSTOMER CARD ID | reverse ID CUSTOMER";

async function main([url, command, ...rest]) {
  const gateway = new Gateway(url ?? "", { key: process.env.ZVGATE_KEY, tenant: process.env.ZVGATE_TENANT });
  try {
    if (command === "list" && rest.length === 1) {
      for (const coupon of await gateway.coupons(rest[0], { usable: true })) {
        console.log(coupon.cardId, coupon.status.name, coupon.endAt, coupon.title);
      }
    } else if (command === "redeem" && rest.length === 3) {
      await gateway.redeem(...rest);
      console.log("redeemed");
    } else if (command === "reverse" && rest.length === 2) {
      await gateway.reverse(...rest);
      console.log("reversed");
    } else {
      console.error(USAGE);
      return 2;
    }
  } catch (error) {
    if (error instanceof Refused) {
      console.error(`refused: ${error.message}`);
      return 3;
    }
    if (error instanceof Unknown) {
      console.error(`unknown: ${error.message}; look later, before anything is repeated`);
      return 4;
    }
    if (error instanceof Failed) {
      console.error(`failed: ${error.message}`);
      return 1;
    }
    throw error;
  }
  return 0;
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  process.exitCode = await main(process.argv.slice(2));
}
