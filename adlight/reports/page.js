document.documentElement.classList.toggle("dark", matchMedia("(prefers-color-scheme: dark)").matches);

// format a number: rounded, with half the width of the interval whose ends are in the next two columns
function formatNumber(kind, hasInterval) {
  return (value, type, row, meta) => {
    if (type !== "display" && type !== "filter") return value;
    if (Number.isNaN(value)) return "";
    if (kind === "count") return String(Number(value.toPrecision(6)));
    const half = hasInterval ? (row[meta.col + 2] - row[meta.col + 1]) / 2 : NaN;
    const sign = kind === "ours - paper" && value > 0 ? "+" : "";
    return sign + value.toFixed(3) + (half > 0 ? ` ± ${half.toFixed(3)}` : "");
  };
}

// show the exact number in a tooltip, and colour a difference
function explainNumber(hasInterval, tolerance) {
  return (cell, value, row, line, column) => {
    if (Number.isNaN(value)) return;
    const ends = hasInterval ? row.slice(column + 1, column + 3) : [NaN];
    cell.title = value + (ends.some(Number.isNaN) ? "" : ` (${ends.map((end) => end.toFixed(4)).join(" to ")})`);
    if (tolerance !== null) cell.classList.add(Math.abs(value) <= tolerance + 1e-9 ? "near" : value > 0 ? "above" : "below");
  };
}

function markStatus(cell, value) { cell.classList.add(value); }

// define a column type whose rows without a number come last in either sort order
function sortMissingLast() {
  const order = $.fn.dataTable.ext.type.order;
  const compare = (a, b) => Number.isNaN(a) || Number.isNaN(b) ? Number.isNaN(a) - Number.isNaN(b) : null;
  order["missing-last-asc"] = (a, b) => compare(a, b) ?? a - b;
  order["missing-last-desc"] = (a, b) => compare(a, b) ?? b - a;
  return "missing-last";
}

addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));

// link the name of a run to its folder, panels and log
function linkRun(cell) {
  const name = cell.textContent, places = Object.hasOwn(LINKS, name) ? LINKS[name] : null;
  if (!places) return;
  const links = Object.entries(places).map(([part, place]) => {
    const link = Object.assign(document.createElement("a"), { href: place, textContent: part === "run" ? name : part });
    if (part !== "run") link.className = "part";
    return link;
  });
  cell.replaceChildren(...links);
}
