// Pictures of the status page for docs/, of a tollgate that serves for real. Started by
// tests/status_page.rs: tests/long.sh page-pictures.

import { act, launch, watched } from "./browser.mjs";

const { ADMIN_URL, TOKEN, PICTURES } = process.env;
const browser = await launch();

async function open(options, isSignedIn = true) {
  const { context, page } = await watched(browser, options);
  page.setDefaultTimeout(20_000);
  if (isSignedIn) {
    await page.addInitScript((token) => {
      sessionStorage.setItem("tollgate.token", token);
      sessionStorage.setItem("tollgate.operator", "Ada");
    }, TOKEN);
  }
  await page.goto(`${ADMIN_URL}/`);
  await page.locator(isSignedIn ? '[data-live="live"]' : "#sign-in").waitFor();
  return { context, page };
}

const seconds = (count) => new Promise((resolve) => setTimeout(resolve, count * 1_000));
const shot = (page, name, options = {}) => page.screenshot({ path: `${PICTURES}/${name}.png`, ...options });
const desktop = { viewport: { width: 1280, height: 832 } };

const { page: signedOut } = await open(desktop, false);
await seconds(1);
await shot(signedOut, "signed-out");
await signedOut.context().close();

const { page } = await open(desktop);
await act("traffic", { isOn: true });
await seconds(Number(process.env.TRAFFIC_SECONDS ?? 200));
await shot(page, "light");
await page.emulateMedia({ colorScheme: "dark" });
await seconds(1);
await shot(page, "dark");
await page.emulateMedia({ colorScheme: "light" });

async function dialog(part, action, fill) {
  await page.locator(`#inspected [data-part="${part}"]`).click();
  await fill();
  await page.locator("#dialog").getByRole("button", { name: action }).click();
  await page.locator("#dialog[open]").waitFor({ state: "detached" });
}
const look = async (identity) => {
  await page.locator("#identity").fill(identity);
  await page.locator("#identity").press("Enter");
  await page.locator("#inspected h4").getByText(identity).waitFor();
};
await look("user:mallory");
await dialog("deny", "Deny it", async () => {
  await page.locator("#dialog select").selectOption("1440");
  await page.locator("#dialog input").fill("scrapes the whole history, see ticket 4711");
});
await look("user:bob");
await dialog("override", "Override the tier", async () => {
  await page.locator("#dialog select").first().selectOption("premium");
  await page.locator("#dialog select").nth(1).selectOption("10080");
  await page.locator("#dialog input").fill("trial until the contract is signed");
});
await seconds(3);
await page.evaluate(() => document.querySelector("#callers").scrollIntoView());
await seconds(1);
await shot(page, "callers");
await page.locator('#inspected [data-part="reset"]').click();
await seconds(1);
await shot(page, "reset");
await page.keyboard.press("Escape");
await page.evaluate(() => document.querySelector("#exceptions").scrollIntoView());
await page.setViewportSize({ width: 1280, height: 480 });
await seconds(1);
await shot(page, "exceptions");
await page.setViewportSize({ width: 1280, height: 620 });
await act("tiers", { isGood: false });
await page.locator("#reload-error").waitFor();
await page.evaluate(() => document.querySelector("#policy").scrollIntoView());
await seconds(1);
await shot(page, "reload");
await page.setViewportSize(desktop.viewport);
await act("tiers", { isGood: true });
await page.locator("#reload-error").waitFor({ state: "hidden" });
await page.evaluate(() => window.scrollTo(0, 0));
await act("redis", { isUp: false });
await page.locator('#badge[data-status="degraded"]').waitFor();
await seconds(4);
await shot(page, "outage");
await act("redis", { isUp: true });
await page.locator('#badge[data-status="healthy"]').waitFor();
await page.setViewportSize({ width: 390, height: 844 });
await page.evaluate(() => window.scrollTo(0, 0));
await seconds(1);
await shot(page, "phone");
await act("traffic", { isOn: false });
await browser.close();
console.log("DONE");
process.exit(0);
