"""Files of a data set: which images lie in a folder, and what in it is left out."""

import heapq
import json
import os
import stat
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile

from adlight.types import UserError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
_FOLDER, _LINK = "folder", "link to a folder"
MOST_NAMES = 2**16  # of a folder that are sorted in memory
BROKEN, LOOP, EMPTY = "broken link", "link to a folder around it", "empty folder"


def list_images(folder: Path) -> list[Path]:
    """List the image files in a folder and its sub-folders, sorted; see `scan`.

    Raises:
        UserError: a folder that may not be read.
    """
    return scan(folder)[""]


def scan(folder: Path) -> Mapping[str, list[Path]]:
    """List the images in a folder and its sub-folders by ``""``, other files by what they are, such as `.webp`.

    Links are followed. Hidden files and folders, and a folder that does not exist, hold nothing.

    Raises:
        UserError: a folder that may not be read.
    """
    found = defaultdict(list)
    if is_folder(folder):
        for kind, path in walk(folder):
            found[kind].append(Path(path))
    return found


def walk(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the kind and path of each file that `scan` finds, in sorted order, one after the other.

    Raises:
        UserError: a folder that may not be read.
    """
    return _walk(str(folder), ())


def _walk(folder: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, str]]:
    """Yield each file's kind and path, sorted; no more is kept than some names in the folders around it.

    `above`: identities of the folders around, in which a link must not end.
    """
    with ExitStack() as files:
        try:
            own = os.stat(folder)
            with os.scandir(folder) as entries:
                visible = ((entry.name, _kind(entry)) for entry in entries if not entry.name.startswith("."))
                found = sort_many(visible, files)
        except OSError as error:
            raise _unreadable(folder, error) from error
        chain, name = (*above, (own.st_dev, own.st_ino)), ""
        for name, kind in found:
            path = os.path.join(folder, name)
            if kind == _LINK:
                target = os.stat(path)
                kind = LOOP if (target.st_dev, target.st_ino) in chain else _FOLDER
            if kind == _FOLDER:
                yield from _walk(path, chain)
            else:
                yield kind, path
        if not name:
            yield EMPTY, folder


def sort_many(entries: Iterable[tuple[str, str]], files: ExitStack) -> Iterator[tuple[str, str]]:
    """Sort names and their kinds in bounded memory: every `MOST_NAMES` in a temporary file, all of which are merged.

    Args:
        entries: names and kinds; all are read before this returns.
        files: closes the temporary files.
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
    """Name what an entry of a folder is: `_FOLDER`, `_LINK` to one, a kind of file, "" of an image."""
    if entry.is_symlink() and not os.path.exists(entry.path):
        return BROKEN
    if entry.is_dir():
        return _LINK if entry.is_symlink() else _FOLDER  # only a link can lead back
    suffix = os.path.splitext(entry.name)[1].lower()
    if not entry.is_file():
        return "neither file nor folder"
    return "" if suffix in IMAGE_SUFFIXES else suffix or "without a suffix"


def describe_left_out(found: Mapping[str, Iterable[Path]]) -> str:
    """Count files by what they are, and name the first, in one line; empty where there are none."""
    paths = {kind: set(some) for kind, some in found.items() if kind and some}
    return describe_counts({kind: (len(some), min(some)) for kind, some in paths.items()})


def describe_counts(found: Mapping[str, tuple[int, Path]]) -> str:
    """Do so from how many files there are of each kind, and which is the first."""
    if not found:
        return ""
    counts = Counter({kind: count for kind, (count, _) in found.items()}).most_common()
    shown, known = ", ".join(f"{count} {kind}" for kind, count in counts), ", ".join(sorted(IMAGE_SUFFIXES))
    return f"left out: {shown}, such as {found[counts[0][0]][1]} (read are {known})"


def is_folder(path: Path) -> bool:
    """Say whether a folder is there.

    Raises:
        UserError: this may not be known, as a folder around it may not be read.
    """
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except PermissionError as error:
        raise _unreadable(path, error) from error
    except (OSError, ValueError):
        return False


def list_folders(folder: Path) -> list[str]:
    """List the names of the visible sub-folders, sorted; empty if `folder` does not exist.

    Raises:
        UserError: a folder that may not be read, or a name that ends in a space, which no message would show.
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
    return UserError(f"cannot read folder {place}: {error.strerror}: change its permissions, or move it elsewhere")


def describe_folder(folder: Path) -> str:
    """Describe the contents of a folder, for error messages."""
    if not folder.is_dir():
        return "a file" if folder.exists() else "no such folder"
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if names[5:] else "") or "an empty folder"
