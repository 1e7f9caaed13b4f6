"""An inspector's labels, kept with their images beside the run, where `adlight.learn` finds them."""

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

WORDS = ("normal", "anomalous")  # of the labels 0 and 1
IMAGE, MASK = "image", "mask"  # fields of a form
SUFFIXES = dict(zip(FORMATS, (".png", ".jpg", ".bmp", ".tif"), strict=True))
FULL = (errno.ENOSPC, errno.EDQUOT)


class KeptLabels:
    """The labels beside a served run; threads may share them.

    Args:
        folder: folder of the labels; None for a graph, which belongs to no run.
        most: largest number of labelled images; 0 if none are accepted.
    """

    def __init__(self, folder: LabelFolder | None = None, most: int = 0) -> None:
        self.folder, self.most = folder, most if folder else 0
        self._lock = Lock()  # file locks exclude other processes, not threads

    @property
    def refusal(self) -> str | None:
        """Why no labels are kept; None if they are."""
        if self.most:
            return None
        return "start adlight.serve with max_labels=<number>" if self.folder else "serve a run folder, not a graph"

    def check(self, word: str) -> None:
        """Check a request before its body is read.

        Raises:
            HTTPException: 403, no labels are kept.
            UserError: `word` is neither normal nor anomalous.
        """
        if self.refusal:
            raise HTTPException(403, f"labels are not kept here: {self.refusal}")
        if word not in WORDS:
            raise UserError(unknown_name("label", word, WORDS))

    def describe(self) -> dict[str, Any]:
        """Count the labels, for `GET /labels`.

        Raises:
            HTTPException: 500, the labels cannot be read.
        """
        try:
            kept = self.folder.read() if self.folder else []
        except (UserError, OSError) as error:
            raise _explain(error) from error
        anomalous, masks = sum(record.label for record in kept), sum(record.mask is not None for record in kept)
        counts = {"images": len(kept), "normal": len(kept) - anomalous, "anomalous": anomalous, "masks": masks}
        return {"max_labels": self.most, "refusal": self.refusal, **counts}

    def keep(
        self, image: Upload, picture: Image.Image, word: str, category: str, mask: np.ndarray | None
    ) -> dict[str, Any]:
        """Keep an image with its label; the last label of an image counts.

        Args:
            image: the uploaded file, which is kept unchanged.
            picture: the decoded image.
            word: normal or anomalous.
            category: the image's category; empty if it is compared with the thresholds of all categories together.
            mask: (H, W) bool, the defect; None if it was not drawn.

        Returns:
            The JSON of `POST /labels`: the label, and the image's previous label if there was one.

        Raises:
            HTTPException: 500, the label cannot be kept; 507, there is no room.
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
        """Add a label. -> the image's previous record, and whether anything has changed."""
        assert self.folder is not None
        with self._lock:
            before = self.folder.find(record.path)
            if before is None and len(self.folder.read()) >= self.most:
                raise HTTPException(507, f"{self.most} labelled images are kept already (max_labels)")
            new, changed = self.folder.add([record], [f"served: {_printable(name)}"])
        return before, bool(new or changed)


def pick(uploads: Sequence[Upload], word: str) -> tuple[Upload, Upload | None]:
    """Find the image and its mask by the fields of the form.

    Raises:
        HTTPException: 400, a field is unknown, repeated or missing; 422, a normal image has a mask.
    """
    found = {upload.field: upload for upload in uploads}
    if len(found) < len(uploads) or IMAGE not in found or found.keys() - {IMAGE, MASK}:
        raise HTTPException(400, f"send one file {IMAGE} and, if the defect was drawn, one file {MASK}")
    if MASK in found and word == WORDS[0]:
        raise HTTPException(422, f"a normal image has no {MASK}: leave it out, or send label={WORDS[1]}")
    return found[IMAGE], found.get(MASK)


def decode_mask(upload: Upload | None, size: tuple[int, int], max_pixels: int) -> np.ndarray | None:
    """Decode the mask of an image of `size` (width, height). -> (H, W) bool; None if there is no mask.

    Raises:
        HTTPException: see `decode`; 422, the mask has another size, or marks nothing or everything.
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
