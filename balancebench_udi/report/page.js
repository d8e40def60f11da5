"use strict";
// Sorts a table by the column whose head is pressed: numbers high to low first, text from a to z, missing values last.
const order = new Intl.Collator("en", { numeric: true });

function key(cell) {
  if (cell.dataset.v !== undefined) return Number(cell.dataset.v);
  return cell.querySelector(".none") ? null : cell.textContent.trim();
}

function sort(table, column, head) {
  const direction = head.getAttribute("aria-sort");
  const numeric = head.classList.contains("num");
  const next = direction ? (direction === "ascending" ? "descending" : "ascending") : numeric ? "descending" : "ascending";
  const sign = next === "ascending" ? 1 : -1;
  const rows = [...table.tBodies[0].rows].map((row) => ({ row, key: key(row.cells[column]) }));
  rows.sort((a, b) => {
    if (a.key === null || b.key === null) return (a.key === null) - (b.key === null);
    return sign * (numeric ? a.key - b.key : order.compare(a.key, b.key));
  });
  table.tBodies[0].append(...rows.map((entry) => entry.row));
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", next);
}

for (const table of document.querySelectorAll("table[data-sort]")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = head.querySelector("button");
    button.disabled = false;
    button.addEventListener("click", () => sort(table, column, head));
  });
}
