// The verdict says in words what is wrong, on the page and in its title, so that no colour is needed.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { READ, figure, open, startBrowser, startGateway, startRedis, startSandbox, stopAll, until } from "./support.mjs";

let browser;

before(async () => { browser = await startBrowser(); });

after(stopAll);

/** Checks that the page and its title say how bad it is and what it is. */
async function checkVerdict(gateway, level, ...words) {
  const { verdict } = await gateway.status();
  assert.equal(verdict.level, level, JSON.stringify(verdict));
  const page = await open(browser, gateway, { forcedColors: "active" });
  assert.equal(await page.locator("#verdict h2").textContent(), `Verdict: ${level}`);
  const summary = await page.locator("#verdict .summary").textContent();
  const title = await page.title();
  assert.ok(title.includes(level), title);
  for (const word of words) {
    assert.match(summary, word);
    assert.match(title, word);
  }
  if (level !== "ok") {
    const finding = await page.locator("#verdict li").first().textContent();
    assert.ok(finding.startsWith(`${level}: `) && finding.length > summary.length, finding);
    assert.match(finding, /docs\/runbook\.md, Zvgate[A-Z]/, "it names the section of the runbook");
  }
  return page;
}

describe("verdicts", { concurrency: true }, () => {
  test("all is well", async () => {
    const sandbox = await startSandbox();
    const gateway = await startGateway(sandbox.url);
    await checkVerdict(gateway, "ok", /No failure is known/);
  });

  test("the breaker is open", async () => {
    const sandbox = await startSandbox("--fault", "http500");
    const gateway = await startGateway(sandbox.url, 'upstream.retries = 0\nupstream.breaker.open_min = "20s"');
    for (let customer = 0; customer < 6; customer++) await gateway.read(`${customer}`);
    const page = await checkVerdict(gateway, "critical", /circuit breaker/, new RegExp(READ), /HTTP status 500/);
    const row = page.locator("#platform tbody tr").filter({ hasText: READ });
    assert.match(await row.textContent(), /open.*http_5xx/);
  });

  test("the platform throttles", async () => {
    const sandbox = await startSandbox();
    const gateway = await startGateway(sandbox.url, "upstream.retries = 0");
    await gateway.read("1");
    await sandbox.setFaults({ fault: "throttle" });
    await gateway.read("2");
    const page = await checkVerdict(gateway, "warning", /throttles/, new RegExp(READ));
    const row = page.locator("#rates tbody tr").filter({ hasText: READ });
    assert.match(await row.textContent(), /paused|throttled/);
  });

  test("Redis is gone", async () => {
    const sandbox = await startSandbox();
    const redis = await startRedis();
    const gateway = await startGateway(sandbox.url, `cluster.replicas = 2\ncluster.url = "${redis.url}"`);
    const isUp = async () => (await gateway.status()).replicas.up;
    await until("joining", isUp);
    const page = await open(browser, gateway);
    assert.match(await figure(page, "replicas", "This replica"), /as one/);
    await redis.stop();
    await until("being cut off", async () => !await isUp());
    const after = await checkVerdict(gateway, "critical", /cut off/, /Redis/);
    assert.match(await figure(after, "replicas", "This replica"), /^is cut off: .*Connection refused/);
  });
});
