// What the page says and does: its numbers, its verdict, its forms, with and without JavaScript, and who may see it.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { after, before, test } from "node:test";
import { READ, figure, open, sleep, startBrowser, startGateway, startRedis, startSandbox, until } from "./support.mjs";

const FAST = "limits.upstream.rate = 0\nupstream.retries = 0";
const CUSTOMER = "383933091455959041";
let sandbox, gateway, browser;

before(async () => {
  [sandbox, browser] = await Promise.all([startSandbox("--rate", "0"), startBrowser()]);
  gateway = await startGateway(sandbox.url, FAST);
  for (let customer = 0; customer < 4; customer++) await gateway.read(`${customer}`);
  for (let again = 0; again < 3; again++) await gateway.read(CUSTOMER);
});

after(async () => {
  await browser?.close();
  await gateway?.stop();
  await sandbox?.stop();
});

test("its numbers are those of the metrics and of its data, without JavaScript", async () => {
  const page = await open(browser, gateway, { javaScriptEnabled: false });
  const { money, cache } = await gateway.status();
  assert.equal(await figure(page, "money", "Calls made"), `${await gateway.metric("zvgate_upstream_attempts_total")}`);
  assert.equal(await figure(page, "money", "Calls saved"), `${await gateway.metric("zvgate_upstream_calls_saved_total")}`);
  assert.equal(await figure(page, "cache", "Answers"), `${await gateway.metric("zvgate_cache_entries")}`);
  assert.equal(await figure(page, "cache", "Evicted, expired"),
    `${await gateway.metric("zvgate_cache_evictions_total", 'cause="expired"')}`);
  assert.deepEqual([money.made, money.saved, cache.entries], [5, 2, 5]);
  await page.context().close();
});

test("its forms look up and purge a customer, without JavaScript", async () => {
  const page = await open(browser, gateway, { javaScriptEnabled: false });
  await page.getByLabel("Customer id").fill(CUSTOMER);
  await page.getByRole("button", { name: "Look up" }).click();
  await page.getByText(`What is cached for customer ${CUSTOMER}`).waitFor();
  assert.match(await page.getByLabel("Cached answers", { exact: true }).textContent(), /"fresh_for":[\d.]+/);
  await page.getByLabel("Customer id").fill(CUSTOMER);
  await page.getByRole("button", { name: "Purge" }).click();
  await page.getByText("Purged 1 cached answers").waitFor();
  assert.equal(await gateway.metric("zvgate_cache_entries"), 4);
  await page.context().close();
});

test("it refreshes itself, and leaves alone what somebody uses", async () => {
  const page = await open(browser, gateway);
  const made = Number(await figure(page, "money", "Calls made"));
  await page.getByLabel("Customer id").fill("typed");
  await page.getByText("In force, secrets masked").click();
  await page.getByRole("heading", { level: 1 }).click();
  await gateway.read("another");
  await until("a refresh", async () => Number(await figure(page, "money", "Calls made")) === made + 1);
  assert.equal(await page.getByLabel("Customer id").inputValue(), "typed");
  await sleep(2500);
  assert.ok(await page.locator("details").evaluate((details) => details.open), "what was opened stays open");
  await page.context().close();
});

test("every control and every table that scrolls is reached by the keyboard, visibly", async () => {
  const page = await open(browser, gateway, { viewport: { width: 390, height: 844 }, javaScriptEnabled: true });
  const reached = [];
  for (let step = 0; step < 40; step++) {
    await page.keyboard.press("Tab");
    reached.push(await page.evaluate(() => {
      const { activeElement: one } = document;
      const visible = parseFloat(getComputedStyle(one).outlineWidth) > 0;
      return `${one.tagName}${one.name ? ` ${one.name}` : ""}${visible ? "" : " without an outline"}`;
    }));
  }
  assert.ok(["SELECT tenant", "INPUT customer", "BUTTON do", "SUMMARY", "DIV"].every((one) => reached.includes(one)), reached.join());
  assert.ok(!reached.some((one) => one.endsWith("outline") && !one.startsWith("BODY")), reached.join());
  await page.context().close();
});

for (const [fault, verdict, says] of [
  ["http500", "critical", /circuit breaker for \/v3\/crm\/coupon\/getCustomerCoupons of tenant shop is open: HTTP status 500/],
  ["throttle", "warning", /platform throttles .* although the rate was kept/],
]) {
  test(`its verdict says what ${fault} means`, async (t) => {
    const failing = await startGateway(sandbox.url, FAST);
    t.after(() => failing.stop());
    t.after(() => sandbox.setFaults({ fault: "none" }));
    await sandbox.setFaults({ fault });
    for (let customer = 0; customer < (fault === "http500" ? 6 : 1); customer++) await failing.read(`${customer}`);
    const page = await open(browser, failing, { javaScriptEnabled: false });
    assert.match(await page.locator("#verdict").textContent(), says);
    assert.equal(await page.title(), `zvgate: ${verdict}`);
    await page.context().close();
  });
}

test("its verdict says that Redis is gone", async (t) => {
  const redis = await startRedis();
  t.after(() => redis.stop());
  const replica = await startGateway(sandbox.url, `${FAST}\ncluster.url = "${redis.url}"\ncluster.replicas = 2`
    .replace("limits.upstream.rate = 0\n", ""));
  t.after(() => replica.stop());
  await until("joining", async () => (await replica.metric("zvgate_cluster_up")) === 1);
  await redis.stop();
  await until("being cut off", async () => (await replica.metric("zvgate_cluster_up")) === 0);
  const page = await open(browser, replica, { javaScriptEnabled: false });
  assert.match(await page.locator("#verdict .summary").textContent(), /cut off .*Redis does not answer/);
  await page.context().close();
});

test("hostile text is shown, and does nothing", async () => {
  const page = await open(browser, gateway);
  page.on("dialog", () => assert.fail("a script ran"));
  const hostile = '"><script>alert(1)</script><img src=x onerror=alert(1)>';
  await gateway.post(`${READ}/${encodeURIComponent(hostile)}`, {}, { "X-Request-Id": "hostile" });
  await page.getByLabel("Customer id").fill(hostile);
  await page.getByRole("button", { name: "Look up" }).click();
  await page.getByText(`What is cached for customer ${hostile}`).waitFor();
  assert.equal(await page.locator("img").count(), 0);
  assert.equal(await page.locator("script").count(), 1, "the page's own");
  await page.context().close();
});

test("with a key, a browser asks for it, and other sites cannot use it", async (t) => {
  const key = "an admin key";
  const hash = createHash("sha256").update(key).digest("hex");
  const locked = await startGateway(sandbox.url, `server.admin_key_sha256 = "${hash}"`);
  t.after(() => locked.stop());
  const statusOf = async (credentials, path = "/") => {
    const context = await browser.newContext(credentials ? { httpCredentials: credentials } : {});
    const response = await (await context.newPage()).goto(locked.admin + path).catch(() => null);
    await context.close();
    return response?.status();
  };
  assert.equal(await statusOf({ username: "anybody", password: key }), 200);
  assert.equal(await statusOf({ username: "anybody", password: "wrong" }), 401);
  assert.equal(await statusOf({ username: "anybody", password: key }, "/config"), 401);
  const authorization = `Basic ${Buffer.from(`anybody:${key}`).toString("base64")}`;
  const post = (origin) => fetch(`${locked.admin}/`, {
    method: "POST",
    headers: { Authorization: authorization, Origin: origin, "Content-Type": "application/x-www-form-urlencoded" },
    body: "tenant=shop&customer=1&do=purge",
  });
  assert.deepEqual([(await post("http://evil.example")).status, (await post(locked.admin)).status], [403, 200]);
});
