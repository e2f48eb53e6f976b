// Writes docs/status-page.png and docs/status-page-phone.png: a gateway after a minute of reads and writes.

import { READ, WRITE, open, sleep, startBrowser, startGateway, startSandbox, stopAll } from "./support.mjs";

const SECONDS = Number(process.argv[2] ?? 60);
const REVERSE = "/v3/crm/coupon/couponReverse";
// How far the pictures reach: they must stay below 250 KB.
const PICTURES = [
  { name: "status-page", width: 1280, last: "#replicas" },
  { name: "status-page-phone", width: 390, last: "#rates" },
];

try {
  const sandbox = await startSandbox("--latency", "20ms");
  await sandbox.setFaults({ latency_ms: 20, jitter_ms: 40 });
  const gateway = await startGateway(sandbox.url, "budget.free_calls = 100");
  // A few customers come often, most seldom.
  const customer = () => `${383933091455959000n + BigInt(Math.floor(Math.random() ** 3 * 400))}`;

  let isDone = false;
  const traffic = (async () => {
    for (let round = 0; !isDone; round++) {
      await Promise.all(Array.from({ length: 12 }, () => gateway.read(customer())));
      if (round % 20 === 10) {
        const customerId = customer();
        const { data } = JSON.parse((await gateway.post(READ, { customerId, useStatus: "0" })).text);
        const couponsCardList = data.list.slice(0, 1).map(({ cardId }) => cardId);
        const bizId = `order-${round}`;
        await gateway.post(WRITE, { bizId, customerId, couponsCardList });
        await gateway.post(REVERSE, { bizId, customerId });
      }
      await sleep(250);
    }
  })();
  await sleep(1000 * SECONDS);

  const browser = await startBrowser();
  for (const { name, width, last } of PICTURES) {
    const page = await open(browser, gateway, { viewport: { width, height: 900 } });
    await page.getByText("Refreshed every 2 s").waitFor();
    const { y, height } = await page.locator(last).boundingBox();
    const path = new URL(`../../docs/${name}.png`, import.meta.url).pathname;
    await page.screenshot({ path, fullPage: true, clip: { x: 0, y: 0, width, height: Math.ceil(y + height + 8) } });
  }
  isDone = true;
  await traffic;
} finally {
  await stopAll();
}
