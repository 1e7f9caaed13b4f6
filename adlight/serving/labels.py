"""Labels given on the page, stored with their images in the run's folder, from which `adlight.learn` reads them."""

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

WORDS = ("normal", "anomalous")  # by label
IMAGE, MASK = "image", "mask"  # fields of a form
SUFFIXES = dict(zip(FORMATS, (".png", ".jpg", ".bmp", ".tif"), strict=True))
FULL = (errno.ENOSPC, errno.EDQUOT)


class StoredLabels:
    """The labels of a served run; concurrent requests may add to them.

    Args:
        folder: Folder of the labels; None for an exported graph, which has no run folder.
        most: Largest number of labelled images; 0 to store none.
    """

    def __init__(self, folder: LabelFolder | None = None, most: int = 0) -> None:
        self.folder, self.most = folder, most if folder else 0
        self._lock = Lock()  # file locks do not exclude threads of the same process

    @property
    def refusal(self) -> str | None:
        """Why labels are not stored, or None if they are."""
        if self.most:
            return None
        return "start adlight serve with max_labels=<number>" if self.folder else "serve a run folder, not a graph"

    def check(self, word: str) -> None:
        """Check a request before reading its body.

        Raises:
            HTTPException: 403 labels are not stored here.
            UserError: `word` is neither normal nor anomalous.
        """
        if self.refusal:
            raise HTTPException(403, f"labels are not kept here: {self.refusal}")
        if word not in WORDS:
            raise UserError(unknown_name("label", word, WORDS))

    def describe(self) -> dict[str, Any]:
        """Count the labels, for `GET /labels`; raise an HTTPException (500) if they cannot be read."""
        try:
            records = self.folder.read() if self.folder else []
        except (UserError, OSError) as error:
            raise _explain(error) from error
        anomalous, masks = sum(record.label for record in records), sum(record.mask is not None for record in records)
        counts = {"images": len(records), "normal": len(records) - anomalous, "anomalous": anomalous, "masks": masks}
        return {"max_labels": self.most, "refusal": self.refusal, **counts}

    def add(
        self, image: Upload, picture: Image.Image, word: str, category: str, mask: np.ndarray | None
    ) -> dict[str, Any]:
        """Store an image with its label, which replaces an earlier label of the same image.

        Args:
            image: The uploaded file, stored unchanged.
            picture: The decoded image.
            word: normal or anomalous.
            category: Category; empty if the thresholds of all categories together apply.
            mask: (H, W) bool, the drawn defect; None if no defect was drawn.

        Returns:
            The JSON of `POST /labels`: the stored label, and the label that it replaces, if any.

        Raises:
            HTTPException: 500 the label cannot be stored, 507 there is no room.
        """
        suffix = SUFFIXES.get(str(picture.format), ".jpg")  # Pillow's MPO is a JPEG with a second view
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
        replaced = None if before is None else {"label": WORDS[before.label], "mask": before.mask is not None}
        stored = {"path": image.name, "label": word, "mask": mask is not None, "category": category or None}
        return {**stored, "before": replaced, "changed": changed, "labels": self.describe()}

    def _add(self, record: Record, name: str) -> tuple[Record | None, bool]:
        """Add a label. -> the earlier label of the same image, and whether anything changed."""
        assert self.folder is not None
        with self._lock:
            before = self.folder.find(record.path)
            if before is None and len(self.folder.read()) >= self.most:
                raise HTTPException(507, f"{self.most} labelled images are kept already (max_labels)")
            new, changed = self.folder.add([record], [f"served: {_printable(name)}"])
        return before, bool(new or changed)


def select_files(uploads: Sequence[Upload], word: str) -> tuple[Upload, Upload | None]:
    """Select the image and its mask, if any, by their form fields; raise an HTTPException (400, 422) for others."""
    files = {upload.field: upload for upload in uploads}
    if len(files) < len(uploads) or IMAGE not in files or files.keys() - {IMAGE, MASK}:
        raise HTTPException(400, f"send one file {IMAGE} and, if the defect was drawn, one file {MASK}")
    if MASK in files and word == WORDS[0]:
        raise HTTPException(422, f"a normal image has no {MASK}: leave it out, or send label={WORDS[1]}")
    return files[IMAGE], files.get(MASK)


def decode_mask(upload: Upload | None, size: tuple[int, int], max_pixels: int) -> np.ndarray | None:
    """Decode a mask. -> (H, W) bool, or None without a mask.

    Raises:
        HTTPException: see `decode`; 422 the mask has not the image's `size` (width, height), or marks nothing or
            everything.
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
    traceback.print_exception(error, file=sys.stderr)  # not to the client: it names paths of the server
    reason = error.strerror if isinstance(error, OSError) else "their table is damaged, see the server's output"
    return HTTPException(500, f"labels cannot be kept or read: {reason}")
