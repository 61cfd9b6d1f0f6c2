// Bundles this folder's modules and ECharts into charts.min.js. `make charts` runs it in a copy of the folder.

import { build } from "esbuild";
import { createHash } from "node:crypto";
import { readFileSync, readdirSync } from "node:fs";

const sources = readdirSync(".").filter((name) => /\.js(on)?$/.test(name)).sort();
const hash = createHash("sha256");
for (const name of sources) hash.update(readFileSync(name));

const { dependencies } = JSON.parse(readFileSync("package.json"));
const banner = [
  "/*! loadgen's charts, made by `make charts` from loadgen/report/charts/script; Apache License 2.0.",
  `sources sha256 ${hash.digest("hex")}`,
  `Contains Apache ECharts ${dependencies.echarts}. Notices of what it contains:`,
  readFileSync("NOTICE", "utf8").trim(),
  "*/",
].join("\n");

await build({
  entryPoints: ["main.js"],
  outfile: "charts.min.js",
  bundle: true,
  minify: true,
  format: "iife",
  target: "es2021",
  charset: "utf8",
  legalComments: "none",
  define: { "process.env.NODE_ENV": '"production"' },
  banner: { js: banner },
});
