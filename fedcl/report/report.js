"use strict";

// Numbers: a figure's CSV is what its link downloads, what its table shows, and what a switch draws it from.
function parse(csv) {
  const rows = [[]];
  const field = /("(?:[^"]|"")*"|[^,\n]*)(,|\n|$)/y;
  while (field.lastIndex < csv.length) {
    const [, value, end] = field.exec(csv);
    rows.at(-1).push(value.startsWith('"') ? value.slice(1, -1).replaceAll('""', '"') : value);
    if (end === "\n") rows.push([]);
  }
  if (!rows.at(-1).length) rows.pop();
  return rows;
}

const parsed = new Map();
function numbers(figure) {
  if (!parsed.has(figure)) {
    const address = figure.querySelector("a[download]").href;
    const [head, ...rows] = parse(decodeURIComponent(address.slice(address.indexOf(",") + 1)));
    parsed.set(figure, { head, rows });
  }
  return parsed.get(figure);
}

// What a figure shows now: of one that can be switched, the rows of the chosen view without the view's column.
function view(figure) {
  const { head, rows } = numbers(figure);
  if (!figure.dataset.switch) return { head, rows };
  const names = [...new Set(rows.map((row) => row[0]))];
  const chosen = names[choices[figure.dataset.switch]];
  return { head: head.slice(1), rows: rows.filter((row) => row[0] === chosen).map((row) => row.slice(1)) };
}

const value = (field) => (field === "" || field === undefined ? NaN : Number(field));

// Drawing, as svg.py, charts.py, bars.py and heat.py do it.
const escape = (words) => words.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
const num = (v) => v.toFixed(1).replace(/\.0$/, "");
const short = (label) => (label.length <= 18 ? label : label.slice(0, 17).trimEnd() + "…");
const percent = (v, digits = 0) => `${(100 * v).toFixed(digits)} %`;
const line = (x1, y1, x2, y2, kind) =>
  `<line x1="${num(x1)}" y1="${num(y1)}" x2="${num(x2)}" y2="${num(y2)}" class="${kind}"/>`;
const text = (x, y, words, kind, anchor) =>
  `<text x="${num(x)}" y="${num(y)}" class="${kind}"${anchor ? ` text-anchor="${anchor}"` : ""}>${escape(words)}</text>`;
const hint = (words) => `<title>${escape(words)}</title>`;

function accuracies(values) {
  const low = Math.min(0.9, Math.floor(Math.min(...values.filter(isFinite), 1) * 20 + 1e-9) / 20);
  return values.some(isFinite) ? Math.max(low, 0) : 0;
}

function ticks(low, high) {
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((k) => power * k).find((s) => s >= rough * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k <= Math.floor(high / step + 1e-9); k++) found.push(k * step);
  return found;
}

function spread(wanted, gap, low, high) {
  const placed = [];
  for (const at of wanted) placed.push(Math.max(at, placed.length ? placed.at(-1) + gap : low));
  let ceiling = high;
  for (let i = placed.length - 1; i >= 0; i--) {
    placed[i] = Math.min(placed[i], ceiling);
    ceiling = placed[i] - gap;
  }
  return placed;
}

function curves(svg, rows) {
  const [left, top, right, bottom] = svg.dataset.plot.split(" ").map(Number);
  const [, from, to, title] = /^(\S+) (\S+) (.*)$/.exec(svg.dataset.x);
  const across = (v) => left + ((v - from) / (to - from || 1)) * (right - left);
  const groups = [...svg.querySelectorAll(".series")];
  const values = groups.map((_, k) => rows.map((row) => value(row[k + 1])));
  const low = accuracies(values.flat());
  const up = (v) => bottom + ((v - low) / (1 - low)) * (top - bottom);
  svg.querySelector(".scale").innerHTML = ticks(low, 1)
    .map((v) => line(left, up(v), right, up(v), "grid") + text(left - 8, up(v) + 4, percent(v), "tick", "end"))
    .join("");
  const named = groups.map((g, k) => {
    const last = values[k].findLastIndex(isFinite);
    return { g, k, label: g.dataset.name, quiet: g.classList.contains("quiet"), last };
  });
  const late = named.filter((n) => !n.quiet && n.last >= 0 && across(value(rows[n.last][0])) >= right - 60);
  late.sort((a, b) => up(values[a.k][a.last]) - up(values[b.k][b.last]));
  const gap = Math.min(13, (bottom - top + 12) / Math.max(late.length, 1));
  const heights = spread(late.map((n) => up(values[n.k][n.last])), gap, top - 4, bottom + 4);
  for (const { g, k, label, quiet, last } of named) {
    let steps = "", pen = "M", dots = "", name = "";
    rows.forEach((row, i) => {
      const x = across(value(row[0])), v = values[k][i];
      if (isFinite(v)) {
        steps += `${pen}${num(x)} ${num(up(v))}`;
        const about = hint(`${label}, ${title} ${row[0]}: ${percent(v)}`);
        dots += `<circle cx="${num(x)}" cy="${num(up(v))}" r="3" class="dot">${about}</circle>`;
      }
      pen = isFinite(v) ? "L" : "M";
    });
    if (last >= 0 && !quiet) {
      const x = across(value(rows[last][0])), y = up(values[k][last]), place = late.findIndex((n) => n.k === k);
      name = place < 0
        ? text(x + 6, y + 15, short(label), "name")
        : line(x + 4, y, right + 12, heights[place], "leader") +
          `<g>${hint(label)}${text(right + 16, heights[place] + 4, short(label), "name")}</g>`;
    }
    const path = steps.includes("L") ? `<path d="${steps}" class="line"/>` : "";
    g.innerHTML = path + (quiet || rows.length > 24 ? "" : dots) + name;
  }
}

function ranges(svg, rows, head) {
  const [left, top, right, bottom] = svg.dataset.plot.split(" ").map(Number);
  const values = rows.map((row) => row.slice(1).map(value));
  const low = accuracies(values.flat());
  const across = (v) => left + ((v - low) / (1 - low)) * (right - left);
  svg.querySelector(".scale").innerHTML = ticks(low, 1)
    .map((v) => line(across(v), top - 4, across(v), bottom, "grid") +
      text(across(v), bottom + 16, percent(v), "tick", "middle"))
    .join("");
  svg.querySelectorAll(".row").forEach((g, r) => {
    const y = top + 20 * (r + 0.5);
    const known = values[r].map((v, k) => [k, v]).filter(([, v]) => isFinite(v));
    const steps = known.slice(1).map(([k, v], i) => line(across(known[i][1]), y, across(v), y, `range r${k}`));
    const shapes = known.toReversed().map(([k, v]) => {
      const about = hint(`${rows[r][0]}, ${head[k + 1]}: ${percent(v, 1)}`);
      return k === 1
        ? `<path d="M${num(across(v))} ${num(y - 6)}v12" class="shape s1">${about}</path>`
        : `<circle cx="${num(across(v))}" cy="${num(y)}" r="4.2" class="shape s${k}">${about}</circle>`;
    });
    const words = known.length > 1 ? text(480, y + 4, points(known.at(-1)[1] - known[0][1]), "tick", "end") : "";
    g.innerHTML = steps.join("") + shapes.join("") + words;
  });
}

function points(difference) {
  const words = (100 * difference).toFixed(1);
  return Number(words) === 0 ? "0.0" : (difference > 0 ? "+" : "") + words.replace("-", "−");
}

function heat(svg, rows, head) {
  const cells = svg.querySelectorAll("rect[data-cell]"), words = svg.querySelectorAll("text.value");
  const digits = Number(svg.dataset.digits);
  rows.flatMap((row) => row.slice(1)).forEach((field, i) => {
    const v = value(field), known = isFinite(v);
    cells[i].classList.toggle("void", !known);
    if (known) cells[i].setAttribute("fill-opacity", (0.03 + 0.9 * v).toFixed(2));
    else cells[i].removeAttribute("fill-opacity");
    const title = cells[i].querySelector("title");
    title.textContent = title.textContent.replace(/: [^:]*$/, known ? `: ${percent(v, 1)}` : ": not defined");
    words[i].textContent = known ? (100 * v).toFixed(digits) : "–";
    words[i].classList.toggle("over", known && v > 0.58);
  });
}

// Switches: one choice for the page, with a control in every section that has a figure for it.
function variants(svg) {
  const figure = svg.closest("figure");
  figure.querySelectorAll(".variant").forEach((part, k) => (part.hidden = k !== choices[figure.dataset.switch]));
}

const draw = { curves, ranges, heat, variants };
const choices = {};
const drawn = new Map();
const selects = [...document.querySelectorAll("select[data-switch]")];

function show(name) {
  for (const select of selects) if (select.dataset.switch === name) select.selectedIndex = choices[name];
  const one = selects.find((s) => s.dataset.switch === name);
  const label = one.options[choices[name]].text, what = `${one.labels[0].textContent}: ${label}`;
  for (const figure of document.querySelectorAll(`figure[data-switch="${CSS.escape(name)}"]`)) {
    if ((drawn.get(figure) ?? 0) !== choices[name]) {
      const { head, rows } = view(figure);
      draw[figure.dataset.kind](figure.querySelector("svg"), rows, head);
      drawn.set(figure, choices[name]);
      fill(figure);
    }
    const shown = figure.querySelector(".shown");
    shown.textContent = what;
    shown.hidden = choices[name] === 0;
  }
  for (const figure of document.querySelectorAll(`figure[data-marks="${CSS.escape(name)}"]`)) {
    let any = false;
    for (const g of figure.querySelectorAll(".series")) {
      const chosen = choices[name] > 0 && g.dataset.name === label;
      g.classList.toggle("chosen", chosen);
      any ||= chosen;
      if (chosen && !figure.dataset.kind) g.parentNode.append(g); // over the others; what is redrawn keeps its order
    }
    figure.querySelector("svg").classList.toggle("choosing", any);
  }
  return what;
}

for (const select of selects) {
  const name = select.dataset.switch;
  select.closest(".control").hidden = false;
  choices[name] = Math.max(choices[name] ?? 0, select.selectedIndex); // a browser may restore the choice on reload
  select.addEventListener("change", () => {
    choices[name] = select.selectedIndex;
    document.getElementById("said").textContent = `Figures show ${show(name)}`;
  });
}
for (const name of Object.keys(choices)) show(name);

// A table of each figure's numbers, made when it is asked for.
for (const figure of document.querySelectorAll("figure")) {
  const details = document.createElement("details");
  details.innerHTML = "<summary>Table</summary>";
  details.addEventListener("toggle", () => fill(figure));
  figure.querySelector(".numbers").prepend(details);
}

function fill(figure) {
  const details = figure.querySelector(".numbers details");
  if (!details?.open) return;
  const { head, rows } = view(figure);
  const first = head.slice(1).every((_, k) => rows.some((row) => row[k + 1] === "" || isFinite(row[k + 1]))) ? 1 : 2;
  const table = document.createElement("table");
  table.className = "sortable";
  table.createCaption().textContent = `Numbers of: ${figure.querySelector("h3").textContent}`;
  const top = table.createTHead().insertRow();
  for (const words of head) {
    const th = document.createElement("th");
    th.scope = "col";
    th.textContent = words;
    top.append(th);
  }
  const body = table.createTBody();
  for (const row of rows) {
    const tr = body.insertRow();
    row.forEach((field, k) => {
      const cell = document.createElement(k ? "td" : "th");
      if (!k) cell.scope = "row";
      if (k && k < first) cell.className = "words";
      cell.dataset.key = field;
      cell.textContent = field === "" ? "–" : field;
      tr.append(cell);
    });
  }
  const frame = document.createElement("div");
  frame.className = "scroll";
  frame.tabIndex = 0;
  frame.append(table);
  details.replaceChildren(details.querySelector("summary"), frame);
  sortable(table);
}

// Sortable tables: a button in each column head.
function sortable(table) {
  table.querySelectorAll("thead th").forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => sort(table, head, column));
  });
}

function sort(table, head, column) {
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const body = table.tBodies[0];
  const key = (row) => row.cells[column].dataset.key;
  const order = (a, b) => (isNaN(a) || isNaN(b) ? a.localeCompare(b, undefined, { numeric: true }) : a - b);
  const rows = [...body.rows].sort((a, b) => order(key(a), key(b)));
  body.append(...(down ? rows.reverse() : rows));
}

for (const table of document.querySelectorAll("table.sortable")) sortable(table);

// On paper everything that was written is open; tables of figures stay as the reader left them.
addEventListener("beforeprint", () => document.querySelectorAll("details:not(.numbers details)").forEach((d) => (d.open = true)));
