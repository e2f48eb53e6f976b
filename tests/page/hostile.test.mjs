// Text from outside is shown as text, whatever is in it.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { newPage, startBrowser, startGateway, startSandbox, startServer, stopAll } from "./support.mjs";

const SCRIPT = "<script>alert(1)</script>";
const IMAGE = "<img src=x onerror=alert(1)>";

let browser, sandbox;

before(async () => {
  browser = await startBrowser();
  sandbox = await startSandbox();
});

after(stopAll);

/** A platform whose answers have this code. */
async function startPlatform(code) {
  const answer = JSON.stringify({ status: false, code, error: code, data: [] });
  const port = await startServer((request, response) => {
    request.resume().on("end", () => response.setHeader("Content-Type", "application/json").end(answer));
  });
  return `http://127.0.0.1:${port}`;
}

/** Opens the page and reports whatever it should not do. */
async function watched(gateway) {
  const page = await newPage(browser);
  const harm = [];
  page.on("dialog", (dialog) => { harm.push(dialog.message()); dialog.dismiss(); });
  page.on("console", (message) => harm.push(message.text()));
  page.on("request", (request) => request.url().startsWith(gateway.admin) || request.url() === "data:,"
    || harm.push(request.url()));
  await page.goto(gateway.admin);
  const check = async () => {
    assert.deepEqual(harm, []);
    assert.equal(await page.locator("script").count(), 1, "its own");
    assert.equal(await page.locator("img, b, main script").count(), 0);
  };
  return { page, check };
}

test("a route with markup in its path is no valid configuration", async () => {
  const route = `[[routes]]\npath = "/v3/${SCRIPT}"\nkind = "pass"`;
  await assert.rejects(startGateway(sandbox.url, route), /expected a path/);
});

test("a code of the platform, a currency, a request's path and id", async () => {
  const platform = await startPlatform(IMAGE);
  const gateway = await startGateway(platform, 'budget.currency = "<b>C</b>"\nupstream.retries = 0');
  await gateway.read(SCRIPT);
  const asked = await gateway.post(`/v3/${encodeURIComponent(SCRIPT)}`, { customerId: IMAGE }, { "X-Request-Id": SCRIPT });
  assert.equal(asked.status, 404);
  const { page, check } = await watched(gateway);
  const checkShown = async () => {
    for (const [section, text] of [
      ["requests", `code ${IMAGE}`], ["money", "0.00 <b>C</b>"], ["configuration", 'currency = "<b>C</b>"'],
    ]) assert.ok((await page.locator(`#${section}`).textContent()).includes(text), text);
    await check();
  };
  await checkShown();
  await gateway.read(IMAGE, { "X-Request-Id": "shown-by-a-refresh" });
  await page.locator("#requests").getByText("shown-by-a-refresh").first().waitFor();
  await checkShown();
});

for (const [button, id] of [["Look up", SCRIPT], ["Purge", IMAGE], ["Look up", `"><b>${IMAGE}`]]) {
  test(`${button}: a customer id ${id}`, async () => {
    const gateway = await startGateway(sandbox.url);
    const { page, check } = await watched(gateway);
    await page.getByLabel("Customer id").fill(id);
    await page.getByRole("button", { name: button }).click();
    await page.locator("#customer p").filter({ hasText: id }).waitFor();
    await check();
  });
}
