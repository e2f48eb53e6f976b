// Writes docs/status-page.png and docs/status-page-phone.png, of a gateway that has served for a minute.

import { WRITE, sleep, startBrowser, startGateway, startSandbox } from "./support.mjs";

const docs = new URL("../../docs/", import.meta.url).pathname;
const [sandbox, browser] = await Promise.all([startSandbox(), startBrowser()]);
const gateway = await startGateway(sandbox.url);
await sandbox.setFaults({ latency_ms: 40, jitter_ms: 60 });
const end = Date.now() + 1000 * Number(process.argv[2] ?? 70);
for (let round = 0; Date.now() < end; round++) {
  const customers = Array.from({ length: 12 }, () => `${Math.floor(Math.random() ** 3 * 300)}`);
  await Promise.all(customers.map((customer) => gateway.read(customer)));
  if (round % 40 === 39) await gateway.post(WRITE, { bizId: `${round}`, customerId: "1", couponsCardList: ["no such card"] });
  await sleep(200);
}
for (const [width, name] of [[1280, "status-page"], [390, "status-page-phone"]]) {
  const page = await (await browser.newContext({ viewport: { width, height: 900 } })).newPage();
  await page.goto(gateway.admin);
  await page.screenshot({ path: `${docs}${name}.png`, clip: { x: 0, y: 0, width, height: 1400 }, fullPage: true });
}
await browser.close();
await gateway.stop();
await sandbox.stop();
