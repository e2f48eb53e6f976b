// With JavaScript the page refreshes itself every two seconds, without disturbing whoever uses it.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { figure, open, sleep, startBrowser, startGateway, startSandbox, stopAll, until } from "./support.mjs";

let browser, gateway, customers = 0;

before(async () => {
  browser = await startBrowser();
  const sandbox = await startSandbox("--rate", "0");
  gateway = await startGateway(sandbox.url, "limits.upstream.rate = 0");
});

after(stopAll);

/** Makes calls, and waits until the page shows their number. */
async function refreshed(page) {
  await gateway.read(`customer-${customers++}`);
  const { made } = (await gateway.status()).money;
  await until("a refresh", async () => await figure(page, "money", "Calls made") >= made, 5);
}

describe("refreshes", { concurrency: true }, () => {
  test("numbers change without a reload", async () => {
    const page = await open(browser, gateway);
    await page.evaluate(() => { window.isTheSame = true; });
    const before = await figure(page, "money", "Calls made");
    await refreshed(page);
    assert.notEqual(await figure(page, "money", "Calls made"), before);
    const began = Date.now();
    await refreshed(page);
    assert.ok(Date.now() - began < 4000, "every two seconds");
    assert.equal(await page.evaluate(() => window.isTheSame), true);
    const { uptime_s } = await gateway.status();
    const shown = Number((await page.locator("header").textContent()).match(/running for (\d+) s/)[1]);
    assert.ok(uptime_s - shown <= 3, `running for ${uptime_s} s, not ${shown} s`);
  });

  test("what is typed, focused, selected and opened stays", async () => {
    const page = await open(browser, gateway);
    await page.locator("summary").click();
    const customer = page.getByLabel("Customer id");
    await customer.fill("38393309");
    await customer.press("ArrowLeft");
    await refreshed(page);
    await page.keyboard.type("-");
    await refreshed(page);
    assert.equal(await customer.inputValue(), "3839330-9");
    assert.equal(await page.locator("details").getAttribute("open"), "");
    assert.ok(await page.getByLabel("Configuration in force").isVisible());

    await page.locator("#cache dt").first().selectText();
    await refreshed(page);
    assert.equal(await page.evaluate(() => `${getSelection()}`), "Mode");
  });

  test("a table that is focused or scrolled is refreshed, too, and stays where it is", async () => {
    // Nobody else changes what this one shows.
    const gateway = await startGateway("http://127.0.0.1:1");
    await gateway.post("/no/such/route", {}, { "X-Request-Id": "r".repeat(64) });
    const page = await open(browser, gateway, { viewport: { width: 390, height: 844 } });
    const table = page.locator("#requests .table").nth(1);
    await table.evaluate((table) => { table.focus(); table.scrollLeft = 50; });
    await gateway.post("/no/such/route", {}, { "X-Request-Id": "the-late-one" });
    await table.getByText("the-late-one").waitFor({ timeout: 5000 });
    assert.equal(await table.evaluate((table) => table === document.activeElement), true, "it keeps the focus");
    assert.equal(await table.evaluate((table) => table.scrollLeft), 50);
  });

  test("the title follows the verdict", async () => {
    const sandbox = await startSandbox("--rate", "0");
    const gateway = await startGateway(sandbox.url, "limits.upstream.rate = 0");
    const page = await open(browser, gateway);
    assert.match(await page.title(), /\bok\b/);
    await sandbox.setFaults({ fault: "http500" });
    await gateway.read("a customer of a failing platform");
    await until("a title that names the failure", async () => /warning|critical/.test(await page.title()), 5);
  });

  test("a page that is not refreshed any more does not look as if all were well", async () => {
    const gateway = await startGateway("http://127.0.0.1:1");
    const page = await open(browser, gateway);
    await gateway.stop();
    await page.getByText(/not refreshed(?! by itself)/i).waitFor();
    await sleep(100);
    assert.doesNotMatch(await page.title(), /\bok\b/);
    await page.evaluate(() => scrollTo(0, document.body.scrollHeight));
    assert.ok(await page.locator("#refreshed").evaluate((note) => note.getBoundingClientRect().top >= 0), "it is in sight");
  });
});
