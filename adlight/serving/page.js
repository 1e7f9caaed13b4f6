(() => {
  const find = (selector) => document.querySelector(selector);
  const controls = find("#controls"), choices = find("#choices").elements, panes = find("#panes");
  const sliders = { threshold: find("#threshold"), pixel: find("#pixel"), opacity: find("#opacity") };
  const numbers = { threshold: numberOf("threshold"), pixel: numberOf("pixel") };
  const COLOURS = document.body.dataset.colours.match(/../g).map((two) => parseInt(two, 16));
  const SIDES = [512, 1600], AT_ONCE = 4, KEPT = 60, BOX = "#ff3b30", MASK = [0, 229, 255, 120]; // a drawing's longer side, at least and at most; requests at once; images in memory
  const items = [], moved = new Map(); // what was dropped; thresholds that were moved, by their source
  let detector = null, chosen = null, kept = [], running = 0, token = sessionStorage.getItem("token") ?? "";

  function numberOf(name) { return find(`#${name}`).closest(".control").querySelector("input[type=number]"); }

  // ---- the server

  async function ask(path, options = {}) {
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    const answer = await fetch(path, { ...options, headers }).catch(() => null);
    if (!answer) throw new Error("the server does not answer");
    if (answer.status === 401) find("#login").hidden = false;
    return answer;
  }

  async function begin() {
    if (location.hash.startsWith("#token=")) {
      token = decodeURIComponent(location.hash.slice(7));
      history.replaceState(null, "", location.pathname); // it is not to be seen, or kept among visited pages
    }
    const answer = await ask("detector");
    if (!answer.ok) return;
    sessionStorage.setItem("token", token);
    find("#login").hidden = true;
    detector = await answer.json();
    document.title = `${detector.name}: adlight`;
    find("#name").textContent = detector.name;
    const [height, width] = detector.image_size, megapixels = detector.limits.max_pixels / 1e6;
    find("#accepted").textContent =
      `${detector.formats.join(", ")}; up to ${detector.limits.max_bytes / 1e6} MB and ${megapixels} million pixels each`;
    const looks = detector.tile ? `looks at tiles of ${detector.tile} x ${detector.tile} pixels, each scaled to` : "looks at";
    find("#detector").textContent = `adlight ${detector.version} on ${detector.device}; ${looks} ${width} x ${height} pixels.`;
    find("#category").hidden = detector.categories.length < 2;
    choices.category.replaceChildren(...detector.categories.map((name) => new Option(name)));
    const usual = detector.category ?? (detector.categories.includes("auto") ? "auto" : detector.categories[0]);
    if (usual !== undefined) choices.category.value = usual;
    const labels = await ask("labels"), found = await labels.json();
    labelling.count(labels.ok ? found : { max_labels: 0, refusal: found.error });
    work();
  }

  // predicts for what waits, a few at once: the server makes batches of them
  function work() {
    while (detector && running < AT_ONCE) {
      const item = items.find((one) => one.state === "waiting");
      if (!item) return;
      item.state = "running";
      running++;
      predict(item)
        .catch((error) => Object.assign(item, { state: "failed", error: error.message }))
        .finally(() => { running--; show(item); work(); });
    }
  }

  // sends a form, again and again while the server has no room
  async function send(path, form) {
    for (;;) {
      const answer = await ask(path, { method: "POST", body: form });
      if (answer.status !== 503) return answer;
      await new Promise((resolve) => setTimeout(resolve, 1000 * Number(answer.headers.get("retry-after") ?? 1)));
    }
  }

  const category = () => (detector.categories.length > 1 ? { category: choices.category.value } : {});

  async function predict(item) {
    const drawing = await drawFile(item.file).catch(() => null); // browsers do not read TIFF: the server sends a picture
    const query = new URLSearchParams({ include: drawing ? "map" : "map,picture", ...category() }), form = new FormData();
    form.append("image", item.file, item.file.name);
    const answer = await send(`predict?${query}`, form), found = await answer.json();
    if (!answer.ok) throw new Error(found.error ?? `the server answers ${answer.status}`);
    const { map, picture, ...prediction } = found[0];
    if (prediction.error) throw new Error(prediction.error);
    if (picture) item.picture = new Blob([decodeBytes(picture)], { type: "image/png" });
    Object.assign(item, { prediction, map: { ...map, values: decodeFloats(map.values) } });
    await draw(item, drawing);
    item.state = "done";
  }

  // large images would fill the memory: the drawings of those that were looked at last are kept
  async function draw(item, drawing = null) {
    item.drawing = drawing ?? (await drawFile(item.picture ?? item.file));
    item.heat = drawHeat(item);
    drawThumbnail(item);
    kept = [item, ...kept.filter((one) => one !== item)];
    for (const old of kept.splice(KEPT)) if (old !== chosen) old.drawing = old.heat = null;
  }

  // ---- decisions, by the thresholds as calibrated or as moved

  function decide(item) {
    const { prediction, map } = item, own = moved.get(prediction.threshold_source) ?? {}, [height, width] = map.shape;
    const given = own.threshold !== undefined || own.pixel !== undefined;
    const threshold = own.threshold ?? prediction.threshold, pixel = own.pixel ?? prediction.pixel_threshold;
    const anomalous = prediction.score > threshold;
    const region = given ? null : map.region_threshold; // as `adlight predict threshold=...` decides
    const source = own.threshold !== undefined && own.pixel !== undefined ? "given" : prediction.threshold_source;
    return { threshold, pixel, anomalous, given, source, moved: own.threshold !== undefined, regions: () => (anomalous ? findRegions(map.values, height, width, pixel, region, map.min_pixels, map.closing) : []) };
  }

  // a prediction as the server would answer it with these thresholds
  function answerOf(item) {
    if (item.state !== "done") return { path: item.file.name, error: item.error ?? "not predicted yet" };
    const found = decide(item), regions = found.regions();
    const area = regions.reduce((sum, region) => sum + region.length, 0) / item.map.content;
    const boxes = boundingBoxes(regions, item.map.shape, item.map.image_size);
    return { ...item.prediction, anomalous: found.anomalous, threshold_source: found.source, threshold: found.threshold, pixel_threshold: found.pixel, area, boxes };
  }

  // ---- drawings

  function canvasOf(width, height) {
    return Object.assign(document.createElement("canvas"), { width, height });
  }

  async function drawFile(file) {
    const bitmap = await createImageBitmap(file), longer = Math.max(bitmap.width, bitmap.height);
    const scale = Math.min(Math.max(1, SIDES[0] / longer), SIDES[1] / longer);
    const canvas = canvasOf(Math.max(1, Math.round(bitmap.width * scale)), Math.max(1, Math.round(bitmap.height * scale)));
    canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    bitmap.close();
    return canvas;
  }

  function drawPixels([height, width], colour) {
    const canvas = canvasOf(width, height), pen = canvas.getContext("2d"), pixels = pen.createImageData(width, height);
    for (let i = 0; i < height * width; i++) pixels.data.set(colour(i), 4 * i);
    pen.putImageData(pixels, 0, 0);
    return canvas;
  }

  function drawHeat({ map, prediction }) {
    const ceiling = Math.max(2 * prediction.pixel_threshold, 1e-12); // the calibrated threshold is in the middle
    return drawPixels(map.shape, (i) => {
      const level = Math.min(255, Math.floor(Math.min(1, Math.max(0, map.values[i] / ceiling)) * 256));
      return [...COLOURS.slice(3 * level, 3 * level + 3), 255];
    });
  }

  function drawMask(map, regions, colour, rest) {
    const inside = new Uint8Array(map.values.length);
    for (const region of regions) for (const index of region) inside[index] = 1;
    return drawPixels(map.shape, (i) => (inside[i] ? colour : rest));
  }

  // one picture of several layers: what lies over the image, bottom up
  function compose(item, layers) {
    const { width, height } = item.drawing, canvas = canvasOf(width, height), pen = canvas.getContext("2d");
    for (const { source, alpha = 1, smooth = true } of layers.filter((one) => one.source)) {
      Object.assign(pen, { globalAlpha: alpha, imageSmoothingEnabled: smooth });
      pen.drawImage(source, 0, 0, width, height);
    }
    Object.assign(pen, { globalAlpha: 1, strokeStyle: BOX, lineWidth: Math.max(2, width / 160) });
    const scale = [width / item.map.image_size[0], height / item.map.image_size[1]];
    for (const [left, top, right, bottom] of layers.find((one) => one.boxes)?.boxes ?? [])
      pen.strokeRect(left * scale[0], top * scale[1], (right - left) * scale[0], (bottom - top) * scale[1]);
    return canvas;
  }

  function pictures(item) {
    const regions = decide(item).regions(), boxes = boundingBoxes(regions, item.map.shape, item.map.image_size);
    const image = { source: item.drawing }, heat = { source: item.heat, alpha: Number(sliders.opacity.value) };
    if (controls.elements.view.value === "layers") {
      const { heat: hot, mask, boxes: framed } = controls.elements;
      const over = { source: drawMask(item.map, regions, MASK, [0, 0, 0, 0]), smooth: false };
      return [["", compose(item, [image, ...(hot.checked ? [heat] : []), ...(mask.checked ? [over] : []), ...(framed.checked ? [{ boxes }] : [])])]];
    }
    const mask = { source: drawMask(item.map, regions, [255, 255, 255, 255], [0, 0, 0, 255]), smooth: false };
    const count = boxes.length === 1 ? "1 box" : `${boxes.length} boxes`;
    return [
      [`Image, ${count}`, compose(item, [image, { boxes }])],
      ["Heat map", compose(item, [image, heat])],
      [`Mask, ${Number((100 * answerOf(item).area).toPrecision(3))} % of the image`, compose(item, [mask])],
    ];
  }

  // ---- what is shown

  const digits = (value) => Number(value.toPrecision(5)).toString();

  function show(item) {
    if (item && item !== chosen) return list();
    list();
    const done = chosen?.state === "done";
    find("#empty").hidden = items.length > 0;
    find("#work").hidden = !items.length;
    controls.hidden = !done;
    labelling.show(chosen);
    if (!chosen) return;
    const title = find(".verdict h1"), badge = find(".badge"), sentence = find("#sentence");
    title.textContent = chosen.file.name; // as text: a name may hold anything
    badge.className = `badge ${mood(chosen)}`;
    badge.textContent = { waiting: "waits", running: "is looked at", failed: "not read" }[chosen.state] ?? mood(chosen);
    sentence.textContent = chosen.error ?? "";
    panes.replaceChildren();
    if (!done) return;
    if (!chosen.drawing) return void draw(chosen).then(() => show());
    const found = decide(chosen), { score, threshold_source: source } = chosen.prediction;
    sentence.textContent = `Score ${digits(score)} is ${found.anomalous ? "above" : "not above"} the threshold ${digits(found.threshold)} ` +
      (found.moved ? "(moved)." : source === "given" ? "(given)." : `calibrated for ${source}.`);
    adjust(found);
    panes.className = controls.elements.view.value;
    panes.replaceChildren(...pictures(chosen).map(([caption, canvas]) => {
      const figure = document.createElement("figure"), words = document.createElement("figcaption");
      words.textContent = caption;
      figure.append(words, canvas);
      return figure;
    }));
  }

  const mood = (item) => (item.state !== "done" ? item.state : decide(item).anomalous ? "anomalous" : "normal");

  // sliders' ends, values and marks
  function adjust(found) {
    const { prediction, map } = chosen;
    const alike = items.filter((one) => one.prediction?.threshold_source === prediction.threshold_source);
    const scores = alike.map((one) => one.prediction.score), peak = map.values.reduce((a, b) => Math.max(a, b), -Infinity);
    const places = {
      threshold: [[...scores, prediction.threshold], { calibrated: prediction.threshold, score: prediction.score }],
      pixel: [[peak, 2 * prediction.pixel_threshold], { calibrated: prediction.pixel_threshold }],
    };
    for (const [name, [values, marks]] of Object.entries(places)) {
      const slider = sliders[name], low = Math.min(0, ...values), high = Math.max(1e-12, ...values) * 1.15;
      Object.assign(slider, { min: low, max: Math.max(high, found[name]) });
      slider.value = found[name];
      if (document.activeElement !== numbers[name]) numbers[name].value = digits(found[name]);
      for (const [mark, value] of Object.entries(marks))
        slider.parentElement.querySelector(`.${mark}`).style.setProperty("--at", (value - low) / (slider.max - low));
    }
    find(".control output").textContent = `${Math.round(100 * sliders.opacity.value)} %`;
    find(".layers").hidden = controls.elements.view.value !== "layers";
    controls.elements.reset.disabled = !found.given;
  }

  function list() {
    const number = (state) => items.filter((one) => mood(one) === state).length;
    const left = number("waiting") + number("running"), failed = number("failed");
    find("#count").textContent = `${number("anomalous")} anomalous, ${number("normal")} normal` +
      (left ? `, ${left} to go` : "") + (failed ? `, ${failed} not read` : "");
    items.forEach((item) => {
      item.entry ??= entry(item);
      item.entry.title = item.label ? `${item.file.name}, kept as ${item.label}` : item.file.name;
      item.entry.className = `${mood(item)}${item === chosen ? " chosen" : ""}`;
      item.entry.querySelector("small").textContent = item.prediction ? digits(item.prediction.score) + (item.label ? " ✓" : "") : item.error ? "not read" : "…";
    });
    if (find("#list").childElementCount !== items.length) find("#list").replaceChildren(...items.map((item) => item.entry.parentElement));
  }

  function entry(item) {
    const line = document.createElement("li"), button = document.createElement("button");
    const words = document.createElement("span"), name = document.createElement("b");
    name.textContent = item.file.name;
    words.append(name, document.createElement("small"));
    button.append(canvasOf(96, 96), words);
    Object.assign(button, { type: "button", onclick: () => choose(item) });
    line.append(button);
    return button;
  }

  function drawThumbnail({ entry, drawing }) {
    const [canvas] = entry.getElementsByTagName("canvas");
    const scale = Math.min(96 / drawing.width, 96 / drawing.height), width = drawing.width * scale, height = drawing.height * scale;
    canvas.getContext("2d").drawImage(drawing, (96 - width) / 2, (96 - height) / 2, width, height);
  }

  function choose(item) {
    chosen = item;
    show();
    item?.entry.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  // ---- what the user does

  function add(files) {
    const fresh = [...files].map((file) => ({ file, state: "waiting" }));
    items.push(...fresh);
    if (fresh.length) choose(chosen ?? fresh[0]);
    work();
  }

  function move(name, value) {
    if (chosen?.state !== "done" || !Number.isFinite(value)) return;
    const source = chosen.prediction.threshold_source;
    moved.set(source, { ...moved.get(source), [name]: value });
    show();
  }

  function save(name, blob) {
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  const stem = (item) => item.file.name.replace(/\.[^.]*$/, "").replace(/[^\w.-]+/g, "_") || "image";
  const saveJson = (name, content) => save(name, new Blob([`${JSON.stringify(content, null, 2)}\n`], { type: "application/json" }));

  // side by side under a line of text
  function sheet(item) {
    const parts = pictures(item), gap = 8, strip = Math.max(24, Math.round(item.drawing.height / 16));
    const sheet = canvasOf(parts.length * (item.drawing.width + gap) - gap, item.drawing.height + strip), pen = sheet.getContext("2d");
    Object.assign(pen, { fillStyle: "#fff", font: `${Math.round(0.6 * strip)}px system-ui, sans-serif`, textBaseline: "middle" });
    pen.fillRect(0, 0, sheet.width, sheet.height);
    pen.fillStyle = "#111";
    pen.fillText(`${item.file.name}: ${mood(item)}. ${find("#sentence").textContent}`, 6, strip / 2, sheet.width - 12);
    parts.forEach(([, canvas], i) => pen.drawImage(canvas, i * (item.drawing.width + gap), strip));
    return sheet;
  }

  const labelling = makeLabelling({ send, decide, category, relist: list });
  for (const name of ["threshold", "pixel"]) {
    sliders[name].addEventListener("input", () => move(name, Number(sliders[name].value)));
    numbers[name].addEventListener("input", () => move(name, numbers[name].valueAsNumber));
  }
  sliders.opacity.addEventListener("input", () => show());
  controls.addEventListener("change", (event) => event.target.type !== "number" && event.target.type !== "range" && show());
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.elements.reset.onclick = () => { moved.delete(chosen.prediction.threshold_source); show(); };
  controls.elements.json.onclick = () => saveJson(`${stem(chosen)}.json`, answerOf(chosen));
  controls.elements.png.onclick = () => sheet(chosen).toBlob((blob) => save(`${stem(chosen)}.png`, blob));
  find("#save-all").onclick = () => saveJson("predictions.json", items.map(answerOf));
  find("#clear").onclick = () => { items.length = 0; find("#list").replaceChildren(); choose(null); };
  choices.choose.onclick = find("#empty").onclick = () => choices.files.click();
  choices.files.onchange = () => { add(choices.files.files); choices.files.value = ""; };
  choices.category.onchange = () => {
    for (const item of items) Object.assign(item, { state: "waiting", prediction: undefined, error: undefined, told: undefined });
    show();
    work();
  };
  find("#login").onsubmit = (event) => {
    event.preventDefault();
    token = event.target.elements.token.value.trim();
    begin();
  };
  addEventListener("paste", (event) => add(event.clipboardData?.files ?? []));
  addEventListener("dragover", (event) => { event.preventDefault(); find("#over").hidden = false; });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) find("#over").hidden = true; });
  addEventListener("drop", (event) => { event.preventDefault(); find("#over").hidden = true; add(event.dataTransfer?.files ?? []); });
  addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step || event.target.matches("input, select") || !chosen) return;
    event.preventDefault();
    const next = items[items.indexOf(chosen) + step];
    if (next) choose(next);
  });
  begin().catch((error) => { find("#accepted").textContent = error.message; });
})();
