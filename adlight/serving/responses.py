"""Responses: the page, a single HTML file that loads nothing else, and JSON, with pictures on request."""

import base64
import hashlib
import io
import math
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from adlight import __version__
from adlight.data.images import to_channels
from adlight.detection.categories import POOLED
from adlight.detection.classifier import AUTO
from adlight.detection.pictures import draw_heat_map
from adlight.types import Prediction, UserError, unknown_name

if TYPE_CHECKING:
    from adlight.detector import Detector

PARTS = ("heat_map", "mask", "map", "picture")  # sent only on request
LONGEST = 1600  # pixels of a picture's longer side
_FILES = files("adlight.serving")
SCRIPTS = ("regions.js", "labelling.js", "page.js")
STYLE = _FILES.joinpath("page.css").read_text(encoding="utf-8")
SCRIPT = "\n".join(_FILES.joinpath(name).read_text(encoding="utf-8") for name in SCRIPTS)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


SECURITY = {
    # allows only the page's own style and script, whatever the names of uploaded files contain, and no other resource
    "content-security-policy": f"default-src 'none'; script-src {_hash(SCRIPT)}; style-src {_hash(STYLE)}; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


def render_page() -> str:
    """Render the page as HTML, with its styles and scripts."""
    from matplotlib import colormaps

    colours = (colormaps["inferno"](range(256))[:, :3] * 255).astype("uint8")  # as in `draw_heat_map`
    environment = Environment(loader=PackageLoader("adlight.serving", "."), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("page.html.j2").render(
        style=Markup(STYLE), script=Markup(SCRIPT), colours=colours.tobytes().hex()
    )


def parse_parts(text: str) -> list[str]:
    """Parse the requested parts, such as `heat_map,mask`; raise a UserError if a name is unknown."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in PARTS]:
        raise UserError(unknown_name("include", unknown[0], PARTS))
    return names


def describe_prediction(
    prediction: Prediction,
    name: str,
    parts: list[str],
    detector: "Detector",
    content: np.ndarray | None = None,
    image: Image.Image | None = None,
) -> dict[str, Any]:
    """Return the JSON of one image.

    Args:
        prediction: Prediction with its arrays.
        name: Name of the uploaded file.
        parts: `heat_map`: the anomaly map in colours up to twice the pixel threshold, in the map's size; `mask`: 0 or
            255, in the image's size; `picture`: the upright image, at most 1,600 pixels wide and high (all three as
            PNG in base64); `map`: the map's values, and the settings that turn them into regions.
        detector: Detector that made the prediction.
        content: (H, W) bool region of interest; None for the whole image.
        image: Decoded image, needed for `picture`.
    """
    assert prediction.anomaly_map is not None and prediction.mask is not None
    found = {**prediction.as_dict(), "path": name}
    if "heat_map" in parts:
        found["heat_map"] = _png(draw_heat_map(prediction.anomaly_map, prediction.pixel_threshold))
    if "mask" in parts:
        found["mask"] = _png(Image.fromarray(prediction.mask))
    if "map" in parts:
        found["map"] = _describe_map(prediction.anomaly_map, prediction, detector, content)
    if "picture" in parts and image is not None:
        picture = to_channels(image, 3).copy()
        picture.thumbnail((LONGEST, LONGEST))
        found["picture"] = _png(picture)
    return found


def _describe_map(
    values: np.ndarray, prediction: Prediction, detector: "Detector", content: np.ndarray | None
) -> dict[str, Any]:
    calibration, source = detector.calibration, prediction.threshold_source
    inside = _count_content(values, detector) if content is None else int(content.sum())
    assert prediction.mask is not None
    return {
        "values": base64.b64encode(values.astype("<f4").tobytes()).decode(),  # little-endian float32, row by row
        "shape": list(values.shape),
        "image_size": list(prediction.mask.shape[::-1]),
        "content": inside,
        "min_pixels": calibration.min_area * inside,
        "closing": calibration.closing,
        "region_threshold": calibration.of(source if source in calibration.by_category else None).region,
    }


def _count_content(values: np.ndarray, detector: "Detector") -> int:
    whole = detector.frame.keep_shape or detector.tiling
    return values.size if whole else math.prod(detector.frame.size)  # pixels that were not cropped


def _png(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return base64.b64encode(file.getvalue()).decode()


def categories_of(detector: "Detector") -> list[str]:
    """List the allowed values of `category`: the categories, `auto` if looks can tell them apart, and `pooled`."""
    rule = detector.category_rule
    return [*rule.known, *([AUTO] if rule.classifier.names else []), POOLED] if len(rule.known) > 1 else rule.known


def describe_detector(detector: "Detector", name: str) -> dict[str, Any]:
    """Return the JSON of `GET /detector`: sizes, categories and their thresholds."""
    calibration = detector.calibration
    thresholds = {category: calibration.of(category) for category in (*calibration.by_category, None)}
    return {
        "name": name,
        "version": __version__,
        "device": str(detector.device),
        "image_size": list((detector.tiling or detector.frame).size),
        "tile": detector.tiling.tile if detector.tiling else None,
        "channels": detector.channels,
        "batch_size": detector.batch_size,
        "categories": categories_of(detector),
        "category": detector.category_rule.asked,
        "thresholds": {
            found.source: {"threshold": found.image, "pixel_threshold": found.pixel, "num_normals": found.num_normals}
            for found in thresholds.values()
        },
        "min_area": calibration.min_area,
    }
