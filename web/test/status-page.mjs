// The status page in a real Chromium, in front of a real tollgate. Started by tests/status_page.rs.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { act, launch, watched } from "./browser.mjs";

const { ADMIN_URL, OPEN_URL, TOKEN } = process.env;
const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const HOSTILE = "user:<img src=x onerror=alert(1)>";
const PATIENCE = 20_000;

const browser = await launch();
const { context, page, noted } = await watched(browser, { viewport: { width: 1280, height: 900 } });
page.setDefaultTimeout(PATIENCE);

const started = Date.now();
async function step(name, run) {
  await run();
  console.log(`ok ${((Date.now() - started) / 1000).toFixed(1)} s ${name}`);
}

/** Waits until the text of an element is this, or matches it. */
async function says(selector, expected) {
  const deadline = Date.now() + PATIENCE;
  let found;
  do {
    found = await page.evaluate((it) => document.querySelector(it)?.textContent?.trim() ?? null, selector);
    if (found !== null && (expected instanceof RegExp ? expected.test(found) : found === expected)) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  } while (Date.now() < deadline);
  assert.fail(`${selector} says ${JSON.stringify(found)}, expected ${expected}`);
}

async function accessible(what) {
  // In a world of its own: the page's policy forbids scripts that are not its own.
  const session = await context.newCDPSession(page);
  const { frameTree } = await session.send("Page.getFrameTree");
  const { executionContextId } = await session.send("Page.createIsolatedWorld", {
    frameId: frameTree.frame.id,
    worldName: "axe",
  });
  const expression = `${AXE}; axe.run(document, { resultTypes: ["violations"] }).then((it) => JSON.stringify(it.violations.map(
    (it) => [it.id, it.help, ...it.nodes.slice(0, 3).map((node) => node.html + " " + node.failureSummary)])))`;
  const { result, exceptionDetails } = await session.send("Runtime.evaluate", {
    expression,
    contextId: executionContextId,
    awaitPromise: true,
    returnByValue: true,
  });
  assert.equal(exceptionDetails, undefined, JSON.stringify(exceptionDetails));
  await session.detach();
  const violations = JSON.parse(result.value);
  assert.deepEqual(violations, [], `${what}: ${JSON.stringify(violations, null, 2)}`);
}

/** A button of the identity that is looked at. */
const button = (part) => page.locator(`#inspected [data-part="${part}"]`);
const inDialog = (name) => page.locator("#dialog").getByRole("button", { name });

await step("signed out, the page asks for the token and shows what everybody may see", async () => {
  await page.goto(`${ADMIN_URL}/`);
  await page.locator("#sign-in").waitFor();
  await says("#open-health", /is healthy/);
  assert.equal(await page.locator("#board").isVisible(), false);
  assert.match(noted.console.join("\n"), /^error: Failed to load resource: .*401.*\/api\/v1\/stream$/);
  noted.console.length = 0;
  await accessible("signed out");
});

await step("a wrong token is refused in words, the right one opens the page", async () => {
  await page.locator("#token").fill("wrong");
  await page.locator("#operator").fill("Zoë");
  await page.locator("#token").press("Enter");
  await says("#sign-in-error", /not the token/);
  assert.equal(noted.console.length, 1, noted.console.join("\n"));
  noted.console.length = 0;
  await page.locator("#token").fill(TOKEN);
  await page.locator("#token").press("Enter");
  await says("#live-text", "Live");
  await says("#badge-text", "Healthy");
  await says("#session-button", "Zoë");
  const kept = await page.evaluate(() => [localStorage.length, document.cookie]);
  assert.deepEqual(kept, [0, ""], "kept by the tab and nowhere else");
});

await step("it says what is empty, and moves nothing about", async () => {
  await says("#top-empty", "No request was refused by a limit in the last 5 minutes.");
  await says("#entries-empty", /Nobody has another tier/);
  await says("#slow-empty", /No call was slow/);
  await says('#policy-tiers [data-tier="free"] li', /At most 10 in any 60 seconds; what was used comes back within 61 seconds/);
  await says('#endpoints [data-endpoint="history"] td', "GET /fo/history/**");
  await page.reload();
  await says("#live-text", "Live");
  await says("#policy-line", /^Hash [0-9a-f]{12}, in force since/);
  // What stands below the figures may grow; what is looked at first may not move.
  const shift = await page.evaluate(() => window.shift);
  assert.ok(shift < 0.1, `layout shift ${shift}`);
});

await step("its figures are what was sent", async () => {
  const sent = await act("requests", { count: 13 });
  assert.deepEqual(sent, { allowed: 10, blocked: 3 });
  await says('#tiers [data-tier="free"] td:nth-of-type(3)', "10");
  await says('#tiers [data-tier="free"] td:nth-of-type(4)', "3");
  const hostile = await act("requests", { count: 12, user: HOSTILE.slice("user:".length) });
  assert.deepEqual(hostile, { allowed: 10, blocked: 2 });
  await says('#tiers [data-tier="free"] td:nth-of-type(3)', "20");
  await says('#tiers [data-tier="free"] td:nth-of-type(4)', "5");
  await says("#top tr:nth-child(1) td", "ip:127.0.0.1");
  await says("#top tr:nth-child(1) td:nth-child(2)", "3");
  const label = await page.locator("#chart-blocked .plot").getAttribute("aria-label");
  assert.match(label, /^Chart, requests refused by limits a second, by tier: .*free .*highest [1-9]/);
  assert.match(await page.locator("#f-p95").textContent(), /^[0-9.]+ m?s$/);
});

await step("it tells who asks most, too", async () => {
  await page.locator('#top-by input[value="requests"]').check();
  await says("#top tr:nth-child(1) td:nth-child(2)", "13");
  await says("#top-title", "Asking most");
  await page.locator('#top-by input[value="blocked"]').check();
  await says("#top tr:nth-child(1) td:nth-child(2)", "3");
});

await step("what callers send stays text", async () => {
  await says("#top tr:nth-child(2) td", HOSTILE);
  assert.equal(await page.locator("img").count(), 0);
  await page.locator("#top tr:nth-child(2) button").click();
  await says("#inspected h4", HOSTILE);
  await says('#inspected [data-part="tier"]', "free");
  assert.equal(await page.locator("img").count(), 0);
  assert.deepEqual(noted.dialogs, []);
});

await step("an identity gets its limits anew", async () => {
  await says('#inspected [data-limit="tier:minute"] td:nth-of-type(1)', "10");
  await says('#inspected [data-limit="tier:minute"] td:nth-of-type(2)', "0");
  await button("reset").click();
  assert.equal(await inDialog("Cancel").evaluate((it) => it === document.activeElement), true);
  await inDialog("Cancel").click();
  assert.equal(await button("reset").evaluate((it) => it === document.activeElement), true);
  await button("reset").click();
  await inDialog("Reset the counters").click();
  await says("#inspected .outcome", "The counters were reset.");
  await says('#inspected [data-limit="tier:minute"] td:nth-of-type(1)', "0");
  const sent = await act("requests", { count: 1, user: HOSTILE.slice("user:".length) });
  assert.deepEqual(sent, { allowed: 1, blocked: 0 });
  await says("#changes tr:nth-child(1) td:nth-child(2)", "Counters reset");
  await says("#changes tr:nth-child(1) td:nth-child(5)", /^Zoë, from 127\.0\.0\.1/);
});

await step("an identity gets another tier, and it shows who gave it when", async () => {
  await page.locator("#identity").fill("ip:127.0.0.1");
  await page.locator("#identity").press("Enter");
  await says("#inspected h4", "ip:127.0.0.1");
  await button("override").click();
  await page.locator("#dialog select").first().selectOption("premium");
  await page.locator("#dialog input").fill("a <b>test</b>");
  await inDialog("Override the tier").click();
  await says("#inspected .outcome", "The tier is overridden: premium.");
  await says('#inspected [data-part="tier"]', "premium");
  await says('#inspected [data-part="facts"] dd', /^tier premium, .*in .*\. Set by Zoë, from 127\.0\.0\.1, .* Reason: a <b>test<\/b>$/);
  await says('#entries tr[data-kind="override"] th', "ip:127.0.0.1");
  await says('#entries tr[data-kind="override"] td:nth-of-type(4)', "Zoë, from 127.0.0.1");
  assert.deepEqual(await act("requests", { count: 5 }), { allowed: 5, blocked: 0 });
  await says('#tiers [data-tier="premium"] td:nth-of-type(3)', "5");
  await page.locator('#entries tr[data-kind="override"] button', { hasText: "Remove" }).click();
  await inDialog("Remove the override").click();
  await page.locator('#entries tr[data-kind="override"]').waitFor({ state: "detached" });
});

await step("an identity is denied, and let in again", async () => {
  await page.locator("#identity").fill(HOSTILE);
  await page.getByRole("button", { name: "Look", exact: true }).first().click();
  await says("#inspected h4", HOSTILE);
  await button("deny").click();
  await page.locator("#dialog select").selectOption("");
  await inDialog("Deny it").click();
  await says("#inspected .outcome", "It is denied from now on.");
  await page.locator('#inspected [data-part="refused"]').waitFor();
  assert.deepEqual(await act("status", { user: HOSTILE.slice("user:".length) }), { status: 403 });
  await says('#entries tr[data-kind="deny"] td:nth-of-type(2)', "until removed");
  await accessible("with an exception");
  await button("allow").click();
  await inDialog("Take it off").click();
  await says("#inspected .outcome", "It is denied no longer.");
  assert.deepEqual(await act("status", { user: HOSTILE.slice("user:".length) }), { status: 200 });
});

await step("an identity that is none is told so", async () => {
  await page.locator("#identity").fill("nonsense");
  await page.locator("#identity").press("Enter");
  await says("#inspected [role=alert]", /nonsense|identity/);
  assert.equal(noted.console.length, 1, noted.console.join("\n"));
  assert.match(noted.console[0], /400/);
  noted.console.length = 0;
});

await step("a refused reload is shown with its place, until the file is right", async () => {
  await act("tiers", { isGood: false });
  await page.locator("#reload-error").waitFor();
  await says("#reload-text", /tiers\.yaml:\d+:\d+/);
  await page.locator("#reload").click();
  await says("#announcer", /reload was refused/);
  noted.console.length = 0;
  await accessible("with a refused reload");
  await act("tiers", { isGood: true });
  await page.locator("#reload-error").waitFor({ state: "hidden" });
});

await step("an outage of Redis is shown, and its end", async () => {
  await act("redis", { isUp: false });
  await says("#badge-text", "Degraded");
  await page.locator('#dependencies [data-dependency="redis"] [data-status="unhealthy"]').waitFor();
  await says("#f-limiter", "Locally");
  await says("#reasons", /redis unhealthy: the store that the replicas share does not answer/);
  await accessible("in an outage");
  await act("redis", { isUp: true });
  await says("#badge-text", "Healthy");
  await says("#verdict-text", "All is well");
});

await step("an outage of the backend is shown, and its end", async () => {
  await act("backend", { isUp: false });
  await says("#reasons", /upstream circuit (open|half open): /);
  await act("backend", { isUp: true });
  await says("#badge-text", "Healthy");
});

await step("a lost connection is said, with the age of the figures, and made again", async () => {
  await act("tollgate", { isUp: false });
  await says("#live-text", "No connection");
  await says("#badge-text", "Was healthy");
  await says("#lost-text", /The figures are of \d\d:\d\d:\d\d, .* ago\./);
  await accessible("without a connection");
  await act("tollgate", { isUp: true });
  await says("#live-text", "Live");
  await page.locator("#lost").waitFor({ state: "hidden" });
  noted.console.length = 0;
});

await step("everything can be done with the keyboard", async () => {
  await page.reload();
  await says("#live-text", "Live");
  await page.keyboard.press("Tab");
  const focused = () => page.evaluate(() => document.activeElement?.id || document.activeElement?.textContent?.trim());
  assert.equal(await focused(), "Skip to the content");
  await page.keyboard.press("Enter");
  assert.equal(await focused(), "main");
  const reach = async (isThere, what) => {
    for (let presses = 0; presses < 80; presses += 1) {
      await page.keyboard.press("Tab");
      if (await page.evaluate(isThere)) return;
    }
    assert.fail(`the keyboard does not reach ${what}`);
  };
  await reach(() => document.activeElement?.id === "identity", "the field of the identity");
  await page.keyboard.type("key:acme");
  await page.keyboard.press("Enter");
  await says("#inspected h4", "key:acme");
  await page.waitForFunction(() => document.activeElement?.tagName === "H4");
  await reach(() => document.activeElement?.dataset?.part === "reset", "the reset");
  await page.keyboard.press("Enter");
  await page.locator("#dialog[open]").waitFor();
  await page.keyboard.press("Escape");
  await page.locator("#dialog[open]").waitFor({ state: "detached" });
  assert.equal(await page.evaluate(() => document.activeElement?.dataset?.part), "reset");
  const outline = await button("reset").evaluate((it) => getComputedStyle(it).outlineStyle);
  assert.equal(outline, "solid", "and what has the focus is seen to have it");
});

await step("it is accessible in the light, in the dark and on a phone, where it fits", async () => {
  await accessible("light");
  await page.emulateMedia({ colorScheme: "dark" });
  await accessible("dark");
  await page.setViewportSize({ width: 360, height: 740 });
  await page.waitForTimeout(300);
  const width = await page.evaluate(() => document.documentElement.scrollWidth);
  assert.ok(width <= 360, `${width} pixels wide`);
  await accessible("on a dark phone");
  await page.emulateMedia({ colorScheme: "light" });
  await accessible("on a phone");
});

await step("it costs nothing once nobody looks", async () => {
  assert.deepEqual(await act("tasks"), { tasks: 1 });
  const violations = await page.evaluate(() => window.violations);
  assert.deepEqual(violations, []);
  await page.locator("#session-button").click();
  await page.locator("#dialog").getByRole("button", { name: "Sign out" }).click();
  await page.locator("#sign-in").waitFor();
  assert.equal(await page.evaluate(() => sessionStorage.getItem("tollgate.token")), null);
  assert.deepEqual(await act("no-tasks"), { tasks: 0 });
});

assert.deepEqual(noted, { console: [], outside: [], dialogs: [] });

await step("without a token it works on its own machine at once", async () => {
  const own = await watched(browser, {}, OPEN_URL);
  await own.page.goto(`${OPEN_URL}/`);
  await own.page.locator('[data-live="live"]').waitFor();
  await own.page.locator("#policy-tiers .card").first().waitFor();
  await own.page.locator("#session-button").click();
  await own.page.locator("#dialog").getByText("This port asks for no token").waitFor();
  await own.page.locator("#dialog input").fill("Eve");
  await own.page.locator("#dialog").getByRole("button", { name: "Keep the name" }).click();
  await own.page.locator("#session-button").getByText("Eve").waitFor();
  assert.deepEqual(own.noted, { console: [], outside: [], dialogs: [] });
  await own.context.close();
});

await step("who has guessed too often is told to wait", async () => {
  const guesses = await Promise.all(
    Array.from({ length: 12 }, () => fetch(`${ADMIN_URL}/api/v1/slow`, { headers: { Authorization: "Bearer wrong" } })),
  );
  assert.ok(guesses.some((it) => it.status === 429));
  await page.locator("#token").fill(TOKEN);
  await page.locator("#token").press("Enter");
  await says("#sign-in-error", /^Too many wrong tokens came from this address\. Try again in \d+ s\.$/);
});

await step("and under another name than its own it says what to do", async () => {
  const url = OPEN_URL.replace("127.0.0.1", "tollgate.test");
  const foreign = await watched(browser, {}, url);
  await foreign.page.goto(`${url}/`);
  await foreign.page.getByRole("heading", { name: "Only on its own machine" }).waitFor();
  assert.equal(await foreign.page.locator("#sign-in-form").isVisible(), false);
  assert.equal(await foreign.page.locator("#board").isVisible(), false);
  assert.deepEqual(foreign.noted.outside, []);
  await foreign.context.close();
});

await browser.close();
console.log("DONE");
process.exit(0);
