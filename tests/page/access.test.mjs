// Who may see the page, and who may use its form.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { after, before, test } from "node:test";
import { newPage, open, startBrowser, startGateway, startSandbox, startServer, stopAll } from "./support.mjs";

let browser, sandbox, gateway, key;

before(async () => {
  const printed = execFileSync(process.env.ZVGATE_BIN, ["key"], { encoding: "utf8" });
  const hash = printed.match(/key_sha256 = (\S+)/)[1];
  key = printed.match(/key\s+= (\S+)/)[1];
  browser = await startBrowser();
  sandbox = await startSandbox();
  gateway = await startGateway(sandbox.url, `server.admin_key_sha256 = "${hash}"`);
});

after(stopAll);

const withKey = (username = "operator") => ({ httpCredentials: { username, password: key } });

test("without the key it is asked for", async () => {
  for (const options of [{}, { httpCredentials: { username: "anybody", password: "not the key" } }]) {
    const page = await newPage(browser, options);
    const [response] = await Promise.all([
      page.waitForEvent("response"),
      // Some versions of Chromium show the answer, some none.
      page.goto(gateway.admin).catch((error) => assert.match(error.message, /ERR_INVALID_AUTH_CREDENTIALS/)),
    ]);
    assert.equal(response.status(), 401);
    assert.match(await response.headerValue("www-authenticate"), /^Basic realm="zvgate"/);
  }
  assert.match(await (await fetch(gateway.admin)).text(), /^an admin key is required/);
});

test("with the key as the password of any user the page is shown and refreshed, and its form works", async () => {
  await open(browser, gateway, withKey("somebody else"));
  const page = await open(browser, gateway, withKey("anybody"));
  const refresh = await page.waitForResponse((response) => response.request().resourceType() === "fetch");
  assert.equal(refresh.status(), 200);
  await page.getByLabel("Customer id").fill("383933091455959041");
  await page.getByRole("button", { name: "Purge" }).click();
  await page.getByText(/Purged \d/).waitFor();
});

test("the links of the page work with the same key", async () => {
  for (const [link, content] of [["JSON", /"verdict"/], ["metrics", /zvgate_build_info/]]) {
    const page = await open(browser, gateway, withKey());
    await page.getByRole("link", { name: link }).click();
    await page.waitForURL(/json|metrics/);
    assert.match(await page.locator("body").textContent(), content);
  }
});

test("/config does not accept a password", async () => {
  const page = await open(browser, gateway, withKey());
  const response = await page.goto(`${gateway.admin}/config`);
  assert.equal(response.status(), 401);
  assert.match(await response.headerValue("www-authenticate"), /^Bearer/);
});

test("another site's page cannot use the form, with a key or without one", async () => {
  const keyless = await startGateway(sandbox.url);
  for (const [target, options] of [[gateway, withKey()], [keyless, {}]]) {
    const form = `<form method="post" action="${target.admin}/">
      <input name="tenant" value="shop"><input name="customer" value="1"><button name="do" value="purge">Win</button></form>`;
    const port = await startServer((_, response) => response.setHeader("Content-Type", "text/html").end(form));
    const page = await newPage(browser, options);
    await page.goto(`http://localhost:${port}`);
    const [response] = await Promise.all([
      page.waitForResponse((response) => response.request().method() === "POST"),
      page.getByRole("button", { name: "Win" }).click(),
    ]);
    assert.equal(response.status(), 403);
    await page.getByText(/other sites/).waitFor();
  }
});
