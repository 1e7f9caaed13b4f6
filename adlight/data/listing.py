"""Find the images in folders, count the files that are left out, and match masks to images by name.

All functions raise a UserError that names the folder if a folder cannot be read.
"""

import heapq
import json
import os
import stat
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile

from adlight.types import UserError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
NORMAL_NAMES = {"good", "normal", "ok"}
IMAGE, BROKEN, LOOP, EMPTY = "", "broken link", "link to a folder around it", "empty folder"
_FOLDER, _LINK = "folder", "link to a folder"
MOST_NAMES = 2**16  # largest number of names in a folder that are sorted in memory


def list_images(folder: Path) -> list[Path]:
    """List the image files in a folder and its sub-folders, sorted."""
    return scan(folder)[IMAGE]


def means_normal(folder: str) -> bool:
    """Return whether a folder's name means that its images are normal."""
    return folder.strip().lower() in NORMAL_NAMES


def scan(folder: Path) -> Mapping[str, list[Path]]:
    """List the files that `walk` finds by kind; a folder that does not exist is empty."""
    found = defaultdict(list)
    if is_folder(folder):
        for kind, path in walk(folder):
            found[kind].append(Path(path))
    return found


def walk(folder: Path | str, around: tuple[tuple[int, int], ...] = ()) -> Iterator[tuple[str, str]]:
    """Yield the kind and path of each file in a folder and its sub-folders, sorted by path.

    The kind is `IMAGE`, a suffix such as `.webp`, or a description. Links are followed, hidden files are ignored. Only
    some names in the current folder and its parents are kept in memory, see `sort_many`. `around` holds the devices and
    inodes of the parents, so that no link is followed in circles.
    """
    with ExitStack() as files:
        try:
            own = os.stat(folder)
            with os.scandir(folder) as entries:
                visible = ((entry.name, _kind(entry)) for entry in entries if not entry.name.startswith("."))
                found = sort_many(visible, files)
        except OSError as error:
            raise _unreadable(folder, error) from error
        chain, name = (*around, (own.st_dev, own.st_ino)), ""
        for name, kind in found:
            path = os.path.join(folder, name)
            if kind == _LINK:
                target = os.stat(path)
                kind = LOOP if (target.st_dev, target.st_ino) in chain else _FOLDER
            if kind == _FOLDER:
                yield from walk(path, chain)
            else:
                yield kind, path
        if not name:
            yield EMPTY, str(folder)


def sort_many(entries: Iterable[tuple[str, str]], files: ExitStack) -> Iterator[tuple[str, str]]:
    """Sort names and their kinds in bounded memory by merging sorted temporary files of `MOST_NAMES` names.

    All entries are read before this returns; `files` closes the temporary files.
    """
    parts, rest = list[Iterable[tuple[str, str]]](), iter(entries)
    while part := sorted(islice(rest, MOST_NAMES)):
        if len(part) < MOST_NAMES:
            parts.append(part)
            break
        file = files.enter_context(TemporaryFile("w+"))  # noqa: SIM115
        file.writelines(json.dumps(entry) + "\n" for entry in part)
        file.seek(0)
        parts.append(map(tuple, map(json.loads, file)))
    return heapq.merge(*parts)


def _kind(entry: os.DirEntry[str]) -> str:
    if entry.is_symlink() and not os.path.exists(entry.path):
        return BROKEN
    if entry.is_dir():
        return _LINK if entry.is_symlink() else _FOLDER  # only a link can lead back
    suffix = os.path.splitext(entry.name)[1].lower()
    if not entry.is_file():
        return "neither file nor folder"
    return IMAGE if suffix in IMAGE_SUFFIXES else suffix or "without a suffix"


def describe_left_out(found: Mapping[str, tuple[int, Path]]) -> str:
    """Describe the number of files of each kind and the first file, in one line; empty without files."""
    if not found:
        return ""
    counts = Counter({kind: count for kind, (count, _) in found.items()}).most_common()
    shown, known = ", ".join(f"{count} {kind}" for kind, count in counts), ", ".join(sorted(IMAGE_SUFFIXES))
    return f"left out: {shown}, such as {found[counts[0][0]][1]} (read are {known})"


def is_folder(path: Path) -> bool:
    """Return whether a folder exists; raise a UserError if a parent folder cannot be read."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except PermissionError as error:
        raise _unreadable(path, error) from error
    except (OSError, ValueError):
        return False


def list_folders(folder: Path) -> list[str]:
    """List the names of the visible sub-folders, sorted; empty if `folder` does not exist.

    Names that begin or end with a space are rejected, because messages would not show the space.
    """
    if not is_folder(folder):
        return []
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise _unreadable(folder, error) from error
    found = [name for name in names if is_folder(folder / name)]
    for name in found:
        if name != name.strip():
            raise UserError(f"the name of folder {str(folder / name)!r} begins or ends with a space: rename it")
    return found


def _unreadable(path: str | Path, error: OSError) -> UserError:
    place = error.filename or path
    return UserError(f"cannot read folder {place}: {error.strerror}: change its permissions, or move it")


def describe_folder(folder: Path) -> str:
    """Describe the contents of a folder, for error messages."""
    if not folder.is_dir():
        return "a file" if folder.exists() else "no such folder"
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if names[5:] else "") or "an empty folder"


def match_masks(images: Sequence[Path], folder: Path, masks: Sequence[Path], mask_folder: Path) -> dict[Path, str]:
    """Match masks called `<stem>` or `<stem>_mask` to images. -> the mask of each image that has one.

    A mask lies in the same sub-folder of `mask_folder` as its image in `folder` or, failing that, in `mask_folder`.

    Raises:
        UserError: two masks match one image, or two images match one mask.
    """
    by_name = defaultdict(list)
    for mask in masks:
        by_name[mask.relative_to(mask_folder).with_suffix("")].append(mask)
    image_of: dict[Path, Path] = {}
    for image in images:
        name = image.relative_to(folder).with_suffix("")
        found: list[Path] = []
        for stem in (name, Path(name.name)):
            found = found or [*by_name.get(stem, []), *by_name.get(stem.with_name(f"{stem.name}_mask"), [])]
        if len(found) > 1:
            raise UserError(f"two masks for {image}: {found[0]} and {found[1]}: remove one of them")
        if found and found[0] in image_of:
            raise UserError(
                f"mask {found[0]} belongs to two images: {image_of[found[0]]} and {image}: rename one and its mask"
            )
        image_of |= {mask: image for mask in found}
    return {image: str(mask) for mask, image in image_of.items()}
