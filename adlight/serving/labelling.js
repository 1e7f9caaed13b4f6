// What an inspector says of an image, right, wrong or the defect itself drawn over it, sent to be kept beside the run.

const INK = "#ff3b30";

// strokes in pixels of a drawing, as one colour without shades
function paintStrokes(pen, strokes, colour) {
  Object.assign(pen, { fillStyle: colour, strokeStyle: colour, lineCap: "round", lineJoin: "round" });
  for (const { tool, width, points: [first, ...rest] } of strokes) {
    const last = rest.at(-1) ?? first;
    if (tool === "box") {
      pen.fillRect(Math.min(first[0], last[0]), Math.min(first[1], last[1]), Math.abs(last[0] - first[0]), Math.abs(last[1] - first[1]));
      continue;
    }
    pen.lineWidth = width;
    pen.beginPath();
    pen.moveTo(...first);
    for (const point of rest.length ? rest : [first]) pen.lineTo(...point);
    pen.stroke();
  }
}

// `send(path, form)` asks the server; `decide(item)` says whether it is anomalous; `category()` names the images'
function makeLabelling({ send, decide, category, relist }) {
  const find = (selector) => document.querySelector(selector), form = find("#label"), fields = form.elements;
  const canvas = find("#drawing canvas"), pen = canvas.getContext("2d"), overlay = document.createElement("canvas");
  let open = false, shown = null, stroke = null;

  const isEmpty = ({ tool, points }) => tool === "box" && (points.length < 2 || points[0].some((one, axis) => one === points.at(-1)[axis]));
  const drawn = () => (shown?.strokes ?? []).filter((one) => !isEmpty(one));

  function count(labels) {
    open = labels.max_labels > 0;
    find("#storage").textContent = open
      ? "Images are not stored, but for those that are labelled."
      : `Images are not stored. Labels are not kept: ${labels.refusal}.`;
    const drawings = labels.masks === 1 ? "1 drawn" : `${labels.masks} drawn`;
    find("#kept").textContent = `Kept so far: ${labels.anomalous} anomalous (${drawings}), ${labels.normal} normal; at most ${labels.max_labels}.`;
  }

  function show(item) {
    form.hidden = !open || item?.state !== "done";
    if (form.hidden) return;
    if (item !== shown) find("#drawing").hidden = true;
    shown = item;
    const anomalous = decide(item).anomalous;
    fields.right.textContent = anomalous ? "Right: it is anomalous" : "Right: it is normal";
    fields.wrong.textContent = anomalous ? "Wrong: it is normal" : "Wrong: it is anomalous";
    for (const name of ["right", "wrong", "draw"]) fields[name].disabled = item.sending ?? false;
    fields.draw.ariaExpanded = String(!find("#drawing").hidden);
    find("#told").textContent = item.told ?? "";
    find("#told").className = item.failed ? "failed" : "";
    draw();
  }

  function draw() {
    if (find("#drawing").hidden || !shown.drawing) return;
    const { width, height } = shown.drawing, some = drawn();
    for (const one of [canvas, overlay]) if (one.width !== width || one.height !== height) Object.assign(one, { width, height });
    const over = overlay.getContext("2d");
    over.clearRect(0, 0, width, height);
    paintStrokes(over, some, INK);
    pen.globalAlpha = 1;
    pen.drawImage(shown.drawing, 0, 0);
    pen.globalAlpha = 0.55;
    pen.drawImage(overlay, 0, 0);
    fields.undo.disabled = fields.erase.disabled = !some.length;
    fields.keep.disabled = !some.length || (shown.sending ?? false);
  }

  function place(event) {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) * canvas.width) / box.width, ((event.clientY - box.top) * canvas.height) / box.height];
  }

  // the mask in the image's own size, white on black
  function makeMask({ drawing, map }, strokes) {
    const [width, height] = map.image_size, mask = Object.assign(document.createElement("canvas"), { width, height });
    const over = mask.getContext("2d");
    over.fillRect(0, 0, width, height);
    over.scale(width / drawing.width, height / drawing.height);
    paintStrokes(over, strokes, "#fff");
    return new Promise((resolve, reject) => mask.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("this browser cannot make a mask of that size")))));
  }

  async function keep(label, strokes = []) {
    const item = shown, query = new URLSearchParams({ label, ...category() });
    Object.assign(item, { sending: true, told: "is sent …", failed: false });
    show(item);
    try {
      const content = new FormData();
      content.append("image", item.file, item.file.name);
      if (strokes.length) content.append("mask", await makeMask(item, strokes), "mask.png");
      const answer = await send(`labels?${query}`, content), found = await answer.json();
      if (!answer.ok) throw new Error(found.error ?? `the server answers ${answer.status}`);
      Object.assign(item, { label: found.label, told: tell(found) });
      count(found.labels);
    } catch (error) {
      Object.assign(item, { told: `Not kept: ${error.message}.`, failed: true });
    }
    item.sending = false;
    if (item === shown) show(item);
    relist();
  }

  const words = ({ label, mask }) => (mask ? `${label}, with its drawing` : label);
  function tell(found) {
    if (!found.before) return `Kept as ${words(found)}.`;
    return found.changed ? `Kept as ${words(found)}; before, it was ${words(found.before)}.` : `Was kept as ${words(found)} already.`;
  }

  const answer = (right) => (decide(shown).anomalous === right ? keep("anomalous", drawn()) : keep("normal"));
  fields.right.onclick = () => answer(true);
  fields.wrong.onclick = () => answer(false);
  fields.draw.onclick = () => { find("#drawing").hidden = !find("#drawing").hidden; show(shown); };
  fields.keep.onclick = () => keep("anomalous", drawn());
  fields.undo.onclick = () => { shown.strokes = drawn().slice(0, -1); draw(); };
  fields.erase.onclick = () => { shown.strokes = []; draw(); };
  form.addEventListener("submit", (event) => event.preventDefault());
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || stroke) return;
    canvas.setPointerCapture(event.pointerId);
    const width = (Number(fields.width.value) / 100) * Math.max(canvas.width, canvas.height);
    stroke = { tool: fields.tool.value, width, points: [place(event)] };
    shown.strokes = [...drawn(), stroke];
    draw();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!stroke) return;
    stroke.points.push(place(event));
    draw();
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { stroke = null; });
  return { count, show };
}
