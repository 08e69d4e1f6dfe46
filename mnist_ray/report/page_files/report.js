"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;
const themeButton = document.getElementById("theme");
const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");

function colours() {
  const style = getComputedStyle(root);
  const of = (name) => style.getPropertyValue(name).trim();
  return { ink: of("--ink"), line: of("--line"), ground: of("--panel") };
}

function template() {
  const { ink, line, ground } = colours();
  const axis = { gridcolor: line, linecolor: line, zerolinecolor: line, automargin: true };
  const dark = root.dataset.theme === "dark";
  return {
    layout: {
      font: { color: ink, family: "system-ui, sans-serif", size: 12 },
      paper_bgcolor: ground, plot_bgcolor: ground, colorway: dark
        ? ["#79b8ff", "#ffab70", "#85e89d", "#f97583", "#b392f0", "#ffdf5d", "#9ecbff", "#d1d5da"]
        : ["#0550ae", "#bc4c00", "#116329", "#a40e26", "#6639ba", "#7d4e00", "#0a7ea4", "#424a53"],
      xaxis: axis, yaxis: axis, hoverlabel: { bgcolor: ground, font: { color: ink } },
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 }, margin: { l: 55, r: 30, t: 30, b: 45 },
      modebar: { orientation: "v", bgcolor: "transparent" },
    },
  };
}

const config = { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "zoom2d", "resetScale2d"]] };
const PRINTED_WIDTH = 640; // pixels, which fit on A4 and on letter paper with any printer's margins

function draw(element, figure) {
  const layout = Object.assign({}, figure.layout, { template: template(), autosize: true });
  delete layout.width; delete layout.height;
  if (isPrinting) layout.width = PRINTED_WIDTH;
  return Plotly.react(element, figure.data, layout, config).then(() => element.setAttribute("data-drawn", "yes"));
}

// Every figure is drawn at once, unless it is folded away and has no size yet.
let isPrinting = false;
const plots = [...document.querySelectorAll("[data-figure]")];
const folds = [...document.querySelectorAll("details")];
function drawMissing() {
  plots.filter((element) => !element.dataset.drawn && !element.closest("details:not([open])"))
    .forEach((element) => draw(element, data.figures[element.dataset.figure]));
}
function drawAgain() {
  plots.forEach((element) => delete element.dataset.drawn);
  drawMissing();
}
folds.forEach((fold) => fold.addEventListener("toggle", drawMissing));

function setTheme(theme) {
  root.dataset.theme = theme;
  themeButton.setAttribute("aria-pressed", String(theme === "dark"));
  drawAgain();
}
themeButton.addEventListener("click", () => setTheme(root.dataset.theme === "dark" ? "light" : "dark"));
prefersDark.addEventListener("change", (event) => setTheme(event.matches ? "dark" : "light"));
setTheme(prefersDark.matches ? "dark" : "light");

let beforePrinting = null;
window.addEventListener("beforeprint", () => {
  beforePrinting = { theme: root.dataset.theme, folded: folds.filter((fold) => !fold.open) };
  beforePrinting.folded.forEach((fold) => { fold.open = true; });
  isPrinting = true;
  setTheme("light");
});
window.addEventListener("afterprint", () => {
  isPrinting = false;
  beforePrinting.folded.forEach((fold) => { fold.open = false; });
  setTheme(beforePrinting.theme);
});

const table = document.getElementById("trainings");
if (table) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const headings = [...table.tHead.rows[0].cells];
  const valueOf = (row, index) => {
    const cell = row.cells[index];
    return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
  };
  const compare = (first, second) => {
    const isNumber = typeof first === "number", otherIsNumber = typeof second === "number";
    if (isNumber !== otherIsNumber) return isNumber ? -1 : 1;
    return isNumber ? first - second : first.localeCompare(second, "en", { numeric: true });
  };
  headings.forEach((heading, index) => {
    heading.firstChild.addEventListener("click", () => {
      const ascending = heading.getAttribute("aria-sort") !== "ascending";
      headings.forEach((each) => each.setAttribute("aria-sort", "none"));
      heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const isEmpty = (row) => row.cells[index].textContent === "";
      rows.sort((a, b) => isEmpty(a) - isEmpty(b) ||
        (ascending ? 1 : -1) * compare(valueOf(a, index), valueOf(b, index)));
      body.append(...rows);
    });
  });
  const filter = document.getElementById("filter"), count = document.getElementById("count");
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row) => {
      const text = [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += row.hidden ? 0 : 1;
    });
    count.textContent = `${shown} of ${rows.length}`;
  });
  const dialog = document.getElementById("curve"), plot = document.getElementById("curve-plot");
  body.addEventListener("click", (event) => {
    const button = event.target.closest(".open");
    if (!button) return;
    const id = button.dataset.training, curve = data.curves[id] || { epochs: [], series: {} };
    document.getElementById("curve-title").textContent = id;
    document.getElementById("curve-text").textContent =
      curve.epochs.length ? "" : "No epoch of this training is on record.";
    dialog.showModal();
    const traces = Object.entries(curve.series).map(([name, values]) =>
      ({ x: curve.epochs, y: values, name, mode: "lines+markers", yaxis: name.endsWith("accuracy") ? "y2" : "y" }));
    draw(plot, { data: traces, layout: {
      xaxis: { title: { text: "epoch" }, dtick: curve.epochs.length < 12 ? 1 : undefined },
      yaxis: { title: { text: "loss" } },
      yaxis2: { title: { text: "accuracy" }, overlaying: "y", side: "right", showgrid: false } } });
  });
}
