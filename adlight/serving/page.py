"""The page for images: one HTML file that contains its styles and scripts and loads nothing else."""

import base64
import hashlib
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

_FILES = files("adlight.serving")
SCRIPTS = ("regions.js", "labelling.js", "page.js")
STYLE = _FILES.joinpath("page.css").read_text(encoding="utf-8")
SCRIPT = "\n".join(_FILES.joinpath(name).read_text(encoding="utf-8") for name in SCRIPTS)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


SECURITY = {
    # only the page's own style and script run, whatever an uploaded file is named, and nothing is loaded
    "content-security-policy": f"default-src 'none'; script-src {_hash(SCRIPT)}; style-src {_hash(STYLE)}; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


def render() -> str:
    """Render the page as HTML."""
    from matplotlib import colormaps

    colours = (colormaps["inferno"](range(256))[:, :3] * 255).astype("uint8")  # as in `draw_heat_map`
    environment = Environment(loader=PackageLoader("adlight.serving", "."), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("page.html.j2").render(
        style=Markup(STYLE), script=Markup(SCRIPT), colours=colours.tobytes().hex()
    )
