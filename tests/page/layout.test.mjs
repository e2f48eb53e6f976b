// How the page is laid out on a phone and on a desk, in light and in dark, and that it is accessible and loads nothing from elsewhere.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import axe from "axe-core";
import { WRITE, newPage, startBrowser, startGateway, startSandbox, stopAll, until } from "./support.mjs";

const SECTIONS = [
  /^Verdict: critical$/, /^Calls in \d{4}-\d{2}$/, /^Last 10 minutes$/, /^Rate\b/, /^Platform$/, /^Cache$/, /^Replicas$/,
  /^Requests of late$/, /^A customer's cached answers$/, /^Configuration$/,
];

let browser, sandbox, gateway;

before(async () => {
  browser = await startBrowser();
  sandbox = await startSandbox("--rate", "0");
  gateway = await startGateway(sandbox.url, 'limits.upstream.rate = 0\nupstream.retries = 0\nupstream.breaker.open_min = "30s"');
  // Every table has rows with long cells: slow, rejected and failed requests, and an open breaker.
  await sandbox.setFaults({ latency_ms: 30 });
  await gateway.read("383933091455959041", { "X-Request-Id": "r".repeat(64) });
  await gateway.post(WRITE, { bizId: "1", customerId: "383933091455959041", couponsCardList: ["no such card"] });
  await gateway.post("/no/such/route", {});
  await sandbox.setFaults({ fault: "http500" });
  for (let customer = 0; customer < 6; customer++) await gateway.read(`38393309145595905${customer}`);
});

after(stopAll);

describe("layout", { concurrency: true }, () => {
  for (const width of [390, 1280]) {
    for (const colorScheme of ["light", "dark"]) {
      test(`${width} px, ${colorScheme}`, async (t) => {
        const page = await newPage(browser, { viewport: { width, height: 844 }, colorScheme });
        const [requested, complaints] = [[], []];
        page.on("request", (request) => requested.push(request.url()));
        page.on("console", (message) => complaints.push(`${message.type()}: ${message.text()}`));
        page.on("pageerror", (error) => complaints.push(error.message));
        await page.addInitScript(() => addEventListener("securitypolicyviolation", (event) =>
          console.error(`${event.violatedDirective} forbids ${event.blockedURI}`)));
        await page.goto(gateway.admin);

        await t.test("sections and their order", async () => {
          assert.deepEqual(await page.locator("h1").allTextContents(), ["zvgate"]);
          const titles = await page.locator("h2").allTextContents();
          assert.equal(titles.length, SECTIONS.length, titles.join(", "));
          SECTIONS.forEach((title, index) => assert.match(titles[index], title));
        });

        await t.test("the document does not scroll sideways, tables do", async () => {
          await page.getByText("In force, secrets masked").click();
          const [content, window] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
          assert.ok(content <= window, `${content} px of content in ${window} px`);
          const tables = await page.locator(".table").evaluateAll((tables) => tables.map((table) => ({
            name: table.getAttribute("aria-label"),
            scrolls: table.scrollWidth > table.clientWidth && getComputedStyle(table).overflowX === "auto",
            lines: Math.max(...[...table.querySelectorAll("td")].map((cell) =>
              Math.round(cell.clientHeight / parseFloat(getComputedStyle(cell).lineHeight)))),
          })));
          const crushed = tables.filter(({ lines }) => lines > 4);
          assert.deepEqual(crushed, [], "no cell is so narrow that its text takes more than four lines");
          if (width === 390) assert.ok(tables.some(({ scrolls }) => scrolls), JSON.stringify(tables));
        });

        await t.test("it loads nothing from elsewhere, and nothing is refused", async () => {
          await until("a refresh", () => requested.filter((url) => url === `${gateway.admin}/`).length >= 2);
          const foreign = requested.filter((url) => !url.startsWith(`${gateway.admin}/`) && !url.startsWith("data:"));
          assert.deepEqual([foreign, complaints], [[], []]);
        });

        await t.test("axe finds no violation", async () => {
          await page.getByLabel("Customer id").fill("383933091455959041");
          await page.getByRole("button", { name: "Look up" }).click();
          await page.getByText("What is cached for customer").waitFor();
          await page.getByText("In force, secrets masked").click();
          await page.evaluate(axe.source);
          const { violations, passes } = await page.evaluate(() => {
            const rules = axe.getRules().map(({ ruleId }) => [ruleId, { enabled: true }]);
            return axe.run(document, { rules: Object.fromEntries(rules) });
          });
          assert.ok(passes.some(({ id }) => id === "color-contrast"), "contrast was judged");
          const found = violations.map(({ id, help, nodes }) => `${id}: ${help}: ${nodes.map(({ html }) => html).join(" ")}`);
          assert.deepEqual(found, []);
        });
      });
    }
  }
});
