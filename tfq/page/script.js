// Sorts the table of layers by a click on a heading, and hides the rows a search does not match.
const table = document.getElementById("layers");
const body = table.tBodies[0];
const headings = [...table.tHead.rows[0].cells];
const value = (row, column) => row.cells[column].dataset.v ?? row.cells[column].textContent;

headings.forEach((heading, column) => {
  heading.firstChild.addEventListener("click", () => {
    const numeric = heading.classList.contains("n");
    const was = heading.getAttribute("aria-sort");
    // Numbers first from large to small: the largest errors are what one looks for.
    const descending = was ? was === "ascending" : numeric;
    headings.forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const sign = descending ? -1 : 1;
    const compare = numeric
      ? (a, b) => sign * (Number(value(a, column)) - Number(value(b, column)))
      : (a, b) => sign * value(a, column).localeCompare(value(b, column));
    body.append(...[...body.rows].sort(compare));
  });
});

document.getElementById("search").addEventListener("input", (event) => {
  const words = event.target.value.toLowerCase().split(/\s+/);
  let shown = 0;
  for (const row of body.rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
    shown += !row.hidden;
  }
  document.getElementById("shown").textContent = `${shown} of ${body.rows.length} layers`;
});
