"""Checkpoints are verified before use: by the hash that their run noted, or else by the checksums of their archive.

A hash lies beside its file, as `sha256sum` writes it. It is noted before the file is put in place, together with that
of the file that lies there until then: whenever a run is killed, the file's hash is one of those noted.
"""

import hashlib
import os
import re
import zipfile
from pathlib import Path

from adlight.runs.files import write_atomically
from adlight.types import UserError

_HASH = re.compile(r"^[0-9a-f]{64}\b", re.MULTILINE)


def put_in_place(partial: Path, path: Path) -> None:
    """Rename a file that is whole to a checkpoint's name, and note its hash."""
    fresh, before = _hash(partial), _noted(path)
    if path.exists() and not before:
        before = [_hash(path)]  # of a version of adlight that noted none
    _note(path, [fresh, *before])
    os.replace(partial, path)
    _note(path, [fresh])


def verify(path: Path) -> None:
    """Refuse a checkpoint that has changed since it was written.

    Raises:
        UserError: its hash is not noted; or, where none is, its archive is damaged.
    """
    if noted := _noted(path):
        if _hash(path) not in noted:
            raise UserError(
                f"{path} is damaged: its SHA-256 is not that of {_note_path(path).name} beside it; train anew, name "
                "another checkpoint or, if you put it there yourself, delete that file"
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
    return path.with_name(f"{path.name}.sha256")


def _note(path: Path, hashes: list[str]) -> None:
    write_atomically(_note_path(path), "".join(f"{one}  {path.name}\n" for one in hashes))


def _noted(path: Path) -> list[str]:
    note = _note_path(path)
    return _HASH.findall(note.read_text(errors="replace")) if note.exists() else []


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
