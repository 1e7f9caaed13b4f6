"use strict";
// Sorts a table by a click on a heading and hides the rows that lack a word of the filter.

for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  const original = [...body.rows];
  const tools = document.querySelector(`.tools[data-for="${table.id}"]`);

  headings.forEach((heading, column) => {
    if (heading.classList.contains("number")) {
      original.forEach((row) => row.cells[column].classList.add("number"));
    }
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => sort(heading, column));
  });

  function sort(heading, column) {
    const numeric = heading.classList.contains("number");
    // figures are most often asked for from the best down, names from A to Z; a second click turns the order round
    const first = numeric ? "descending" : "ascending";
    const second = numeric ? "ascending" : "descending";
    const order = heading.getAttribute("aria-sort") === first ? second : first;
    headings.forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const key = (row) => {
      const cell = row.cells[column];
      const text = cell.dataset.value ?? cell.textContent.trim();
      return numeric ? (text === "" ? NaN : Number(text)) : text;
    };
    const missing = (value) => (numeric ? Number.isNaN(value) : value === "");
    const compare = (a, b) => (numeric ? a - b : a.localeCompare(b, "en", { numeric: true }));
    const rows = original.map((row) => [key(row), row]);
    rows.sort(([a], [b]) => {
      if (missing(a) || missing(b)) return missing(a) - missing(b); // rows without a value stay last
      return sign * compare(a, b);
    });
    body.append(...rows.map(([, row]) => row));
  }

  if (!tools) continue;
  const [input, select, output] = ["input", "select", "output"].map((name) => tools.querySelector(name));
  function filter() {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const kind = select ? select.value : "";
    table.dataset.show = kind;
    let shown = 0;
    for (const row of original) {
      const text = [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase();
      row.hidden = !words.every((word) => text.includes(word)) || (kind !== "" && !row.classList.contains(kind));
      shown += !row.hidden;
    }
    output.textContent = `${shown} of ${original.length} rows`;
  }
  input.addEventListener("input", filter);
  if (select) select.addEventListener("change", filter);
  tools.hidden = original.length < 4;
  filter();
}

addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
});
