"""Pictures of single answers: heat maps and panels, all on one colour scale."""

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

if TYPE_CHECKING:  # torch takes seconds: not for --help
    from adlight.types import Prediction


def colour_ceiling(pixel_threshold: float) -> float:
    """The error at which the colours end: the pixel threshold lies in their middle, in every picture of a model."""
    return max(2 * pixel_threshold, 1e-12)


def heat(pixel: np.ndarray, ceiling: float) -> Image.Image:
    """Colours of a map (S, S)."""
    from matplotlib import colormaps

    return Image.fromarray((colormaps["inferno"](np.clip(pixel / ceiling, 0, 1))[..., :3] * 255).astype(np.uint8))


def overlay(image: Image.Image, answer: "Prediction", ceiling: float) -> Image.Image:
    """The map's colours over the darkened grey image, in the image's size; the stronger, the less shines through."""
    assert answer.anomaly_map is not None
    strength = 0.35 + 0.55 * np.clip(answer.anomaly_map / ceiling, 0, 1)
    alpha = Image.fromarray((strength * 255).astype(np.uint8)).resize(image.size, Image.Resampling.BILINEAR)
    colours = heat(answer.anomaly_map, ceiling).resize(image.size, Image.Resampling.BILINEAR)
    grey = image.convert("L").point(lambda value: value * 0.6)  # on white the colours would look pale
    return Image.composite(colours, grey.convert("RGB"), alpha)


def panel(image: Image.Image, answer: "Prediction", ceiling: float, side: int = 256) -> Image.Image:
    """Image, reconstruction, error and decision side by side, each `side` pixels, with the decision in words."""
    assert answer.reconstruction is not None and answer.mask is not None and answer.anomaly_map is not None
    made = np.clip(answer.reconstruction.transpose(1, 2, 0), 0, 1) * 255  # (S, S, C)
    made = np.broadcast_to(made.astype(np.uint8), (*made.shape[:2], 3))
    decided = image.copy()
    decided.paste((255, 0, 0), mask=Image.fromarray(answer.mask.astype(np.uint8) * 128))
    parts = [
        part.resize((side, side), Image.Resampling.BILINEAR)
        for part in (image, Image.fromarray(made), heat(answer.anomaly_map, ceiling), decided)
    ]
    (width, height), pen = image.size, ImageDraw.Draw(parts[3])
    for left, top, right, bottom in answer.boxes:
        box = left * side // width, top * side // height, right * side // width - 1, bottom * side // height - 1
        pen.rectangle((*box[:2], max(box[0], box[2]), max(box[1], box[3])), outline=(255, 255, 0))
    whole = Image.new("RGB", (4 * side + 15, side + 18), "white")
    for i, part in enumerate(parts):
        whole.paste(part, (i * (side + 5), 18))
    decision = f"{'ANOMALOUS' if answer.anomalous else 'normal'}: {answer.score:.4g}, threshold {answer.threshold:.4g}"
    for i, title in enumerate(("image", "reconstruction", f"error, 0 to {ceiling:.3g}", decision)):
        colour = "red" if i == 3 and answer.anomalous else "black"
        ImageDraw.Draw(whole).text((i * (side + 5) + 2, 3), title, fill=colour)
    return whole
