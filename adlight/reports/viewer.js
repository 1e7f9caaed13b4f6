"use strict";
(() => {
  const data = JSON.parse(document.getElementById("viewer-data").textContent);
  const root = document.getElementById("viewer"), form = root.querySelector("form.choices").elements;
  const dialog = root.querySelector("dialog"), tools = dialog.querySelector("form").elements;
  const { images } = data, STEP = 100, PAGE = 60; // steps of the slider per standard deviation; images shown at once
  let shown = [], limit = PAGE, open = -1, points = [];

  for (const run of data.runs) {
    run.row = new Map(run.image.map((image, row) => [image, row]));
    run.pictures = new Set(run.pictures);
    run.masks = new Set(run.masks);
    run.unit = data.categories.map((_, category) => deviation(run, category)); // by category
  }

  function deviation(run, category) {
    const scores = run.score.filter((_, row) => images.category[run.image[row]] === category);
    const mean = scores.reduce((sum, score) => sum + score, 0) / scores.length;
    return Math.sqrt(scores.reduce((sum, score) => sum + (score - mean) ** 2, 0) / scores.length) || 1;
  }

  const run = () => data.runs[form.run.value];
  const other = () => (form.other.value === "" ? null : data.runs[form.other.value]);
  const shiftOf = (which) => (which === run() ? form.shift.value / STEP : 0);

  // the score's distance from the calibrated threshold, in standard deviations of the category's scores
  function excess(which, row) {
    const category = images.category[which.image[row]];
    return (which.score[row] - which.threshold[category]) / which.unit[category];
  }

  // compare exact numbers while the slider is at the calibrated threshold, so that rounding changes no verdict
  function isCalled(which, row) {
    const category = images.category[which.image[row]], shift = shiftOf(which);
    return shift ? excess(which, row) > shift : which.score[row] > which.threshold[category];
  }

  function describe(which, row) {
    const label = images.label[which.image[row]], called = isCalled(which, row);
    const error = called && !label ? "alarm" : !called && label ? "miss" : "";
    return { row, image: which.image[row], label, called, error, above: excess(which, row) - shiftOf(which) };
  }

  const inCategory = (image) => form.category.value === "" || images.category[image] === Number(form.category.value);
  const flipped = (item) => other()?.row.has(item.image) && isCalled(other(), other().row.get(item.image)) !== item.called;

  function matches(item) {
    const wanted = form.error.value;
    if (form.defect.value !== "" && images.defect[item.image] !== Number(form.defect.value)) return false;
    if (form.verdict.value !== "" && Number(item.called) !== Number(form.verdict.value)) return false;
    if (wanted === "flipped") return flipped(item);
    return wanted === "" || (wanted === "right" ? !item.error : wanted === "wrong" ? item.error : item.error === wanted);
  }

  const score = (which, row) => which.score[row];
  const ORDERS = {
    high: (a, b) => b.above - a.above, // not by score, as categories differ in scale
    low: (a, b) => a.above - b.above,
    worst: (a, b) => Boolean(b.error) - Boolean(a.error) || Math.abs(b.above) - Math.abs(a.above),
    near: (a, b) => Math.abs(a.above) - Math.abs(b.above),
  };

  function update() {
    const all = run().image.map((_, row) => row).filter((row) => inCategory(run().image[row])).map((row) => describe(run(), row));
    shown = all.filter(matches).sort(ORDERS[form.order.value]);
    count(all);
    compare(all);
    list();
  }

  function count(all) {
    const number = (test) => all.filter(test).length;
    const found = number((item) => item.label && item.called), missed = number((item) => item.error === "miss");
    const alarms = number((item) => item.error === "alarm"), passed = number((item) => !item.label && !item.called);
    for (const [name, value] of Object.entries({ found, missed, alarms, passed }))
      root.querySelector(`[data-count=${name}]`).textContent = value;
    const share = (part, whole) => (whole ? (part / whole).toFixed(3) : "-");
    root.querySelector(".matrix tfoot td").textContent =
      `precision ${found + missed ? share(found, found + alarms) : "-"}, recall ${share(found, found + missed)}, false alarm rate ${share(alarms, alarms + passed)}`;
    const where = form.category.value === "" ? "all categories" : data.categories[form.category.value];
    root.querySelector(".matrix caption").textContent = `${run().name}: ${all.length} images, ${where}`;
    form.threshold.value = threshold();
  }

  function threshold() {
    const shift = shiftOf(run()), known = data.categories.length === 1 ? 0 : form.category.value;
    if (known === "") return shift ? `each category's own ${shift > 0 ? "+" : "-"} ${Math.abs(shift).toFixed(2)} deviations` : "as calibrated";
    const calibrated = run().threshold[known], now = calibrated + shift * run().unit[known];
    return now.toPrecision(5) + (shift ? ` (calibrated ${calibrated.toPrecision(5)})` : " as calibrated");
  }

  const picture = (which, row, kind = "") => `${which.gallery}/${row}${kind}.webp`;
  const text = (item) => `${data.defects[images.defect[item.image]]}, ${item.error === "alarm" ? "false alarm" : item.error || "right"}`;

  function list() {
    const pictured = shown.filter((item) => images.thumb[item.image] || run().pictures.has(item.row));
    root.querySelector("[role=status]").textContent = `${shown.length} images` +
      (pictured.length < shown.length ? `, ${pictured.length} of them with a picture: a run keeps an even sample and its worst errors` : "");
    root.querySelector(".grid").replaceChildren(...shown.slice(0, limit).map(tile));
    root.querySelector("[name=more]").hidden = shown.length <= limit;
  }

  function tile(item, at) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = `tile ${item.error}`;
    button.title = images.path[item.image];
    const source = images.thumb[item.image] ?? (run().pictures.has(item.row) ? picture(run(), item.row) : "");
    const image = document.createElement(source ? "img" : "i");
    if (source) Object.assign(image, { src: source, alt: images.path[item.image], loading: "lazy" });
    else image.textContent = "no picture";
    const words = document.createElement("span");
    words.textContent = `${score(run(), item.row).toPrecision(4)} ${text(item)}`;
    button.append(image, words);
    button.onclick = () => show(at);
    return button;
  }

  function pane(which, row) {
    const figure = document.createElement("figure"), stack = document.createElement("div"), item = describe(which, row);
    const caption = document.createElement("figcaption");
    const at = which.threshold[images.category[item.image]] + shiftOf(which) * which.unit[images.category[item.image]];
    caption.textContent = `${which.name}: ${item.called ? "anomalous" : "normal"}, score ${score(which, row).toPrecision(5)}, threshold ${at.toPrecision(5)}`;
    stack.className = "stack";
    const kinds = which.pictures.has(row) ? ["", ".map", ...(which.masks.has(row) ? [".mask"] : [])] : [];
    for (const kind of kinds) {
      const image = document.createElement("img");
      Object.assign(image, { src: picture(which, row, kind), alt: kind ? kind.slice(1) : "image", className: kind.slice(1) || "image" });
      image.onload = () => image.naturalWidth < 64 && image.classList.add("coarse");
      image.onerror = () => caption.append(" (picture not found: keep this page together with the runs' folders)");
      stack.append(image);
    }
    if (!kinds.length) stack.textContent = "no picture of this image was kept";
    figure.append(stack, caption);
    if (kinds.length) {
      const link = document.createElement("a");
      Object.assign(link, { href: picture(which, row), textContent: "open the picture", target: "_blank" });
      figure.append(link);
    }
    return figure;
  }

  function show(at) {
    const item = shown[at];
    if (!item) return;
    open = at;
    const others = other()?.row.has(item.image) ? [pane(other(), other().row.get(item.image))] : [];
    dialog.querySelector(".title").textContent = `${images.path[item.image]}: ${data.categories[images.category[item.image]]}, ${data.defects[images.defect[item.image]]}`;
    dialog.querySelector(".panes").replaceChildren(pane(run(), item.row), ...others);
    blend();
    if (!dialog.open) dialog.showModal();
  }

  function blend() {
    dialog.style.setProperty("--heat", tools.opacity.value / 100);
    dialog.style.setProperty("--mask", tools.mask.checked ? 0.6 : 0);
  }

  function compare(all) {
    const figure = root.querySelector(".scatter"), canvas = figure.querySelector("canvas"), pen = canvas.getContext("2d");
    figure.hidden = !other();
    if (!other()) return;
    const pairs = all.filter((item) => other().row.has(item.image))
      .map((item) => ({ item, x: excess(run(), item.row), y: excess(other(), other().row.get(item.image)), turned: flipped(item) }));
    const side = canvas.width, range = (key) => [Math.min(0, ...pairs.map((pair) => pair[key])), Math.max(0, ...pairs.map((pair) => pair[key]))];
    const [left, right] = range("x"), [low, high] = range("y"), gap = 14;
    const across = (x) => gap + ((x - left) / (right - left || 1)) * (side - 2 * gap);
    const down = (y) => side - gap - ((y - low) / (high - low || 1)) * (side - 2 * gap);
    pen.clearRect(0, 0, side, side);
    pen.strokeStyle = "#8c8c8c";
    pen.strokeRect(1, 1, side - 2, side - 2);
    pen.setLineDash([6, 6]);
    const lines = [[across(shiftOf(run())), 0, across(shiftOf(run())), side], [0, down(0), side, down(0)]];
    for (const [x, y, toX, toY] of lines) { pen.beginPath(); pen.moveTo(x, y); pen.lineTo(toX, toY); pen.stroke(); }
    pen.setLineDash([]);
    points = pairs.map(({ item, x, y, turned }) => ({ item, x: across(x), y: down(y), turned }));
    for (const { item, x, y, turned } of points) {
      pen.fillStyle = pen.strokeStyle = item.label ? "#d55e00" : "#3b8fd0";
      pen.globalAlpha = turned ? 1 : 0.45;
      pen.beginPath(); pen.arc(x, y, turned ? 7 : 5, 0, 7); pen.fill();
    }
    pen.globalAlpha = 1;
    const better = pairs.filter((pair) => pair.turned && !pair.item.error).length, turned = pairs.filter((pair) => pair.turned).length;
    figure.querySelector("figcaption").textContent =
      `Scores of ${pairs.length} images (blue normal, orange anomalous; above the threshold to the right: ${run().name}, above: ${other().name}). ` +
      `${turned} verdicts differ: ${better} right in ${run().name}, ${turned - better} right in ${other().name}.`;
  }

  function choose(event) {
    const scale = root.querySelector("canvas").getBoundingClientRect(), ratio = 640 / scale.width;
    const x = (event.clientX - scale.left) * ratio, y = (event.clientY - scale.top) * ratio;
    const distance = (point) => (point.x - x) ** 2 + (point.y - y) ** 2;
    const nearest = points.reduce((best, point) => (distance(point) < distance(best) ? point : best), points[0]);
    if (!nearest) return;
    if (!shown.some((item) => item.row === nearest.item.row)) shown = [...shown, nearest.item];
    show(shown.findIndex((item) => item.row === nearest.item.row));
  }

  function fill(select, names, first) {
    const options = names.map((name, at) => new Option(name, at));
    select.replaceChildren(...(first === undefined ? [] : [new Option(first, "")]), ...options);
  }

  function reset() {
    const rows = run().image.map((_, row) => row).filter((row) => inCategory(run().image[row])).map((row) => excess(run(), row));
    form.shift.min = Math.floor(Math.min(-1, ...rows) * STEP) - 1;
    form.shift.max = Math.ceil(Math.max(1, ...rows) * STEP) + 1;
    form.shift.value = 0;
    limit = PAGE;
  }

  fill(form.run, data.runs.map((item) => item.name));
  form.run.value = data.first;
  fill(form.other, data.runs.map((item) => item.name), "no other run");
  fill(form.category, data.categories, "all");
  fill(form.defect, data.defects, "any");
  for (const name of ["run", "category"]) form[name].addEventListener("change", reset);
  root.querySelector("form.choices").addEventListener("input", () => { limit = PAGE; update(); });
  root.querySelector("form.choices").addEventListener("submit", (event) => event.preventDefault());
  form.reset.addEventListener("click", () => { reset(); update(); });
  root.querySelector("[name=more]").addEventListener("click", () => { limit += PAGE; list(); });
  root.querySelector("canvas").addEventListener("click", choose);
  tools.opacity.addEventListener("input", blend);
  tools.mask.addEventListener("change", blend);
  tools.before.addEventListener("click", () => show(open - 1));
  tools.next.addEventListener("click", () => show(open + 1));
  dialog.addEventListener("keydown", (event) => {
    if (event.target === tools.opacity) return; // the slider uses the arrow keys
    if (event.key === "ArrowLeft") show(open - 1);
    if (event.key === "ArrowRight") show(open + 1);
  });
  reset();
  update();
})();
