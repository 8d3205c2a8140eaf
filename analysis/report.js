"use strict";
// Tables that sort and filter, and curves that can be hovered over and switched off. Everything is read from the page.

const data = JSON.parse(document.getElementById("curves").textContent);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
const UNITS = { s: 1, min: 60, h: 3600 };

// What a cell sorts by: its leading number, a time in seconds, or else its text.
function key(text) {
  const found = text.trim().match(/^([-−]?[\d,]*\.?\d+)\s*(s|min|h)?(?![\w/-])/);
  return found ? parseFloat(found[1].replace(/,/g, "").replace("−", "-")) * (UNITS[found[2]] || 1) : null;
}

function sort(table, column, descending) {
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => ({ row, text: row.cells[column].textContent, number: key(row.cells[column].textContent) }));
  const numeric = rows.some((one) => one.number !== null);
  rows.sort((a, b) => {
    if (numeric && (a.number === null) !== (b.number === null)) return a.number === null ? 1 : -1;
    const order = numeric ? (a.number ?? 0) - (b.number ?? 0) : a.text.localeCompare(b.text);
    return descending ? -order : order;
  });
  body.append(...rows.map((one) => one.row));
  $$("th", table).forEach((head, n) => {
    if (n === column) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  });
}

for (const table of $$("table.sortable")) {
  $$("thead th", table).forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => sort(table, column, head.getAttribute("aria-sort") === "ascending"));
  });
}

// The leaderboard's filters: words anywhere in a row, one dataset, and the methods that are switched on.
const hidden = new Set();
const words = document.getElementById("words");
const dataset = document.getElementById("dataset");
const count = document.getElementById("count");

function filter() {
  const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  const rows = $$("#leaderboard tbody tr");
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    const fits = wanted.every((word) => text.includes(word));
    row.hidden = !fits || hidden.has(row.dataset.method) || (dataset.value !== "" && row.dataset.dataset !== dataset.value);
    shown += !row.hidden;
  }
  count.textContent = `${shown} of ${rows.length} rows`;
}
words.addEventListener("input", filter);
dataset.addEventListener("change", filter);

// --- curves ---

const charts = [];
const axis = document.getElementById("axis");
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const dark = window.matchMedia("(prefers-color-scheme: dark)");
// Dark lines are lightened on a dark page.
const tint = (hex) =>
  dark.matches ? "#" + [1, 3, 5].map((n) => Math.round(0.65 * parseInt(hex.slice(n, n + 2), 16) + 89).toString(16).padStart(2, "0")).join("") : hex;
const spoken = (value) => (value == null ? "–" : Math.abs(value) >= 100 ? value.toFixed(0) : value.toPrecision(3));

function draw(place) {
  const panel = data[place.dataset.panel];
  const timed = axis.value === "time";
  const drawn = panel.methods.filter((one) => !timed || one.seconds);
  const tables = drawn.map((one) => [timed ? one.seconds : one.x, one.point, one.low, one.high]);
  const series = [{ label: timed ? "seconds" : panel.axis }];
  const bands = [];
  drawn.forEach((one, n) => {
    const show = !hidden.has(one.name);
    const look = { stroke: tint(one.color), show, spanGaps: true, points: { show: false } };
    series.push({ ...look, label: one.name, width: 2, dash: one.dash, value: (_, value) => spoken(value) });
    series.push({ ...look, label: `${one.name} low`, width: 0 }, { ...look, label: `${one.name} high`, width: 0 });
    bands.push({ series: [3 * n + 3, 3 * n + 2], fill: tint(one.color) + "2e" });
  });
  const look = { stroke: color("--ink"), grid: { stroke: color("--line"), width: 1 }, ticks: { show: false } };
  const size = (v) => (v >= 1e6 ? `${v / 1e6}M` : v >= 1e3 ? `${v / 1e3}k` : `${v}`);
  place.replaceChildren();
  const chart = new uPlot(
    {
      width: place.clientWidth,
      height: 300,
      scales: { x: { time: false } },
      cursor: { drag: { x: true, y: true } },
      series,
      bands,
      axes: [
        { ...look, label: timed ? panel.clock : panel.axis, values: (_, v) => v.map(size) },
        { ...look, label: panel.measure, size: 60 },
      ],
    },
    tables.length ? uPlot.join(tables) : [[]],
    place,
  );
  $$(".u-legend .u-series", place).forEach((row, n) => (row.hidden = n > 0 && (n - 1) % 3 !== 0));
  return chart;
}

function redraw() {
  charts.splice(0).forEach((chart) => chart.destroy());
  for (const place of $$(".chart")) charts.push(draw(place));
}

function toggle(name) {
  if (hidden.has(name)) hidden.delete(name);
  else hidden.add(name);
  for (const button of $$("button.method")) button.setAttribute("aria-pressed", String(!hidden.has(button.dataset.method)));
  filter();
  redraw();
}
for (const button of $$("button.method")) button.addEventListener("click", () => toggle(button.dataset.method));
axis.addEventListener("change", redraw);
dark.addEventListener("change", redraw);
let width = 0;
new ResizeObserver(() => {
  if (document.body.clientWidth !== width) {
    width = document.body.clientWidth;
    redraw();
  }
}).observe(document.body);

// Films stand still until they are asked to play, and can be stopped: nobody has to see anything move.
for (const button of $$("button.play")) {
  const image = button.parentElement.querySelector("img");
  const still = image.src;
  const title = button.getAttribute("aria-label").replace("Play: ", "");
  button.hidden = false;
  button.addEventListener("click", () => {
    const playing = image.src !== still;
    image.src = playing ? still : image.dataset.film;
    button.textContent = playing ? "▶ Play" : "■ Stop";
    button.setAttribute("aria-label", `${playing ? "Play" : "Stop"}: ${title}`);
  });
}

// A link to the runs behind a number opens the list that it leads to.
function open() {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const details = target && target.closest("details");
  if (details) {
    details.open = true;
    target.scrollIntoView();
  }
}
window.addEventListener("hashchange", open);
open();
filter();
