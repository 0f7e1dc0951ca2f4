"use strict";

// Charts: each is drawn from the specification beside it. No text of it is ever run as code: expressions
// are interpreted, which the page's policy demands.
for (const figure of document.querySelectorAll("figure.chart")) {
  const place = figure.querySelector(".drawing");
  const specification = JSON.parse(figure.querySelector("script").textContent);
  const { columns, rows } = specification.data;
  specification.data = { values: rows.map((row) => Object.fromEntries(row.map((value, at) => [columns[at], value]))) };
  embed(place, specification, {
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
