// Bundle the libraries of a report in one file, and write their licenses.
import { build } from "esbuild";
import { readFileSync, readdirSync, writeFileSync } from "node:fs";

const folder = "../../src/qlora_repeat/render/report/static";
const { metafile } = await build({
  entryPoints: ["libraries.js"],
  outfile: `${folder}/libraries.js`,
  bundle: true,
  minify: true,
  format: "iife",
  target: "es2022",
  charset: "utf8",
  legalComments: "none",
  metafile: true,
});

const names = new Set();
for (const path of Object.keys(metafile.inputs)) {
  const found = path.match(/.*node_modules\/((?:@[^/]+\/)?[^/]+)\//);
  if (found) names.add(found[1]);
}
const licenses = new Map(); // the text of each license: the packages that have it
for (const name of [...names].sort()) {
  const home = `node_modules/${name}`;
  const { version, license } = JSON.parse(readFileSync(`${home}/package.json`, "utf8"));
  const file = readdirSync(home).find((each) => /^licen[cs]e/i.test(each));
  const text = file ? readFileSync(`${home}/${file}`, "utf8").replaceAll(/[ \r]+$/gm, "").trim() : license;
  licenses.set(text, [...(licenses.get(text) ?? []), `${name} ${version}`]);
}
const texts = [...licenses].map(([text, packages]) => `${packages.join(", ")}\n\n${text}\n`);
writeFileSync(`${folder}/licenses.txt`, texts.join(`\n${"-".repeat(80)}\n\n`));
