// Without JavaScript every number is on the page, and its form works.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { figure, open, startBrowser, startGateway, startSandbox, stopAll, until } from "./support.mjs";

const CUSTOMER = "383933091455959041";

let browser, gateway;

before(async () => {
  browser = await startBrowser();
  const sandbox = await startSandbox("--rate", "0", "--latency", "30ms");
  gateway = await startGateway(sandbox.url, "limits.upstream.rate = 0\nbudget.free_calls = 0");
  for (let reads = 0; reads < 3; reads++) await gateway.read(CUSTOMER);
  await gateway.post("/no/such/route", {});
  await until("a step of the charts", async () => (await gateway.status()).history.length > 0);
});

after(stopAll);

const openWithout = () => open(browser, gateway, { javaScriptEnabled: false });

test("all numbers are there", async () => {
  const page = await openWithout();
  const { money, cache, rates, platform, requests } = await gateway.status();
  assert.equal(money.made, 1);
  assert.equal(money.saved, 2);
  for (const [section, name, number] of [
    ["money", "Calls made", money.made],
    ["money", "Calls failed", money.failed],
    ["money", "Calls saved", money.saved],
    ["money", "Cost", `${money.cost} CNY`],
    ["money", "Cost without the cache", `${money.cost_without_cache} CNY`],
    ["cache", "Answers", cache.entries],
    ["cache", "Evicted, expired", cache.evicted_expired],
    ["cache", "Evicted, cache full", cache.evicted_size],
    ["platform", "Base URL", platform.base_url],
    ["configuration", "Reloads", 0],
  ]) assert.equal(await figure(page, section, name), `${number}`, name);

  const rows = (section) => page.locator(`#${section} tbody tr`).count();
  assert.equal(await rows("rates"), rates.length);
  assert.equal(await rows("platform"), platform.rows.length);
  for (const shown of [...requests.slowest, ...requests.rejected]) {
    assert.ok(await page.locator("#requests tr").filter({ hasText: shown.request_id }).isVisible());
  }
  const charts = await page.locator("#history svg").evaluateAll((charts) => charts.map((chart) => chart.ariaLabel));
  assert.equal(charts.length, 4);
  for (const chart of charts) assert.match(chart, /Now: .*\d.*Highest: [\d.]+\.$/);
  assert.match(await page.locator("header").textContent(), /not refreshed .*without JavaScript/i);
});

test("a customer is looked up and purged", async () => {
  const page = await openWithout();
  const submit = async (button) => {
    await page.getByRole("button", { name: button }).click();
    return page.locator("#customer p[role=status]").textContent();
  };
  await page.locator("select[name=tenant]").selectOption("shop");
  await page.getByLabel("Customer id").fill(CUSTOMER);

  assert.match(await submit("Look up"), new RegExp(CUSTOMER));
  const { tenant, answers } = JSON.parse(await page.locator("#customer pre").textContent());
  assert.deepEqual([tenant, answers.length], ["shop", 1]);
  assert.ok(await page.locator("#customer pre").evaluate((found) => found.getBoundingClientRect().top < innerHeight),
    "the answer is in sight");

  // The customer who was looked up can be purged without being typed again.
  assert.equal(await page.getByLabel("Customer id").inputValue(), CUSTOMER);
  assert.match(await submit("Purge"), /Purged 1 /);
  assert.match((await gateway.read(CUSTOMER)).headers.get("cache-status"), /fwd=miss/);
});
