"use strict";

// The hospital switch: the heat maps' cells are in row-major order, as the views' values are.
const data = JSON.parse(document.getElementById("views").textContent);
const select = document.getElementById("hospital");
const maps = [...document.querySelectorAll("figure[data-switch]")].map((figure) => ({
  how: figure.dataset.switch,
  cells: [...figure.querySelectorAll("rect[data-cell]")],
  values: [...figure.querySelectorAll("text.value")],
}));

function show(view) {
  for (const { how, cells, values } of maps) {
    data.views[view][how].forEach((tenths, i) => {
      const known = tenths >= 0;
      const words = known ? (tenths / 10).toFixed(data.digits) : "–";
      cells[i].classList.toggle("void", !known);
      if (known) cells[i].setAttribute("fill-opacity", (0.03 + 0.0009 * tenths).toFixed(2));
      else cells[i].removeAttribute("fill-opacity");
      const title = cells[i].querySelector("title");
      title.textContent = title.textContent.replace(/: [^:]*$/, known ? `: ${(tenths / 10).toFixed(1)} %` : ": not defined");
      values[i].textContent = words;
      values[i].classList.toggle("over", tenths > 580);
    });
  }
}

if (data.views.length > 2) {
  select.closest(".control").hidden = false;
  select.addEventListener("change", () => show(select.selectedIndex));
  show(select.selectedIndex); // a browser may restore the choice on reload
}

// Sortable tables: a button in each column head.
for (const table of document.querySelectorAll("table.sortable")) {
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

// On paper everything is open.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => (d.open = true)));
