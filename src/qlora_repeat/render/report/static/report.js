"use strict";

// Charts. Each is described by the data beside it: its kind, columns and rows, and what else the kind needs.
// No text of it is ever run as code: expressions are interpreted, which the page's policy demands.

// Colors that most people with color blindness can tell apart, on white and on black.
const palette = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#7F7F7F"];
// Colors of text and lines are the page's, so that they follow dark mode and print.
const textColors = { labelColor: "currentColor", titleColor: "currentColor", titleFontWeight: "normal" };
const lineColors = { gridColor: "currentColor", domainColor: "currentColor", tickColor: "currentColor" };
const config = {
  background: "transparent",
  font: "system-ui, sans-serif", // the page's; "inherit" cannot be measured, and labels would overlap titles
  view: { stroke: null },
  axis: { ...textColors, ...lineColors, gridOpacity: 0.15 },
  legend: textColors,
  header: textColors,
  text: { color: "currentColor" },
  range: { category: palette },
};
const noData = { color: "currentColor", aria: false }; // for marks that are no data
const once = { data: { values: [{}] } }; // for what is drawn once, and not for each point
const wide = { width: "container", height: 220 };

const quantity = (field, more) => ({ field, type: "quantitative", title: field, ...more });
const category = (field, more) => ({ field, type: "nominal", title: field, ...more });
const axisScale = (log) => (log ? { type: "log" } : { zero: false });
const point = (size, opacity) => ({ type: "point", filled: true, size, ...(opacity && { opacity }) });
const besideRuns = { field: "run", type: "ordinal" };
const level = (value) => ({
  mark: { ...noData, type: "rule", strokeDash: [4, 3], opacity: 0.6 },
  encoding: { y: { datum: value } },
});

const kinds = {
  // A point for each trial, a bar at each optimizer's median, and a line for the base model.
  points({ optimizers, base, log, digests }) {
    const x = category("optimizer", { title: null, sort: optimizers, axis: { labelAngle: 0 } });
    const y = quantity("perplexity", { scale: axisScale(log), axis: { grid: true } });
    const median = {
      mark: { ...noData, type: "rule", strokeWidth: 2, opacity: 0.45 },
      encoding: {
        x: { ...x, bandPosition: 0.08 },
        x2: { field: "optimizer", bandPosition: 0.92 },
        y: { ...y, aggregate: "median" },
      },
    };
    const adapter = digests ? [category("identity", { title: "adapter" }), category("digest")] : [];
    const trials = {
      mark: point(80, 0.8),
      encoding: {
        x,
        xOffset: besideRuns,
        y,
        color: category("optimizer", { legend: null, sort: optimizers }),
        tooltip: [category("optimizer"), category("run"), quantity("perplexity", { format: ".6~g" }), ...adapter],
      },
    };
    return { ...wide, layer: [...(base === null ? [] : [{ ...once, ...level(base) }]), median, trials] };
  },

  // A line for each run, and a vertical line at the first difference. The legend chooses a run.
  lines({ columns: [, unit, measure], rows, runs, step, log }) {
    const axis = measure === "difference" ? { format: ".0e", tickCount: 6 } : {};
    const whole = unit === "step" ? { axis: { tickMinStep: 1, format: ",d" } } : {}; // there is no step 0.2
    const encoding = {
      x: quantity(unit, { scale: { nice: false }, ...whole }),
      y: quantity(measure, { scale: axisScale(log), axis }),
      color: category("run", {
        scale: { domain: runs, range: runs.map((run) => palette[(run - 1) % palette.length]) },
        legend: { orient: "right", symbolType: "stroke", symbolStrokeWidth: 3 },
      }),
    };
    const line = {
      params: [{ name: "chosen", select: { type: "point", fields: ["run"] }, bind: "legend" }],
      mark: { type: "line", strokeWidth: 1.4, interpolate: "linear", aria: false },
      encoding: { opacity: { condition: { param: "chosen", value: 0.9 }, value: 0.08 } },
    };
    const pointed = {
      params: [{ name: "near", select: { type: "point", on: "pointerover", nearest: true, clear: "pointerout" } }],
      mark: point(45),
      encoding: {
        opacity: { condition: { param: "near", empty: false, value: 1 }, value: 0 },
        tooltip: [category("run"), category(unit), quantity(measure, { format: ".5~g" })],
      },
    };
    const at = { x: { datum: step, type: "quantitative" } };
    const beside = step > Math.max(...rows.map((row) => row[1])) / 2 ? { align: "right", dx: -4 } : { align: "left", dx: 4 };
    const label = { ...noData, type: "text", ...beside, dy: 4, y: 0, baseline: "top" };
    const first = [
      { ...once, mark: { ...noData, type: "rule", strokeDash: [2, 3] }, encoding: at },
      { ...once, mark: label, encoding: { ...at, text: { value: `first differs at step ${step}` } } },
    ];
    return { ...wide, layer: [{ encoding, layer: [line, pointed] }, ...(step === null ? [] : first)] };
  },

  // A point for each trial, a panel for each model, and a line at 1.
  ratios({ arms }) {
    const trials = {
      mark: point(55, 0.75),
      encoding: {
        x: category("arm", { title: null, sort: arms, axis: { labelAngle: -40 } }),
        xOffset: besideRuns,
        y: quantity("ratio", { title: "perplexity / base perplexity", scale: { type: "log" } }),
        color: category("arm", { legend: null, sort: arms }),
        tooltip: [...["model", "arm", "run"].map((field) => category(field)), quantity("ratio", { format: ".4~g" })],
      },
    };
    return {
      facet: { column: category("model", { title: null, sort: null }) },
      spec: { width: 150, height: 240, layer: [level(1), trials] },
    };
  },
};

for (const figure of document.querySelectorAll("figure.chart")) {
  const place = figure.querySelector(".drawing");
  const chart = JSON.parse(figure.querySelector("script").textContent);
  const values = chart.rows.map((row) => Object.fromEntries(row.map((value, at) => [chart.columns[at], value])));
  embed(place, { data: { values }, ...kinds[chart.kind](chart) }, {
    config,
    renderer: "svg",
    ast: true,
    expr: expressionInterpreter,
    actions: { export: true, source: false, compiled: false, editor: false },
    downloadFileName: figure.querySelector("h3").textContent.replaceAll(/\W+/g, "-"),
    tooltip: { theme: "custom" },
  }).then(
    () => reachableByKeys(figure),
    (error) => {
      place.textContent = `This chart cannot be drawn here: ${error.message}`;
      console.error(error);
    },
  );
}

// The points of a chart, one after the other, with the arrow keys; what a point says is said below.
function reachableByKeys(figure) {
  const drawing = figure.querySelector(".drawing");
  const said = figure.querySelector("output");
  let at = -1;
  drawing.tabIndex = 0;
  drawing.setAttribute("aria-description", "Arrow keys go from point to point.");
  const points = () => [...drawing.querySelectorAll('svg [aria-roledescription="point"]')];
  drawing.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    const all = points();
    if (!(event.key in steps || event.key === "Home" || event.key === "End") || all.length === 0) return;
    event.preventDefault();
    all[at]?.classList.remove("at");
    if (event.key in steps) at = (at + steps[event.key] + all.length) % all.length;
    else at = event.key === "Home" ? 0 : all.length - 1;
    all[at].classList.add("at");
    said.textContent = all[at].getAttribute("aria-label");
  });
  drawing.addEventListener("blur", () => {
    for (const point of points()) point.classList.remove("at");
    said.textContent = "";
  });
}

for (const table of document.querySelectorAll("table.sortable")) {
  new DataTable(table, { paging: false, info: false, order: [], autoWidth: false, language: { search: "Filter: " } });
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("button.copy");
  if (!button) return;
  const command = button.parentElement.querySelector("code");
  try {
    await navigator.clipboard.writeText(command.textContent);
    button.textContent = "copied";
  } catch {
    getSelection().selectAllChildren(command); // to be copied by hand
    button.textContent = "selected";
  }
  setTimeout(() => (button.textContent = "copy"), 2000);
});

// On paper everything is open.
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("main details:not([open])")];
  for (const each of opened) each.open = true;
});
addEventListener("afterprint", () => {
  for (const each of opened) each.open = false;
});
