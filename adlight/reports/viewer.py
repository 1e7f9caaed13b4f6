"""The data of the page's image viewer: all test images of some runs with their scores, and pictures of some images."""

import io
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from adlight.reports.collect import Runs
from adlight.reports.sections import link, to_data_uri
from adlight.runs.folder import RunFolder
from adlight.runs.subfolders import GalleryFolder

SIDE, QUALITY = 80, 40  # longer side of a thumbnail in pixels, and WebP's quality
KILOBYTES = 500  # size of all thumbnails in the page; further pictures are loaded from the runs' galleries
IMAGES = 20_000  # runs with more test images are not shown
KEY = ["category", "path"]  # identifies an image in all runs


def viewer_data(runs: Runs, folder: Path, detailed: int, first: str = "") -> dict[str, Any] | None:
    """Collect the data of the first `detailed` runs with predictions, for the viewer of a page in `folder`.

    Args:
        runs: the collected runs.
        folder: folder of the page.
        detailed: largest number of runs.
        first: name of the run to show first.

    Returns:
        None if there is nothing to show, or

        * `images`: lists `path`, `label`, `thumb` (data URIs), `category` and `defect` (positions in the next two);
        * `categories`, `defects`: their names;
        * `runs`: a dictionary each with `name`, `image` (positions in `images`), `score`, `threshold` by category,
          `gallery` (URL of its pictures), `pictures` and `masks` (rows that have one);
        * `left`: names of runs that are not shown;
        * `first`: position of the run to show first.
    """
    names = [name for name in runs.headlines["name"] if name in set(runs.predictions.get("name", ()))]
    parts = {name: runs.predictions[runs.predictions["name"] == name].reset_index(drop=True) for name in names}
    shown = {name: rows for name, rows in parts.items() if 0 < len(rows) <= IMAGES}
    shown = dict(list(shown.items())[:detailed])
    if not shown:
        return None
    images = pd.concat([rows[[*KEY, "defect", "label"]] for rows in shown.values()]).drop_duplicates(KEY)
    positions = pd.Series(range(len(images)), pd.MultiIndex.from_frame(images[KEY]))
    folders = runs.headlines.set_index("name")["folder"]
    galleries = {name: RunFolder(folders[name]).gallery for name in shown}
    categories, defects = (list(images[name].unique()) for name in ("category", "defect"))
    entries, thumbs, room = [], list[str | None]([None] * len(images)), KILOBYTES * 1000
    for name, rows in shown.items():
        image = positions[pd.MultiIndex.from_frame(rows[KEY])].to_list()
        pictures = {row: mask for row, mask in galleries[name].rows().items() if row < len(rows)}
        for row in pictures:
            if room > 0 and thumbs[image[row]] is None and (thumb := _make_thumbnail(galleries[name], row)):
                thumbs[image[row]] = thumb
                room -= len(thumb)
        thresholds = rows.groupby("category")["threshold"].first().to_dict()
        entries.append(
            {
                "name": name,
                "image": image,
                "score": _round_scores(rows),
                "threshold": [thresholds.get(category) for category in categories],
                "gallery": link(galleries[name].path, folder),
                "pictures": list(pictures),
                "masks": [row for row, mask in pictures.items() if mask],
            }
        )
    columns = {"path": images["path"].tolist(), "label": images["label"].tolist(), "thumb": thumbs}
    columns |= {"category": images["category"].map(categories.index).tolist()}
    columns |= {"defect": images["defect"].map(defects.index).tolist()}
    return {
        "images": columns,
        "categories": categories,
        "defects": defects,
        "runs": entries,
        "left": [name for name in parts if name not in shown],
        "first": list(shown).index(first) if first in shown else 0,
    }


def _round_scores(rows: pd.DataFrame) -> list[float]:
    """Round scores to six digits, except those whose verdict would change."""
    rounded = rows["score"].map(lambda score: float(f"{score:.6g}"))
    same = (rounded > rows["threshold"]) == (rows["score"] > rows["threshold"])
    return rounded.where(same, rows["score"]).tolist()


def _make_thumbnail(gallery: GalleryFolder, row: int) -> str | None:
    """Make a thumbnail of a picture as a data URI; None if the picture cannot be read."""
    try:
        with Image.open(gallery.image_path(row)) as image:
            small = image.convert("RGB")
    except (OSError, ValueError):
        return None
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=QUALITY, method=4)
    return to_data_uri("webp", buffer)
