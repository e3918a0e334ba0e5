// On a phone the rows of a table stand as blocks, each cell under the head of its column,
// if there are three or more columns of words, or words too long to stand beside others.
// Without this script they are tables as ever.
for (const table of document.querySelectorAll(".md-typeset table:not([class])")) {
  const heads = [...table.querySelectorAll("th")].map((head) => head.textContent.trim());
  const cells = [...table.querySelectorAll("td")];
  const letters = cells.reduce((sum, cell) => sum + cell.textContent.length, 0);
  const words = heads.length > 2 && letters / cells.length > 15; // and no figures
  const long = heads.length === 2 && cells.some((cell) => /\S{24}/.test(cell.textContent));
  if (!words && !long) continue;
  table.dataset.blocks = "";
  for (const cell of cells) cell.dataset.head = heads[cell.cellIndex];
}
