document.documentElement.classList.toggle("dark", matchMedia("(prefers-color-scheme: dark)").matches);

// what a number is shown as: rounded, with half the width of the interval whose ends stand in the next two columns
function shown(kind, hasInterval) {
  return (value, type, row, meta) => {
    if (type !== "display" && type !== "filter") return value;
    if (Number.isNaN(value)) return "";
    if (kind === "count") return String(Number(value.toPrecision(6)));
    const half = hasInterval ? (row[meta.col + 2] - row[meta.col + 1]) / 2 : NaN;
    const sign = kind === "ours - paper" && value > 0 ? "+" : "";
    return sign + value.toFixed(3) + (Number.isNaN(half) ? "" : ` ± ${half.toFixed(3)}`);
  };
}

// the number to the digit in a tooltip, and the colour of a difference
function explained(hasInterval, tolerance) {
  return (cell, value, row, line, column) => {
    if (Number.isNaN(value)) return;
    const ends = hasInterval ? row.slice(column + 1, column + 3) : [NaN];
    cell.title = value + (ends.some(Number.isNaN) ? "" : ` (${ends.map((end) => end.toFixed(4)).join(" to ")})`);
    if (tolerance !== null) cell.classList.add(Math.abs(value) <= tolerance + 1e-9 ? "near" : value > 0 ? "above" : "below");
  };
}

function marked(cell, value) { cell.classList.add(value); }

// a type of column whose rows without a number come last, whichever way it is sorted
function numbersLast() {
  const order = $.fn.dataTable.ext.type.order;
  const compare = (a, b) => Number.isNaN(a) || Number.isNaN(b) ? Number.isNaN(a) - Number.isNaN(b) : null;
  order["numbers-last-asc"] = (a, b) => compare(a, b) ?? a - b;
  order["numbers-last-desc"] = (a, b) => compare(a, b) ?? b - a;
  return "numbers-last";
}

addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));

// the name of a run with links to its folder, its panels and its log
function linked(cell) {
  const value = cell.textContent, places = Object.hasOwn(LINKS, value) ? LINKS[value] : null;
  if (!places) return;
  const links = Object.entries(places).map(([part, place]) => {
    const link = Object.assign(document.createElement("a"), { href: place, textContent: part === "run" ? value : part });
    if (part !== "run") link.className = "part";
    return link;
  });
  cell.replaceChildren(...links);
}
