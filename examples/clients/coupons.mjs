#!/usr/bin/env node
// Coupons through zvgate, with Node's built-in fetch alone (Node 18 or later).
//
//   coupons.mjs URL list CUSTOMER            prints the coupons that the customer can redeem now
//   coupons.mjs URL status CUSTOMER CARD     prints the status of one, not from the cache
//   coupons.mjs URL redeem CUSTOMER CARD ID  redeems one; ID is your own id of the redemption (bizId)
//   coupons.mjs URL reverse ID CUSTOMER      undoes a redemption
//
// The caller's key, if the gateway wants one, is read from ZVGATE_KEY, and the tenant's name from ZVGATE_TENANT.
// Exit status: 0 done, 1 failed, and nothing was executed, 2 wrong usage, 3 the platform refused,
// 4 nobody knows whether it was executed.

import { realpathSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { pathToFileURL } from "node:url";

// Milliseconds. Above the gateway's own limits (server.request_timeout, server.write_request_timeout): the gateway answers first.
const READ_TIMEOUT = 20_000;
const WRITE_TIMEOUT = 30_000;
// For so long the gateway goes on with a write whose caller has gone (server.write_request_timeout).
const WRITE_LASTS = 25_000;
// How long to go on when the gateway says "later". The gateway retries reads itself: do not retry anything else.
const PATIENCE = 10_000;
// After an unknown outcome: how often to look at least, with a pause between, since the platform may lag.
const LOOKS = 3;
const LOOK_PAUSE = 2_000;

const ROUTES = "/v3/crm/coupon/";
// The platform's codes for "throttled" and "busy": it did nothing.
const LATER = ["110004", "110007"];

/** The request failed, and nothing was executed: `name` is the gateway's name of the error, `status` the HTTP status. */
export class Failed extends Error {
  constructor(status, name, detail, requestId, retryAfter) {
    super(`${name} (${status}): ${detail} [request ${requestId}]`);
    Object.assign(this, { status, name, retryAfter });
  }
}

/** The platform answered with a business exception, and executed nothing. */
export class Refused extends Error {}

/** It is known that a coupon was not redeemed. */
export class NotRedeemed extends Error {}

/** A write may have been executed, or not. `isOver`: the gateway itself has given up. */
export class Unknown extends Error {
  constructor(cause, isOver = false) {
    super(cause);
    this.isOver = isOver;
  }
}

export class Gateway {
  constructor(url, { key, tenant } = {}) {
    this.url = url.replace(/\/+$/, "");
    this.headers = { "Content-Type": "application/json" };
    if (key) this.headers.Authorization = `Bearer ${key}`;
    if (tenant) this.headers["X-Zvgate-Tenant"] = tenant;
  }

  /** A customer's coupons. Ids are strings: as numbers they would lose digits. */
  async coupons(customerId, { usable = false } = {}) {
    const answer = await this.#list({ customerId, usable }, {});
    if (!answer.complete) console.error("warning: there are more coupons than the platform lists");
    return answer.coupons;
  }

  /** The status of a coupon, not from the cache. */
  async status(customerId, cardId) {
    const { coupons } = await this.#list({ customerId, cardId }, { "Cache-Control": "no-cache" });
    return coupons.find((coupon) => coupon.cardId === cardId)?.status.name ?? "not there";
  }

  /** Redeems a coupon; returns if it was redeemed. */
  async redeem(customerId, cardId, bizId) {
    // What the customer sees may be some seconds old; what is about to be redeemed must not be.
    const status = await this.status(customerId, cardId);
    if (status !== "unused") throw new Refused(`the coupon is ${status}`);
    const sent = Date.now();
    try {
      await this.#write("writeOffCoupon", { bizId, customerId, couponsCardList: [cardId] }, customerId);
    } catch (unknown) {
      if (!(unknown instanceof Unknown)) throw unknown;
      try {
        await this.#findOut(unknown, sent, customerId, cardId, bizId);
      } catch (error) {
        // It could not be found out.
        throw error instanceof Failed || error instanceof Refused ? unknown : error;
      }
    }
  }

  /** After an unknown outcome: returns if it was redeemed. */
  async #findOut(unknown, sent, customerId, cardId, bizId) {
    for (let look = 0; look < LOOKS || !(unknown.isOver || Date.now() > sent + WRITE_LASTS); look++) {
      if ((await this.status(customerId, cardId)) === "redeemed") return;
      await sleep(LOOK_PAUSE);
    }
    // It may still come: undo it, so that another try starts from a known state. If there is nothing to undo, the platform says so.
    try {
      await this.reverse(bizId, customerId);
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
    }
    throw new NotRedeemed("it was not redeemed; try again with another id");
  }

  /** Undoes a redemption. */
  async reverse(bizId, customerId) {
    await this.#write("couponReverse", { bizId }, customerId);
  }

  async #list(body, headers) {
    const { answer } = await this.#patiently("/v1/coupons:list", body, headers, READ_TIMEOUT);
    if (!Array.isArray(answer.coupons)) throw new Failed(200, "http", "this is not the answer of a gateway");
    return answer;
  }

  /** Sends a write. With the customer, the gateway knows whose coupons changed whatever comes of it. */
  async #write(route, params, customerId) {
    const named = { "X-Zvgate-Customer": JSON.stringify(customerId) };
    const { headers, answer } = await this.#patiently(ROUTES + route, { params }, named, WRITE_TIMEOUT);
    const outcome = headers.get("x-zvgate-outcome");
    if (outcome === "executed") return;
    if (outcome !== "refused") throw new Unknown(`outcome ${outcome}`, outcome === "unknown");
    const said = `the platform refused: ${answer.code} ${answer.message}`;
    // The platform writes true or "true", 0 or "0".
    const isException = String(answer.status).toLowerCase() === "true" && !LATER.includes(String(answer.code));
    throw isException ? new Refused(said) : new Failed(200, "refused", said);
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
    const isWrite = path.startsWith(ROUTES);
    let request, response;
    try {
      // A redirection would take the key, and perhaps the write, somewhere else.
      const options = { method: "POST", redirect: "error", signal: AbortSignal.timeout(timeout) };
      request = new Request(this.url + path, { ...options, headers: { ...this.headers, ...headers }, body: JSON.stringify(body) });
    } catch (error) {
      // An address or a header that cannot be sent.
      throw new Failed(0, "invalid", error.message);
    }
    try {
      response = await fetch(request);
    } catch (error) {
      const cause = error.cause?.code ?? error.cause?.message ?? error.name;
      if (isWrite && cause !== "ECONNREFUSED") throw new Unknown(cause);
      throw new Failed(0, "unreachable", cause);
    }
    const outcome = response.headers.get("x-zvgate-outcome");
    const answer = await response.json().catch(() => undefined);
    const isObject = answer !== null && typeof answer === "object";
    if (response.status === 200 && isObject) return { headers: response.headers, answer };
    // Whatever is on the way to the gateway may answer in its place; then nobody knows what became of a write.
    const isGateways = outcome ?? response.headers.get("proxy-status");
    if (isWrite && (outcome === "unknown" || !isGateways || response.status === 200)) {
      throw new Unknown(`status ${response.status}`, outcome === "unknown");
    }
    throw failure(response, isObject ? answer : {}, outcome);
  }
}

function failure(response, body, outcome) {
  const { status, headers } = response;
  const name = body.type?.split(":").at(-1) ?? body.error ?? "http";
  if (name === "platform_exception") return new Refused(`${body.platformCode} ${body.platformMessage}`);
  // 429 and 503 say when to come again; of a write, only if nothing was sent.
  const mayRepeat = [429, 503].includes(status) && [null, "not-sent"].includes(outcome);
  const after = headers.get("retry-after") ?? "";
  const retryAfter = mayRepeat && /^\d+$/.test(after) ? Number(after) * 1000 : undefined;
  return new Failed(status, name, body.detail ?? body.message ?? response.statusText, headers.get("x-request-id"), retryAfter);
}

const USAGE = "usage: coupons.mjs URL list CUSTOMER | status CUSTOMER CARD | redeem CUSTOMER CARD ID | reverse ID CUSTOMER";
const COMMANDS = { list: 1, status: 2, redeem: 3, reverse: 2 };

async function main([url, command, ...rest]) {
  if (rest.length !== COMMANDS[command]) {
    console.error(USAGE);
    return 2;
  }
  const gateway = new Gateway(url, { key: process.env.ZVGATE_KEY, tenant: process.env.ZVGATE_TENANT });
  try {
    if (command === "list") {
      for (const coupon of await gateway.coupons(rest[0], { usable: true })) {
        console.log(coupon.cardId, coupon.status.name, coupon.endAt, coupon.title);
      }
    } else if (command === "status") {
      console.log(await gateway.status(...rest));
    } else if (command === "redeem") {
      await gateway.redeem(...rest);
      console.log("redeemed");
    } else {
      await gateway.reverse(...rest);
      console.log("reversed");
    }
  } catch (error) {
    if (error instanceof Refused || error instanceof NotRedeemed) {
      console.error(`refused: ${error.message}`);
      return 3;
    }
    if (error instanceof Unknown) {
      console.error(`unknown: ${error.message}; look at its status later, before anything is repeated`);
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

// Run as a program, also through a link, and not imported.
if (process.argv[1] && import.meta.url === pathToFileURL(realpathSync(process.argv[1])).href) {
  process.exitCode = await main(process.argv.slice(2));
}
