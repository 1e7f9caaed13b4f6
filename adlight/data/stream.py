"""Images to predict for, found one after the other: a million of them in constant memory."""

import glob
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from adlight.data.listing import IMAGE_SUFFIXES, describe_counts, describe_folder, is_folder, sort_many, walk
from adlight.types import UserError


class Survey(NamedTuple):
    """What lies in a place: how many images, and a line on other files, empty without any."""

    images: int
    left_out: str


class ImageStream:
    """The images that a file, a folder or a glob names, in sorted order; every pass looks for them anew.

    The paths that a glob matches are kept in memory; of the names in a folder, no more than `sort_many` keeps.

    Args:
        text: the file, folder or glob.
    """

    def __init__(self, text: str) -> None:
        self.place = Path(text).expanduser()
        self.is_folder = not self.place.is_file() and is_folder(self.place)
        self._alike = lru_cache(maxsize=256)(_alike_names)
        self._matches = [] if self.is_folder else self._match()
        parents = {path.parent for path in self._matches}
        self._base = self.place if self.is_folder else Path(os.path.commonpath(parents) if parents else ".")

    def _match(self) -> list[Path]:
        if self.place.is_file():
            return [self.place]
        return [path for path in map(Path, sorted(glob.glob(str(self.place), recursive=True))) if _is_image(path.name)]

    def __iter__(self) -> Iterator[Path]:
        if self.is_folder:
            yield from (Path(path) for kind, path in walk(self.place) if kind == "")
        else:
            yield from (path for path in sorted(self._matches) if path.is_file())

    def require(self) -> None:
        """Refuse a place without images.

        Raises:
            UserError: there are none; the message says where and for what was looked.
        """
        if next(iter(self), None) is None:
            folder = next(place for place in (self.place, *self.place.parents) if place.is_dir())  # what exists of it
            raise UserError(
                f"no images in {self.place.absolute()}: looked for files with {', '.join(sorted(IMAGE_SUFFIXES))}; "
                f"{folder.absolute()} holds {describe_folder(folder)}"
            )

    def survey(self) -> Survey:
        """Count what is there."""
        if not self.is_folder:
            return Survey(sum(1 for _ in self), "")
        counts, first = Counter[str](), dict[str, Path]()
        for kind, path in walk(self.place):
            counts[kind] += 1
            if kind not in first:
                first[kind] = Path(path)
        return Survey(counts[""], describe_counts({kind: (counts[kind], path) for kind, path in first.items() if kind}))

    def name(self, path: Path) -> str:
        """Name an image's pictures: relative to the folder, or to the one that holds all images of a glob.

        The suffix goes, unless another image beside it would then have the same name.
        """
        kept = path if path.name in self._alike(path.parent) else path.with_suffix("")
        return str(kept.relative_to(self._base))


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _alike_names(folder: Path) -> frozenset[str]:
    """Find the images in a folder whose names differ in nothing but the suffix."""
    found = set[str]()
    with ExitStack() as files:
        with os.scandir(folder) as entries:
            names = sort_many(((entry.name, "") for entry in entries if _is_image(entry.name)), files)
        for _, group in groupby((name for name, _ in names), lambda name: name.partition(".")[0]):
            few = list(group)  # names of one stem are among these
            stems = Counter(os.path.splitext(name)[0] for name in few)
            found.update(name for name in few if stems[os.path.splitext(name)[0]] > 1)
    return frozenset(found)
