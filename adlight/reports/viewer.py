"""Data for the page's image viewer: scores of all test images of some runs, and pictures of some of the images."""

import io
from collections.abc import Iterable, Sequence
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
KEY = ["category", "path"]  # identifies an image across runs


def viewer_data(runs: Runs, folder: Path, detailed: int, first: str = "") -> dict[str, Any] | None:
    """Collect the data of the first `detailed` runs with predictions, for the viewer of a page in `folder`.

    Returns:
        None if there is nothing to show; otherwise a dictionary with

        * `images`: lists `path`, `label`, `thumb` (data URIs), `category` and `defect` (positions in the next two);
        * `categories`, `defects`: their names;
        * `runs`: a dictionary per run with `name`, `image` (positions in `images`), `score`, `threshold` by category,
          `gallery` (URL of its pictures), `pictures` and `masks` (rows that have one);
        * `left`: names of runs that are not shown; `first`: position of the run named `first`, which is shown first.
    """
    if runs.predictions.empty:
        return None
    parts = {name: rows.reset_index(drop=True) for name, rows in runs.predictions.groupby("name", sort=False)}
    shown = dict([(name, rows) for name, rows in parts.items() if len(rows) <= IMAGES][:detailed])
    if not shown:
        return None
    images = pd.concat([rows[[*KEY, "defect", "label"]] for rows in shown.values()]).drop_duplicates(KEY)
    category, categories = pd.factorize(images["category"], use_na_sentinel=False)
    defect, defects = pd.factorize(images["defect"], use_na_sentinel=False)
    position = pd.Series(range(len(images)), pd.MultiIndex.from_frame(images[KEY]))
    folders = runs.headlines.set_index("name")["folder"]
    galleries = [RunFolder(folders[name]).gallery for name in shown]
    entries = []
    for (name, rows), gallery in zip(shown.items(), galleries, strict=True):
        place = position[pd.MultiIndex.from_frame(rows[KEY])].to_list()
        entry = {"name": name, "image": place, "gallery": link(gallery.path, folder)}
        pictures = {row: mask for row, mask in gallery.rows().items() if row < len(rows)}
        entry |= {"pictures": list(pictures), "masks": [row for row, mask in pictures.items() if mask]}
        entries.append(entry | _describe_scores(rows, categories))
    return {
        "images": {
            "path": images["path"].tolist(),
            "label": images["label"].tolist(),
            "thumb": _make_thumbnails(entries, galleries, len(images)),
            "category": category.tolist(),
            "defect": defect.tolist(),
        },
        "categories": categories.tolist(),
        "defects": defects.tolist(),
        "runs": entries,
        "left": [name for name in parts if name not in shown],
        "first": list(shown).index(first) if first in shown else 0,
    }


def _describe_scores(rows: pd.DataFrame, categories: Iterable[str]) -> dict[str, list[Any]]:
    """List a run's thresholds by category, and its scores to six digits unless rounding would change a decision."""
    thresholds = rows.groupby("category")["threshold"].first()
    rounded = rows["score"].map(lambda score: float(f"{score:.6g}"))
    same = (rounded > rows["threshold"]) == (rows["score"] > rows["threshold"])
    score = rounded.where(same, rows["score"]).tolist()
    return {"score": score, "threshold": [thresholds.get(category) for category in categories]}


def _make_thumbnails(
    entries: Sequence[dict[str, Any]], galleries: Sequence[GalleryFolder], images: int
) -> list[str | None]:
    """Make thumbnails of images in the runs' galleries until `KILOBYTES` are used. -> a thumbnail or None per image."""
    thumbs, room = list[str | None]([None] * images), KILOBYTES * 1000
    for entry, gallery in zip(entries, galleries, strict=True):
        for row in entry["pictures"]:
            place = entry["image"][row]
            if room > 0 and thumbs[place] is None and (thumb := _make_thumbnail(gallery, row)):
                thumbs[place] = thumb
                room -= len(thumb)
    return thumbs


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
