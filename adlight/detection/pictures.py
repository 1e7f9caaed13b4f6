"""Pictures of single predictions: overlays, heat maps and panels; all pictures of a model share a colour scale."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from adlight.data.arrays import bands
from adlight.types import Prediction, Record

GAP, TITLE = 5, 18  # pixels between the parts of a panel, and height of their titles
LONG = 3  # ratio of sides above which an image is wide or tall; the parts of wide images are stacked


def colour_ceiling(pixel_threshold: float) -> float:
    """Return the upper end of the colour scale, which has the pixel threshold in the middle."""
    return max(2 * pixel_threshold, 1e-12)


def draw_overlay(image: Image.Image, prediction: Prediction) -> Image.Image:
    """Blend a coloured anomaly map over an RGB image in dark grey, in the image's size; high values are more opaque.

    An image of the map's size is changed in place, as a copy may take too much memory.
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

    The image is RGB, in the size to which the prediction's boxes and mask refer. With a record, as in a test, the
    decision is labelled right or WRONG. Parts have sides of `side` pixels; those of a tall image are higher, those of a
    wide image are stacked, each as wide as a panel of square images.
    """
    assert prediction.reconstruction is not None and prediction.anomaly_map is not None
    reconstruction = (np.clip(prediction.reconstruction.transpose(1, 2, 0), 0, 1) * 255).astype(np.uint8)
    reconstruction = np.broadcast_to(reconstruction, (*reconstruction.shape[:2], 3))
    parts = [
        ("image" if record is None else f"{record.defect}: {Path(record.path).name}", image),
        ("reconstruction", Image.fromarray(reconstruction)),
        (
            f"error, 0 to {colour_ceiling(prediction.pixel_threshold):.3g}",
            draw_heat_map(prediction.anomaly_map, prediction.pixel_threshold),
        ),
    ]
    if true_mask is not None:
        parts.append(_draw_true_mask(true_mask, record))
    is_wide, is_tall = image.width > LONG * image.height, image.height > LONG * image.width
    width = (len(parts) + 1) * (side + GAP) - GAP if is_wide else side
    scale = min(width / image.width, (side * LONG if is_tall else side) / image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    titles = [_write(title, width) for title, _ in parts]
    pictures = [picture.resize(size, Image.Resampling.BILINEAR) for _, picture in parts]
    decision, colour = _describe_decision(prediction, record)
    titles.append(_write(decision, width, colour))
    pictures.append(_mark(image, prediction, size))
    return _arrange(titles, pictures, is_wide)


def _describe_decision(prediction: Prediction, record: Record | None) -> tuple[str, str]:
    """Describe a decision, and choose the colour of the text: red if it is wrong or, without a record, anomalous."""
    decision, is_red = ("ANOMALOUS", True) if prediction.anomalous else ("normal", False)
    if record is not None:
        is_red = prediction.anomalous != bool(record.label)
        decision += " (WRONG)" if is_red else " (right)"
    text = f"{decision}: {prediction.score:.4g}, threshold {prediction.threshold:.4g}"
    return text, "red" if is_red else "black"


def _arrange(titles: list[Image.Image], parts: list[Image.Image], below: bool) -> Image.Image:
    """Arrange titled parts of equal size side by side, or stack them."""
    (cell, _), (width, height), count = titles[0].size, parts[0].size, len(parts)
    columns, rows = (1, count) if below else (count, 1)
    panel = Image.new("RGB", (columns * (cell + GAP) - GAP, rows * (TITLE + height)), "white")
    for i, (title, part) in enumerate(zip(titles, parts, strict=True)):
        left, top = (0, i * (TITLE + height)) if below else (i * (cell + GAP), 0)
        panel.paste(title, (left, top))
        panel.paste(part, (left + (cell - width) // 2, top + TITLE))
    return panel


def _draw_true_mask(mask: np.ndarray, record: Record | None) -> tuple[str, Image.Image]:
    if record is not None and record.label and record.mask is None:  # black would mean that nothing is defective
        return "no true mask", Image.new("RGB", (1, 1), "lightgrey")
    return "true mask", Image.fromarray(mask).convert("RGB")


def stack_panels(panels: list[Image.Image], title: str) -> Image.Image:
    """Stack panels of equal width below a title."""
    width, top = panels[0].width, TITLE
    picture = Image.new("RGB", (width, TITLE + sum(panel.height + GAP for panel in panels) - GAP), "white")
    picture.paste(_write(title, width), (0, 0))
    for panel in panels:
        picture.paste(panel, (0, top))
        top += panel.height + GAP
    return picture


def _write(text: str, width: int, colour: str = "black") -> Image.Image:
    strip = Image.new("RGB", (width, TITLE), "white")  # a separate strip, so that a long text is cut off
    ImageDraw.Draw(strip).text((2, 3), text, fill=colour)
    return strip


def _mark(image: Image.Image, prediction: Prediction, size: tuple[int, int]) -> Image.Image:
    assert prediction.mask is not None
    marked = image.copy()
    marked.paste((255, 0, 0), mask=Image.fromarray(prediction.mask.astype(np.uint8) * 128))
    marked = marked.resize(size, Image.Resampling.BILINEAR)
    (width, height), (w, h), pen = image.size, marked.size, ImageDraw.Draw(marked)
    for left, top, right, bottom in prediction.boxes:
        box = left * w // width, top * h // height, right * w // width - 1, bottom * h // height - 1
        pen.rectangle((*box[:2], max(box[0], box[2]), max(box[1], box[3])), outline=(255, 255, 0))
    return marked
