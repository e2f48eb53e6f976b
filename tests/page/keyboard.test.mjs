// The page can be used with the keyboard alone.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { open, startBrowser, startGateway, startSandbox, stopAll } from "./support.mjs";

const ORDER = [
  "a JSON", "a metrics", "table Rate", "table Platform", "table Lifetimes", "table Failed", "table Rejected",
  "table Slowest", "select tenant", "input customer", "button Look up", "button Purge", "summary In force",
];

let browser, gateway;

before(async () => {
  browser = await startBrowser();
  const sandbox = await startSandbox();
  gateway = await startGateway(sandbox.url);
  await gateway.post("/no/such/route", {}, { "X-Request-Id": "r".repeat(64) });
});

after(stopAll);

/** What is focused: what it is, where it is, and how it is drawn. */
const focused = (page) => page.evaluate(() => {
  const { activeElement: element } = document;
  if (element === document.body) return null;
  const { outlineStyle, outlineWidth, outlineColor } = getComputedStyle(element);
  const { top, bottom } = element.getBoundingClientRect();
  return {
    name: `${element.className || element.localName} ${element.ariaLabel ?? element.name ?? ""} ${element.textContent}`,
    isVisible: top < innerHeight && bottom > 0 && outlineStyle === "solid" && parseFloat(outlineWidth) >= 2
      && outlineColor !== getComputedStyle(document.body).backgroundColor,
  };
});

for (const width of [390, 1280]) {
  test(`Tab reaches everything in order, and shows where it is, at ${width} px`, async () => {
    const page = await open(browser, gateway, { viewport: { width, height: 844 } });
    const reached = [];
    for (;;) {
      await page.keyboard.press("Tab");
      const found = await focused(page);
      if (!found) break;
      assert.ok(found.isVisible, `the focus on ${found.name} is visible`);
      reached.push(found.name);
    }
    const shown = reached.join("\n");
    assert.equal(reached.length, ORDER.length, shown);
    ORDER.forEach((expected, index) => {
      const [kind, ...words] = expected.split(" ");
      assert.ok(reached[index].startsWith(`${kind} `) && reached[index].includes(words.join(" ")), `${expected} in\n${shown}`);
    });
  });
}

test("a focused table is scrolled by the arrow keys", async () => {
  const page = await open(browser, gateway, { viewport: { width: 390, height: 844 } });
  const table = page.locator("#requests .table").nth(1);
  await table.focus();
  await page.keyboard.press("ArrowRight");
  await page.waitForFunction((table) => table.scrollLeft > 0, await table.elementHandle());
});

test("Enter in the form looks up, and never purges", async () => {
  const page = await open(browser, gateway);
  await page.getByLabel("Customer id").focus();
  await page.keyboard.type("383933091455959041");
  await page.keyboard.press("Enter");
  await page.getByText("What is cached for customer 383933091455959041").waitFor();
});
