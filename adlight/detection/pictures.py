"""Pictures of single predictions: overlays, heat maps and panels; all pictures of a model share one colour scale."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from adlight.data.arrays import bands
from adlight.types import Prediction, Record

GAP, TITLE = 5, 18  # pixels between the parts of a panel, and height of their titles


def colour_ceiling(pixel_threshold: float) -> float:
    """Return the value at which the colours end, so that the pixel threshold lies in the middle of the scale."""
    return max(2 * pixel_threshold, 1e-12)


def draw_overlay(image: Image.Image, prediction: Prediction) -> Image.Image:
    """Blend a coloured anomaly map over an RGB image in dark grey, in the image's size; high values are more opaque.

    The image is changed in place if the map has its size, as there may be little memory for another.
    """
    assert prediction.anomaly_map is not None
    height, width = prediction.anomaly_map.shape
    if image.size != (width, height):
        return _blend(image, prediction.anomaly_map, prediction.pixel_threshold)
    for rows in bands((height, width)):  # floats of a large image would take much memory
        band = image.crop((0, rows.start, width, rows.stop))
        image.paste(_blend(band, prediction.anomaly_map[rows], prediction.pixel_threshold), (0, rows.start))
    return image


def _blend(image: Image.Image, anomaly_map: np.ndarray, pixel_threshold: float) -> Image.Image:
    colours = draw_heat_map(anomaly_map, pixel_threshold).resize(image.size, Image.Resampling.BILINEAR)
    strength = 0.35 + 0.55 * np.clip(anomaly_map / colour_ceiling(pixel_threshold), 0, 1)
    alpha = Image.fromarray((strength * 255).astype(np.uint8)).resize(image.size, Image.Resampling.BILINEAR)
    grey = image.convert("L").point(lambda value: value * 0.6)  # colours look pale on white
    return Image.composite(colours, grey.convert("RGB"), alpha)


def draw_heat_map(anomaly_map: np.ndarray, pixel_threshold: float) -> Image.Image:
    """Draw an anomaly map (H, W) in colours."""
    from matplotlib import colormaps

    level = np.clip(anomaly_map / colour_ceiling(pixel_threshold), 0, 1)
    return Image.fromarray((colormaps["inferno"](level)[..., :3] * 255).astype(np.uint8))


def draw_panel(
    image: Image.Image,
    prediction: Prediction,
    record: Record | None = None,
    true_mask: np.ndarray | None = None,
    side: int = 256,
) -> Image.Image:
    """Draw image, reconstruction, error, true mask (if given) and decision with boxes, side by side.

    Args:
        image: RGB, in the size to which the prediction's boxes and mask refer.
        prediction: the prediction, with its arrays.
        record: the ground truth, in a test; the decision is then labelled right or WRONG.
        true_mask: (H, W) bool.
        side: side of the square, in pixels, into which each part is fitted.
    """
    assert prediction.reconstruction is not None and prediction.mask is not None
    assert prediction.anomaly_map is not None
    heat_map = draw_heat_map(prediction.anomaly_map, prediction.pixel_threshold)
    decision, colour = ("ANOMALOUS" if prediction.anomalous else "normal"), "red" if prediction.anomalous else "black"
    title = "image"
    if record is not None:
        right = prediction.anomalous == bool(record.label)
        decision, colour = f"{decision} ({'right' if right else 'WRONG'})", "black" if right else "red"
        title = f"{record.defect}: {Path(record.path).name}"
    reconstruction = (np.clip(prediction.reconstruction.transpose(1, 2, 0), 0, 1) * 255).astype(np.uint8)
    reconstruction = np.broadcast_to(reconstruction, (*reconstruction.shape[:2], 3))
    parts = [
        (title, image),
        ("reconstruction", Image.fromarray(reconstruction)),
        (f"error, 0 to {colour_ceiling(prediction.pixel_threshold):.3g}", heat_map),
        *([] if true_mask is None else [("true mask", Image.fromarray(true_mask).convert("RGB"))]),
        (f"{decision}: {prediction.score:.4g}, threshold {prediction.threshold:.4g}", _mark(image, prediction, side)),
    ]
    width, height = _fit(image, side)
    panel = Image.new("RGB", (len(parts) * (side + GAP) - GAP, side + TITLE), "white")
    for i, (text, part) in enumerate(parts):
        panel.paste(_write(text, side, colour if i == len(parts) - 1 else "black"), (i * (side + GAP), 0))
        corner = i * (side + GAP) + (side - width) // 2, TITLE + (side - height) // 2
        panel.paste(part.resize((width, height), Image.Resampling.BILINEAR), corner)
    return panel


def stack_panels(panels: list[Image.Image], title: str) -> Image.Image:
    """Stack panels of equal width below a title."""
    width, height = panels[0].size
    picture = Image.new("RGB", (width, TITLE + len(panels) * (height + GAP) - GAP), "white")
    picture.paste(_write(title, width), (0, 0))
    for i, panel in enumerate(panels):
        picture.paste(panel, (0, TITLE + i * (height + GAP)))
    return picture


def _fit(image: Image.Image, side: int) -> tuple[int, int]:
    longer = max(image.size)
    return max(1, round(image.width * side / longer)), max(1, round(image.height * side / longer))


def _write(text: str, width: int, colour: str = "black") -> Image.Image:
    strip = Image.new("RGB", (width, TITLE), "white")  # a separate strip, so that a long text is cut off
    ImageDraw.Draw(strip).text((2, 3), text, fill=colour)
    return strip


def _mark(image: Image.Image, prediction: Prediction, side: int) -> Image.Image:
    assert prediction.mask is not None
    marked = image.copy()
    marked.paste((255, 0, 0), mask=Image.fromarray(prediction.mask.astype(np.uint8) * 128))
    marked = marked.resize(_fit(image, side), Image.Resampling.BILINEAR)
    (width, height), (w, h), pen = image.size, marked.size, ImageDraw.Draw(marked)
    for left, top, right, bottom in prediction.boxes:
        box = left * w // width, top * h // height, right * w // width - 1, bottom * h // height - 1
        pen.rectangle((*box[:2], max(box[0], box[2]), max(box[1], box[3])), outline=(255, 255, 0))
    return marked
