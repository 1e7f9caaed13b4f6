"""Find the images to predict for one after another, in constant memory for millions of them."""

import glob
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from adlight.data.listing import (
    IMAGE,
    IMAGE_SUFFIXES,
    describe_folder,
    describe_left_out,
    is_folder,
    sort_many,
    walk,
)
from adlight.types import UserError


class Survey(NamedTuple):
    """The number of images in a place, and a line about other files there, empty if there are none."""

    images: int
    left_out: str


class ImageStream:
    """The images of a file, folder or glob, in sorted order; each iteration searches for them again.

    The paths that match a glob are kept in memory; of a folder's names, only as many as `sort_many` keeps.

    Args:
        text: the file, folder or glob.
    """

    def __init__(self, text: str) -> None:
        self.place = Path(text).expanduser()
        self.is_folder = not self.place.is_file() and is_folder(self.place)
        self._find_ambiguous = lru_cache(maxsize=256)(_find_ambiguous_names)
        self._matches = [] if self.is_folder else self._match()
        parents = {path.parent for path in self._matches}
        self._base = self.place if self.is_folder else Path(os.path.commonpath(parents) if parents else ".")

    def _match(self) -> list[Path]:
        if self.place.is_file():
            return [self.place]
        return [path for path in map(Path, sorted(glob.glob(str(self.place), recursive=True))) if _is_image(path.name)]

    def __iter__(self) -> Iterator[Path]:
        if self.is_folder:
            yield from (Path(path) for kind, path in walk(self.place) if kind == IMAGE)
        else:
            yield from (path for path in sorted(self._matches) if path.is_file())

    def require(self) -> None:
        """Raise a UserError if there are no images; the message says what was searched for, and where."""
        if next(iter(self), None) is None:
            folder = next(place for place in (self.place, *self.place.parents) if place.is_dir())
            problem = f"no images in {self.place.absolute()}: looked for files with {', '.join(sorted(IMAGE_SUFFIXES))}"
            if not os.path.lexists(self.place) and not glob.has_magic(str(self.place)):
                problem = f"{self.place.absolute()} does not exist"
            elif folders := [] if self.is_folder else [*filter(os.path.isdir, glob.glob(str(self.place)))]:
                problem += f" (it matches folders such as {folders[0]}: for the images in them, add /*)"
            raise UserError(f"{problem}; {folder.absolute()} holds {describe_folder(folder)}")

    def survey(self) -> Survey:
        """Count the images and other files."""
        if not self.is_folder:
            return Survey(sum(1 for _ in self), "")
        counts, first = Counter[str](), dict[str, Path]()
        for kind, path in walk(self.place):
            counts[kind] += 1
            if kind not in first:
                first[kind] = Path(path)
        others = {kind: (counts[kind], path) for kind, path in first.items() if kind != IMAGE}
        return Survey(counts[IMAGE], describe_left_out(others))

    def name(self, path: Path) -> str:
        """Name the pictures of an image by its path relative to the folder, or to the common folder of a glob's images.

        The suffix is dropped unless another image in the same folder would then have the same name.
        """
        kept = path if path.name in self._find_ambiguous(path.parent) else path.with_suffix("")
        return str(kept.relative_to(self._base))


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _find_ambiguous_names(folder: Path) -> frozenset[str]:
    """Find the images in a folder whose names without suffix are those of other images' pictures."""
    found = set[str]()
    with ExitStack() as files:
        with os.scandir(folder) as entries:
            names = sort_many(((entry.name, IMAGE) for entry in entries if _is_image(entry.name)), files)
        for _, group in groupby((name for name, _ in names), lambda name: name.partition(".")[0]):
            members = list(group)  # equal stems are in the same group
            stems = Counter(os.path.splitext(name)[0] for name in members)
            for name in members:  # shorter ones first: beside a.jpg and a.png, a.png.jpg keeps its suffix too
                if stems[stem := os.path.splitext(name)[0]] > 1 or stem in found:
                    found.add(name)
    return frozenset(found)
