"""Checkpoints are verified before use: by the hash that their run noted, or else by the checksums of their archive.

Hashes lie beside the folder of the checkpoints, as `sha256sum` writes them. One is noted before its file is put in
place, together with that of the file that lies there until then: whenever a run is killed, the file's hash is noted.
"""

import hashlib
import os
import re
import zipfile
from pathlib import Path

from adlight.runs.files import write_atomically
from adlight.types import UserError

_LINE = re.compile(r"^([0-9a-f]{64})  .*/([^/\n]+)$", re.MULTILINE)


def put_in_place(partial: Path, path: Path) -> None:
    """Rename a file that is whole to a checkpoint's name, and note its hash."""
    fresh, before = hash_file(partial), _noted(path)
    if path.exists() and not before:
        before = [hash_file(path)]  # of a version of adlight that noted none
    _note(path, [fresh, *before])
    os.replace(partial, path)
    _note(path, [fresh])


def verify(path: Path) -> None:
    """Refuse a checkpoint that has changed since it was written.

    Raises:
        UserError: its hash is not noted; or, where none is, its archive is damaged.
    """
    if noted := _noted(path):
        if hash_file(path) not in noted:
            raise UserError(
                f"{path} is damaged: its SHA-256 is not the one in {_note_path(path)}; train anew, name another "
                "checkpoint or, if you put it there yourself, delete its line there"
            )
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # whatever stands in a header: no archive, a compression that does not exist, ...
        raise UserError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}): train anew or name another"
        ) from error
    if damaged is not None:
        raise UserError(f"{path} is damaged ({damaged} has another checksum): train anew or name another checkpoint")


def _note_path(path: Path) -> Path:
    folder = path.absolute().parent
    return folder.with_name(f"{folder.name}.sha256")


def _read(path: Path) -> list[tuple[str, str]]:
    """Read the hashes noted for the checkpoints of a folder, and whose they are."""
    note = _note_path(path)
    text = note.read_text(errors="replace") if note.is_file() else ""
    if len(found := _LINE.findall(text)) < len(text.splitlines()):
        raise UserError(f"{note} is damaged: it holds other lines than sha256sum writes; restore it, or remove it")
    return found


def _noted(path: Path) -> list[str]:
    return [one for one, name in _read(path) if name == path.name]


def _note(path: Path, hashes: list[str]) -> None:
    lines = [*((one, path.name) for one in hashes), *((one, name) for one, name in _read(path) if name != path.name)]
    folder = path.absolute().parent.name
    write_atomically(_note_path(path), "".join(f"{one}  {folder}/{name}\n" for one, name in lines))


def hash_file(path: Path) -> str:
    """Compute a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
