// Builds src/admin/page.html, one file with all that the page needs, and page.html.gz of it.
//
//   node build.mjs           writes them
//   node build.mjs --check   says whether what is committed is what the source builds
//
// The same source makes the same bytes on every machine: versions are exact (package-lock.json), and
// nothing of the machine goes in. Only the compressed copy may differ with Node's zlib, so that it is held
// to what it unpacks to.

import { build } from "esbuild";
import { readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { gunzipSync, gzipSync } from "node:zlib";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const PAGE = here("../src/admin/page.html");
const PACKED = `${PAGE}.gz`;

async function bundled(entry) {
  const { outputFiles } = await build({
    entryPoints: [here(entry)],
    absWorkingDir: here("."),
    bundle: true,
    minify: true,
    write: false,
    format: "iife",
    target: ["es2022", "chrome110", "firefox115", "safari16.4"],
    charset: "utf8",
    legalComments: "none",
    logLevel: "warning",
  });
  return outputFiles[0].text.trim();
}

async function page() {
  const [script, style] = await Promise.all([bundled("src/main.ts"), bundled("src/page.css")]);
  const licence = readFileSync(here("node_modules/uplot/LICENSE"), "utf8").trim();
  const version = JSON.parse(readFileSync(here("node_modules/uplot/package.json"), "utf8")).version;
  if (/<\/script|<!--/i.test(script) || /<\/style/i.test(style)) {
    throw new Error("the bundle would end its own element");
  }
  const notice = [
    "<!--",
    "Built from web/ by `npm run build`; not to be edited.",
    "",
    `The charts are drawn by uPlot ${version} (https://github.com/leeoniya/uPlot), under these terms:`,
    "",
    licence,
    "-->",
  ].join("\n");
  const source = readFileSync(here("src/page.html"), "utf8");
  return source
    .replace("<!doctype html>", () => `<!doctype html>\n${notice}`)
    .replace("/*STYLE*/", () => style)
    .replace("/*SCRIPT*/", () => script);
}

const built = await page();
if (process.argv.includes("--check")) {
  const committed = readFileSync(PAGE, "utf8");
  const unpacked = gunzipSync(readFileSync(PACKED)).toString("utf8");
  if (committed !== built || unpacked !== built) {
    const which = committed !== built ? "page.html" : "page.html.gz";
    console.error(`src/admin/${which} is not what web/ builds; run npm run build in web/`);
    process.exit(1);
  }
  console.log("src/admin/page.html is what web/ builds");
} else {
  writeFileSync(PAGE, built);
  writeFileSync(PACKED, gzipSync(built, { level: 9 }));
  const packed = readFileSync(PACKED).length;
  console.log(`src/admin/page.html: ${Buffer.byteLength(built)} bytes, ${packed} packed`);
}
