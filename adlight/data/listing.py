"""Files of a data set: which images lie in a folder, and what in it is left out."""

import glob
import os
import stat
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from adlight.types import UserError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
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
        for kind, path in _walk(str(folder), ()):
            found[kind].append(Path(path))
    return defaultdict(list, {kind: sorted(paths) for kind, paths in found.items()})


def _walk(folder: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, str]]:
    """Yield each file's kind and path. `above`: identities of the folders around, in which a link must not end."""
    try:
        own = os.stat(folder)
        with os.scandir(folder) as entries:
            shown = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise _unreadable(folder, error) from error
    if not shown:
        yield EMPTY, folder
    chain = (*above, (own.st_dev, own.st_ino))
    for entry in shown:
        suffix = os.path.splitext(entry.name)[1].lower()
        if entry.is_symlink() and not os.path.exists(entry.path):
            yield BROKEN, entry.path
        elif entry.is_dir():
            target = entry.stat() if entry.is_symlink() else None  # only a link can lead back
            if target is not None and (target.st_dev, target.st_ino) in chain:
                yield LOOP, entry.path
            else:
                yield from _walk(entry.path, chain)
        elif entry.is_file():
            yield "" if suffix in IMAGE_SUFFIXES else suffix or "without a suffix", entry.path
        else:
            yield "neither file nor folder", entry.path


def describe_left_out(found: Mapping[str, Iterable[Path]]) -> str:
    """Count files by what they are, and name the first, in one line; empty where there are none."""
    paths = {kind: sorted(set(some)) for kind, some in found.items() if kind and some}
    if not paths:
        return ""
    counts = Counter({kind: len(some) for kind, some in paths.items()}).most_common()
    (most, _), known = counts[0], ", ".join(sorted(IMAGE_SUFFIXES))
    shown = ", ".join(f"{count} {kind}" for kind, count in counts)
    return f"left out: {shown}, such as {paths[most][0]} (read are {known})"


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


def find_images(text: str) -> list[Path]:
    """List the images that a file, a folder or a glob names, sorted.

    Raises:
        UserError: there are none; the message says where and for what it looked.
    """
    path = Path(text).expanduser()
    if path.is_file():
        return [path]
    matches = list_images(path) if path.is_dir() else sorted(map(Path, glob.glob(str(path), recursive=True)))
    found = [match for match in matches if match.suffix.lower() in IMAGE_SUFFIXES and match.is_file()]
    if not found:
        folder = next(place for place in (path, *path.parents) if place.is_dir())  # the part of a glob that exists
        raise UserError(
            f"no images in {path.absolute()}: looked for files with {', '.join(sorted(IMAGE_SUFFIXES))}; "
            f"{folder.absolute()} holds {describe_folder(folder)}"
        )
    return found


def describe_folder(folder: Path) -> str:
    """Describe the contents of a folder, for error messages."""
    if not folder.is_dir():
        return "a file" if folder.exists() else "no such folder"
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if names[5:] else "") or "an empty folder"
