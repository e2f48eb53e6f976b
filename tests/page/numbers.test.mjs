// The page, /status.json and /metrics agree.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { isDeepStrictEqual } from "node:util";
import { WRITE, figure, open, startBrowser, startGateway, startSandbox, stopAll, until } from "./support.mjs";

const FLEETING = "/v3/crm/coupon/getCustomerCouponList";

let browser, gateway;

before(async () => {
  browser = await startBrowser();
  const sandbox = await startSandbox("--rate", "0");
  gateway = await startGateway(sandbox.url, `
    limits.upstream.rate = 0
    upstream.retries = 0
    cache.max_bytes = "1MiB"
    [[routes]]
    path = "${FLEETING}"
    kind = "cached"
    ttl = "100ms"
    stale_if_error = "0s"
  `);
});

after(stopAll);

/** The numbers of /metrics. */
async function counted() {
  const evictions = (cause) => gateway.metric("zvgate_cache_evictions_total", `cause="${cause}"`);
  return {
    made: await gateway.metric("zvgate_upstream_attempts_total"),
    saved: await gateway.metric("zvgate_upstream_calls_saved_total"),
    entries: await gateway.metric("zvgate_cache_entries"),
    expired: await evictions("expired"),
    full: await evictions("size"),
  };
}

/** Those of the page. */
async function shown() {
  const page = await open(browser, gateway, { javaScriptEnabled: false });
  const number = async (section, name) => Number(await figure(page, section, name));
  return {
    made: await number("money", "Calls made"),
    saved: await number("money", "Calls saved"),
    entries: await number("cache", "Answers"),
    expired: await number("cache", "Evicted, expired"),
    full: await number("cache", "Evicted, cache full"),
  };
}

/** Those of /status.json. */
async function reported() {
  const { money: { made, saved }, cache } = await gateway.status();
  return { made, saved, entries: cache.entries, expired: cache.evicted_expired, full: cache.evicted_size };
}

test("the page and /status.json have the numbers of /metrics", async () => {
  // More answers than fit, some of which are asked for again, and some that expire soon.
  for (let customer = 0; customer < 600; customer += 20) {
    await Promise.all(Array.from({ length: 20 }, (_, index) => gateway.read(`${customer + index}`)));
  }
  for (let hit = 0; hit < 7; hit++) await gateway.read("599");
  for (const customerId of ["1", "2"]) await gateway.post(FLEETING, { customerId });
  await gateway.post(WRITE, { bizId: "1", customerId: "599", couponsCardList: ["no such card"] });
  await until("an eviction of what has expired", async () => (await counted()).expired > 0);

  // Answers expire while the three are read: only numbers that did not change in the meantime are compared.
  const [numbers, ofPage, ofJson] = await until("a moment without changes", async () => {
    const before = await counted();
    const found = [before, await shown(), await reported()];
    return isDeepStrictEqual(before, await counted()) && found;
  });
  for (const [name, number] of Object.entries(numbers)) assert.ok(number > 0, `${name} is ${number}`);
  assert.equal(numbers.saved, 7);
  assert.deepEqual(ofPage, numbers);
  assert.deepEqual(ofJson, numbers);
});
