// Chromium, and the conversation with the test that started this script: a line `DO {…}` asks for
// something to be done to the tollgate under test, and the line that comes back says what came of it.

import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

/** Without these Chromium looks for hosts of its maker's at every start. */
const QUIET = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--disable-dev-shm-usage",
  // A name that leads to this machine, as one of a stranger's might.
  "--host-resolver-rules=MAP tollgate.test 127.0.0.1",
];

export async function launch() {
  return chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: QUIET });
}

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

/** Has something done, and says what came of it. */
export async function act(what, details = {}) {
  console.log(`DO ${JSON.stringify({ what, ...details })}`);
  const { value, done } = await lines.next();
  if (done) throw new Error(`nobody did ${what}`);
  return JSON.parse(value);
}

/** A page whose every word is noted: what it writes to the console, asks for, and is not allowed. */
export async function watched(browser, options = {}, base = process.env.ADMIN_URL) {
  const context = await browser.newContext({ reducedMotion: "reduce", ...options });
  const page = await context.newPage();
  const noted = { console: [], outside: [], dialogs: [] };
  page.on("console", (it) => {
    if (["error", "warning"].includes(it.type())) noted.console.push(`${it.type()}: ${it.text()} ${it.location().url}`);
  });
  page.on("pageerror", (error) => noted.console.push(`thrown: ${error.stack}`));
  page.on("dialog", (it) => {
    noted.dialogs.push(it.message());
    void it.dismiss();
  });
  page.on("request", (it) => {
    const url = it.url();
    if (!url.startsWith(`${base}/`) && !url.startsWith("data:")) noted.outside.push(url);
  });
  await page.addInitScript(() => {
    window.violations = [];
    window.shift = 0;
    document.addEventListener("securitypolicyviolation", (it) => {
      window.violations.push(`${it.violatedDirective} ${it.blockedURI} ${it.sample}`);
    });
    new PerformanceObserver((list) => {
      for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shift += entry.value;
    }).observe({ type: "layout-shift", buffered: true });
  });
  return { context, page, noted };
}
