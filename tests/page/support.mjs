// What the tests of the status page share: a sandbox, gateways, Redis and a browser, each a process of its own.

import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import http from "node:http";
import net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { chromium } from "playwright-core";

const BINARY = process.env.ZVGATE_BIN;
if (!BINARY) throw new Error("expected the path of the gateway's program in ZVGATE_BIN");
const BROWSER = process.env.CHROMIUM ?? "/usr/bin/chromium";

export const READ = "/v3/crm/coupon/getCustomerCoupons";
export const WRITE = "/v3/crm/coupon/writeOffCoupon";
export { sleep };

const stops = new Set();
/** Ends what was started and has not been ended, the last first. */
export async function stopAll() {
  for (const stop of [...stops].reverse()) await stop();
}

const children = new Set();
const folder = mkdtempSync(join(tmpdir(), "zvgate-page-"));
process.on("exit", () => {
  children.forEach((child) => child.kill("SIGKILL"));
  rmSync(folder, { recursive: true, force: true });
});

/** Starts a program and waits until its output matches `pattern`; returns the match and a function that ends the process. */
async function start(program, args, pattern) {
  const child = spawn(program, args, { stdio: ["ignore", "pipe", "pipe"] });
  children.add(child);
  const ended = new Promise((resolve) => child.once("close", resolve));
  const stop = async () => {
    child.kill("SIGKILL");
    await ended;
    children.delete(child);
    stops.delete(stop);
  };
  stops.add(stop);
  const match = await new Promise((resolve, reject) => {
    let output = "";
    const read = (text) => {
      output += text;
      const found = output.match(pattern);
      if (found) resolve(found);
    };
    child.stdout.setEncoding("utf8").on("data", read);
    child.stderr.setEncoding("utf8").on("data", read);
    child.once("error", reject);
    child.once("close", (code) => reject(new Error(`${program} ${args[0]} ended with status ${code}: ${output}`)));
  });
  return { match, stop };
}

async function send(url, { body, ...options } = {}) {
  const json = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
  const headers = { "Content-Type": "application/json", ...options.headers };
  const response = await fetch(url, { ...json, ...options, headers });
  return { status: response.status, headers: response.headers, text: await response.text() };
}

/** The simulated platform. */
export async function startSandbox(...args) {
  const { match, stop } = await start(BINARY, ["sandbox", "--listen", "127.0.0.1:0", ...args], /sandbox on (http:\S+)/);
  const url = match[1];
  const setFaults = (faults) => send(`${url}/_sandbox/faults`, { body: faults });
  return { url, setFaults, stop };
}

let gateways = 0;
/** A gateway in front of a platform. `more`: further lines of its configuration, which begin with top-level keys. */
export async function startGateway(platform, more = "") {
  const number = ++gateways;
  const file = (name, text) => {
    const path = join(folder, `${number}-${name}`);
    writeFileSync(path, text, { mode: 0o600 });
    return path;
  };
  const config = file("zvgate.toml", `
    server.listen = "127.0.0.1:0"
    server.admin_listen = "127.0.0.1:0"
    upstream.base_url = "${platform}"
    log.hash_key_file = "${file("hash-key", "a key of at least 16 bytes")}"
    ${more}
    [tenants.shop]
    open_id = "d14c1559e87b747d577c834b275a4310"
    grant_code = "ba67d4fa46"
    open_key = "LyvrkvkxRkG2R6aM55bXpPwjYAbkEXTbVnKwfDYvVHjNwNFAmx"
  `);
  const addresses = /"listen":"([^"]+)","admin_listen":"([^"]+)"/;
  const { match, stop } = await start(BINARY, ["serve", "--config", config], addresses);
  const [address, admin] = [`http://${match[1]}`, `http://${match[2]}`];
  const post = (path, params, headers = {}) => send(address + path, { body: { params }, headers });
  return {
    admin,
    post,
    read: (customerId, headers) => post(READ, { customerId }, headers),
    status: async () => JSON.parse((await send(`${admin}/status.json`)).text),
    /** The sum of a metric's series whose labels include `label`. */
    metric: async (name, label = "") => {
      const series = (await send(`${admin}/metrics`)).text.split("\n")
        .filter((line) => [" ", "{"].includes(line[name.length]) && line.startsWith(name) && line.includes(label));
      if (series.length === 0) throw new Error(`no metric ${name} with ${label}`);
      return series.reduce((sum, line) => sum + Number(line.split(" ").pop()), 0);
    },
    stop,
  };
}

/** A Redis that stores nothing on disk. */
export async function startRedis() {
  const port = await new Promise((resolve, reject) => {
    const server = net.createServer().once("error", reject).listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });
  const options = ["--port", `${port}`, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
  const { stop } = await start("redis-server", options, /Ready to accept connections/);
  return { url: `redis://127.0.0.1:${port}`, stop };
}

/** A web server of the test's own. */
export async function startServer(handle) {
  const server = http.createServer(handle);
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  stops.add(() => {
    server.close();
    server.closeAllConnections();
  });
  return server.address().port;
}

export async function startBrowser() {
  // Chromium's own sandbox does not work for root.
  const chromiumSandbox = process.getuid() !== 0;
  const browser = await chromium.launch({ executablePath: BROWSER, headless: true, chromiumSandbox });
  stops.add(() => browser.close());
  return browser;
}

/** An empty page in a context of its own. */
export async function newPage(browser, options = {}) {
  const context = await browser.newContext(options);
  context.setDefaultTimeout(10_000);
  return context.newPage();
}

/** Opens the status page in a context of its own. */
export async function open(browser, gateway, options) {
  const page = await newPage(browser, options);
  const response = await page.goto(gateway.admin);
  if (!response.ok()) throw new Error(`${gateway.admin} answered ${response.status()}`);
  return page;
}

/** A figure of a section, as shown. */
export async function figure(page, section, name) {
  const shown = page.locator(`#${section} dl.figures > div`).filter({ has: page.getByText(name, { exact: true }) });
  return (await shown.locator("dd").textContent()).trim();
}

/** Waits until `check` returns something; returns that. */
export async function until(what, check, seconds = 10) {
  const end = Date.now() + 1000 * seconds;
  for (;;) {
    const found = await check();
    if (found) return found;
    if (Date.now() > end) throw new Error(`${what} did not happen within ${seconds} s`);
    await sleep(50);
  }
}
