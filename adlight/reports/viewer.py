"""What the page's image viewer shows: every test image of some runs, its scores, and pictures of some images."""

import base64
import io
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from adlight.reports.collect import Runs
from adlight.reports.sections import link
from adlight.runs.folder import RunFolder
from adlight.runs.gallery import GalleryFolder

SIDE, QUALITY = 80, 40  # of a thumbnail: its longer side in pixels, and WebP's quality
KILOBYTES = 500  # of all thumbnails in the page; others are fetched from the runs' galleries
IMAGES = 20_000  # of a run, at most
KEY = ["category", "path"]  # what makes an image of one run the same as that of another


def viewer_data(found: Runs, folder: Path, detailed: int, first: str = "") -> dict[str, Any] | None:
    """Collect what the viewer shows of the first `detailed` runs that have predictions, for a page in `folder`.

    Returns:
        `images`: their `path`, `category`, `defect`, `label` and `thumb`, a list of each, numbers instead of names from
        the lists `categories` and `defects`; `runs`: `name`, `image` (numbers of images), `score`, `threshold` by
        category, `gallery` (where its pictures lie), `pictures` and `masks` (rows that have one); `left`: names of runs
        that are not shown; `first`: the number of the run to begin with, that of this name. None where there is
        nothing to show.
    """
    names = [name for name in found.headlines["name"] if name in set(found.predictions.get("name", ()))]
    parts = {name: found.predictions[found.predictions["name"] == name].reset_index(drop=True) for name in names}
    shown = {name: rows for name, rows in parts.items() if 0 < len(rows) <= IMAGES}
    shown = dict(list(shown.items())[:detailed])
    if not shown:
        return None
    images = pd.concat([rows[[*KEY, "defect", "label"]] for rows in shown.values()]).drop_duplicates(KEY)
    number = pd.Series(range(len(images)), pd.MultiIndex.from_frame(images[KEY]))
    folders = found.headlines.set_index("name")["folder"]
    galleries = {name: RunFolder(folders[name]).gallery for name in shown}
    categories, defects = (list(images[name].unique()) for name in ("category", "defect"))
    runs, thumbs, room = [], list[str | None]([None] * len(images)), KILOBYTES * 1000
    for name, rows in shown.items():
        mine = number[pd.MultiIndex.from_frame(rows[KEY])].to_list()
        pictures = {row: mask for row, mask in galleries[name].rows().items() if row < len(rows)}
        for row in pictures:
            if room > 0 and thumbs[mine[row]] is None and (thumb := _thumbnail(galleries[name], row)):
                thumbs[mine[row]] = thumb
                room -= len(thumb)
        thresholds = rows.groupby("category")["threshold"].first().to_dict()
        runs.append(
            {
                **{"name": name, "image": mine, "score": _short(rows), "gallery": link(galleries[name].path, folder)},
                "threshold": [thresholds.get(category) for category in categories],
                **{"pictures": list(pictures), "masks": [row for row, mask in pictures.items() if mask]},
            }
        )
    columns = {"path": images["path"].tolist(), "label": images["label"].tolist(), "thumb": thumbs}
    columns |= {"category": images["category"].map(categories.index).tolist()}
    columns |= {"defect": images["defect"].map(defects.index).tolist()}
    at = list(shown).index(first) if first in shown else 0
    left = [name for name in parts if name not in shown]
    return {"images": columns, "categories": categories, "defects": defects, "runs": runs, "left": left, "first": at}


def _short(rows: pd.DataFrame) -> list[float]:
    """Write scores in few digits, and in all of them where fewer would change the verdict."""
    short = rows["score"].map(lambda score: float(f"{score:.6g}"))
    same = (short > rows["threshold"]) == (rows["score"] > rows["threshold"])
    return short.where(same, rows["score"]).tolist()


def _thumbnail(gallery: GalleryFolder, row: int) -> str | None:
    """Shrink a picture to a data URI; None if it cannot be read."""
    try:
        with Image.open(gallery.image_path(row)) as image:
            small = image.convert("RGB")
    except (OSError, ValueError):
        return None
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=QUALITY, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
