"use strict";
// A click on a column's name sorts the table by it, a second click the other way. Empty cells stay at the end.
const keyOf = (row, column) => {
  const cell = row.cells[column];
  return cell.dataset.sort === undefined ? cell.textContent.trim() : Number(cell.dataset.sort);
};
const compare = (a, b) => {
  if (typeof a === "number" && typeof b === "number") return a - b;
  if (typeof a === "number" || typeof b === "number") return typeof a === "number" ? -1 : 1;
  return a.localeCompare(b, undefined, { numeric: true });
};
const sortBy = (header) => {
  const table = header.closest("table"), body = table.tBodies[0], column = header.cellIndex;
  const down = header.getAttribute("aria-sort") === "ascending";
  const keyed = Array.from(body.rows, (row) => ({ row, key: keyOf(row, column) }));
  const full = keyed.filter(({ key }) => key !== ""), empty = keyed.filter(({ key }) => key === "");
  full.sort((a, b) => (down ? compare(b.key, a.key) : compare(a.key, b.key)));
  body.append(...full.concat(empty).map(({ row }) => row));
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", down ? "descending" : "ascending");
};
for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => sortBy(button.closest("th")));
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
