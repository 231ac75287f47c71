"use strict";
for (const table of document.querySelectorAll("table.sorts")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === (head.classList.contains("n") ? "descending" : "ascending");
      const falling = head.classList.contains("n") ? !down : down;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
      const compare = (a, b) => {
        const [x, y] = [value(a), value(b)];
        const order = head.classList.contains("n") ? (parseFloat(x) || 0) - (parseFloat(y) || 0) : x.localeCompare(y, undefined, { numeric: true });
        return falling ? -order : order;
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
    });
  });
}
const folds = [...document.querySelectorAll("details")];
const fold = document.getElementById("fold");
if (fold) {
  if (folds.length < 2) fold.hidden = true;
  fold.addEventListener("click", () => {
    const open = !folds.every((one) => one.open);
    folds.forEach((one) => { one.open = open; });
    fold.textContent = open ? "Fold all" : "Unfold all";
  });
}
let shut = [];
addEventListener("beforeprint", () => { shut = folds.filter((one) => !one.open); shut.forEach((one) => { one.open = true; }); });
addEventListener("afterprint", () => { shut.forEach((one) => { one.open = false; }); });
