// On a phone the rows of a table with three or more columns of words stand as blocks, each
// cell under the head of its column. Without this script they are tables as ever.
for (const table of document.querySelectorAll(".md-typeset table:not([class])")) {
  const heads = [...table.querySelectorAll("th")].map((head) => head.textContent.trim());
  const cells = [...table.querySelectorAll("td")];
  const letters = cells.reduce((sum, cell) => sum + cell.textContent.length, 0);
  if (heads.length < 3 || letters / cells.length < 15) continue; // figures
  table.dataset.blocks = "";
  for (const cell of cells) cell.dataset.head = heads[cell.cellIndex];
}
