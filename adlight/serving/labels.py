"""What an inspector says of images: kept with them beside the run, where `adlight.learn` looks for it."""

import errno
import shutil
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image
from starlette.exceptions import HTTPException

from adlight.data.images import to_mask
from adlight.runs.labels import LabelFolder
from adlight.serving.uploads import FORMATS, Upload, decode
from adlight.types import Record, UserError, unknown_name

WORDS = ("normal", "anomalous")  # by their labels
IMAGE, MASK = "image", "mask"  # fields of a form
SUFFIXES = dict(zip(FORMATS, (".png", ".jpg", ".bmp", ".tif"), strict=True))
FULL = (errno.ENOSPC, errno.EDQUOT)


class KeptLabels:
    """The labels beside a served run, to which many requests add, one after the other.

    Args:
        folder: where they lie; None for a graph, which lies in no run.
        most: labelled images that are kept; 0: none are taken.
    """

    def __init__(self, folder: LabelFolder | None = None, most: int = 0) -> None:
        self.folder, self.most = folder, most if folder else 0
        self._lock = Lock()  # those of files are a process's, not a thread's

    @property
    def refusal(self) -> str | None:
        """Why no labels are kept; None: they are."""
        if self.most:
            return None
        return "start adlight.serve with max_labels=<number>" if self.folder else "serve a run folder, not a graph"

    def check(self, word: str) -> None:
        """Refuse a request before anything of it is read.

        Raises:
            HTTPException: 403 no labels are kept.
            UserError: `word` is neither normal nor anomalous.
        """
        if self.refusal:
            raise HTTPException(403, f"labels are not kept here: {self.refusal}")
        if word not in WORDS:
            raise UserError(unknown_name("label", word, WORDS))

    def describe(self) -> dict[str, Any]:
        """Count the labels there are, for `GET /labels`.

        Raises:
            HTTPException: 500 they cannot be read.
        """
        try:
            kept = self.folder.read() if self.folder else []
        except (UserError, OSError) as error:
            raise _explain(error) from error
        anomalous, masks = sum(one.label for one in kept), sum(one.mask is not None for one in kept)
        counts = {"images": len(kept), "normal": len(kept) - anomalous, "anomalous": anomalous, "masks": masks}
        return {"max_labels": self.most, "refusal": self.refusal, **counts}

    def keep(
        self, image: Upload, picture: Image.Image, word: str, category: str, mask: np.ndarray | None
    ) -> dict[str, Any]:
        """Keep an image with its label; the last label of an image counts.

        Args:
            image: as it was sent, and so it is kept.
            picture: the same, decoded.
            word: normal or anomalous.
            category: empty where the thresholds of all together decide.
            mask: (H, W) bool, the defect where it was drawn.

        Returns:
            The JSON of `POST /labels`: what is kept, and as what the image was kept before, if it was.

        Raises:
            HTTPException: 500 it cannot be kept, 507 there is no room.
        """
        suffix = SUFFIXES.get(str(picture.format), ".jpg")  # a JPEG with a second view has a format of its own
        try:
            with TemporaryDirectory() as scratch:
                path, drawn = Path(scratch) / f"image{suffix}", Path(scratch) / "mask.png"
                with path.open("wb") as file:
                    image.file.seek(0)
                    shutil.copyfileobj(image.file, file)
                if mask is not None:
                    Image.fromarray(mask).save(drawn)
                label, place = WORDS.index(word), None if mask is None else str(drawn)
                before, changed = self._add(Record(str(path), category, label=label, mask=place), image.name)
        except (UserError, OSError) as error:
            raise _explain(error) from error
        was = None if before is None else {"label": WORDS[before.label], "mask": before.mask is not None}
        found = {"path": image.name, "label": word, "mask": mask is not None, "category": category or None}
        return {**found, "before": was, "changed": changed, "labels": self.describe()}

    def _add(self, record: Record, name: str) -> tuple[Record | None, bool]:
        """Add a label. -> that of the same image before, and whether anything is new."""
        assert self.folder is not None
        with self._lock:
            before = self.folder.find(record.path)
            if before is None and len(self.folder.read()) >= self.most:
                raise HTTPException(507, f"{self.most} labelled images are kept already (max_labels)")
            new, changed = self.folder.add([record], [f"served: {_printable(name)}"])
        return before, bool(new or changed)


def pick(uploads: Sequence[Upload], word: str) -> tuple[Upload, Upload | None]:
    """Tell an image from its mask by the fields of the form.

    Raises:
        HTTPException: 400 another field, or one of them twice or not at all; 422 a normal image with a mask.
    """
    found = {one.field: one for one in uploads}
    if len(found) < len(uploads) or IMAGE not in found or found.keys() - {IMAGE, MASK}:
        raise HTTPException(400, f"send one file {IMAGE} and, if the defect was drawn, one file {MASK}")
    if MASK in found and word == WORDS[0]:
        raise HTTPException(422, f"a normal image has no {MASK}: leave it out, or send label={WORDS[1]}")
    return found[IMAGE], found.get(MASK)


def decode_mask(upload: Upload | None, size: tuple[int, int], max_pixels: int) -> np.ndarray | None:
    """Decode a mask of an image's (width, height). -> (H, W) bool; None without one.

    Raises:
        HTTPException: as of `decode`; 422 its size is another, or it marks nothing or everything.
    """
    if upload is None:
        return None
    mask = decode(upload, max_pixels)
    if mask.size != size:
        sizes = "x".join(map(str, mask.size)), "x".join(map(str, size))
        raise HTTPException(422, f"the mask {upload.name} is {sizes[0]}, its image upright {sizes[1]} pixels")
    try:
        return to_mask(mask)
    except UserError as error:
        raise HTTPException(422, f"the mask {upload.name}: {error}") from error


def _printable(name: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in name)


def _explain(error: OSError | UserError) -> HTTPException:
    if isinstance(error, OSError) and error.errno in FULL:
        return HTTPException(507, "the disk is full: the label was not kept")
    traceback.print_exception(error, file=sys.stderr)  # paths are the server's own
    reason = error.strerror if isinstance(error, OSError) else "their table is damaged, see the server's output"
    return HTTPException(500, f"labels cannot be kept or read: {reason}")
