"""Checkpoint files: written with their hash, verified before use, and loaded into modules.

Hashes lie beside the folder of the checkpoints, in the format of `sha256sum`. Before a checkpoint replaces an older
one, the hashes of both are noted: whenever the run is killed, the hash of the file that is there is noted.
"""

import hashlib
import os
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adlight.runs.files import write_atomically
from adlight.types import UserError

if TYPE_CHECKING:  # torch takes seconds: not for --help
    from torch import nn

_ORIGIN = "checkpoint_sha256"
_LINE = re.compile(r"^([0-9a-f]{64})  .*/([^/\n]+)$", re.MULTILINE)


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values to a checkpoint, whole or not at all, and note its hash."""
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    try:
        with partial.open("wb") as file:
            torch.save(content, file)
        put_in_place(partial, path)
    except RuntimeError as error:
        if error.__context__ is not None:  # torch hides what was raised while it wrote: a full disk or Ctrl-C
            raise error.__context__ from None
        raise
    finally:
        partial.unlink(missing_ok=True)


def put_in_place(partial: Path, path: Path) -> None:
    """Rename a complete file to a checkpoint's name, and note its hash."""
    new = hash_file(partial)
    _note(path, [new, *_noted_hashes(path)])
    os.replace(partial, path)
    _note(path, [new])


def verify(path: Path) -> str:
    """Check that a checkpoint is as it was written, by its hash or else its zip checksums. -> its SHA-256.

    Raises:
        UserError: the checkpoint has changed or is damaged.
    """
    if noted := _noted_hashes(path):
        found = hash_file(path)
        if found not in noted and found not in _noted_hashes(path):  # a training may have replaced both meanwhile
            raise UserError(
                f"{path} is damaged: its SHA-256 is not the one in {_note_path(path)}; train again, name another "
                "checkpoint or, if you put the file there yourself, delete its line there"
            )
        return found
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # damaged headers raise errors of many types
        raise _unreadable(path, error) from error
    if damaged is not None:
        raise UserError(f"{path} is damaged (wrong checksum of {damaged}): train again or name another checkpoint")
    return hash_file(path)


def write_changes(path: Path, state: dict[str, Any], checkpoint: Path) -> None:
    """Write those values of a state that differ from a checkpoint's, and the checkpoint's hash."""
    import torch

    content, checksum = _read(checkpoint)
    before = content["state_dict"]
    changed = {
        name: value.cpu().clone() if torch.is_tensor(value) else value  # a view would be saved with all that it views
        for name, value in state.items()
        if not (torch.is_tensor(value) and name in before and torch.equal(value.cpu(), before[name]))
    }
    write_checkpoint(path, {_ORIGIN: checksum, "state_dict": changed})


def load_weights(
    module: "nn.Module", path: Path, prefixes: tuple[str, ...] = ("",), changes: Path | None = None
) -> None:
    """Load those tensors of a checkpoint whose names begin with one of `prefixes` into a module.

    `changes` is a file of `write_changes`, whose values replace the checkpoint's.

    Raises:
        UserError: a file is not a checkpoint, is damaged or has changed, or its architecture differs from the module's.
    """
    content, checksum = _read(path)
    state = content["state_dict"]
    if changes is not None:
        changed, _ = _read(changes)
        if changed.get(_ORIGIN) != checksum:
            raise UserError(f"{path} is not the checkpoint that {changes} was written for: evaluate its run again")
        state |= changed["state_dict"]
    for name, buffer in module.named_buffers():
        if buffer.shape[:1] == (0,) and name in state and state[name].shape[1:] == buffer.shape[1:]:
            buffer.resize_(state[name].shape)  # empty until fitted; one row per training image, for example
    expected = {name: value for name, value in module.state_dict().items() if name.startswith(prefixes)}
    found = {name: value for name, value in state.items() if name.startswith(prefixes)}
    # averaged weights last: they also differ if the network that they copy does
    for name in sorted(expected.keys() | found.keys(), key=lambda name: ("ema." in name, name)):
        theirs, ours = _describe(found, name), _describe(expected, name)
        if theirs != ours:
            advice = "; set ema to the checkpoint's" if "ema." in name else ""
            raise UserError(
                f"checkpoint {path} is of another architecture: {name} {theirs} in it and {ours} in the model of this "
                f"config{advice}"
            )
    try:
        module.load_state_dict({**module.state_dict(), **found})
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:  # from the thresholds in it
        raise _unreadable(path, error) from error


def hash_file(path: Path) -> str:
    """Compute a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """Verify and read a checkpoint; raise a UserError if it cannot be read. -> its content, and its SHA-256."""
    import torch

    checksum = verify(path)
    try:
        content = dict(torch.load(path, map_location="cpu", weights_only=True))
        return {**content, "state_dict": dict(content["state_dict"])}, checksum
    except Exception as error:  # errors of pickle, zip or lookup
        raise _unreadable(path, error) from error


def _describe(tensors: dict[str, Any], name: str) -> str:
    if name not in tensors:
        return "is missing"
    value = tensors[name]  # thresholds are stored beside the weights and have no shape
    return f"is {value.dtype} of shape {tuple(value.shape)}" if hasattr(value, "shape") else f"is a {type(value)}"


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} cannot be read as a checkpoint ({type(error).__name__}): train again or name another")


def _note_path(path: Path) -> Path:
    folder = path.absolute().parent
    return folder.with_name(f"{folder.name}.sha256")


def _read_note(path: Path) -> list[tuple[str, str]]:
    """Read the hashes noted for the checkpoints of a folder. -> pairs of hash and file name."""
    note = _note_path(path)
    text = note.read_text(errors="replace") if note.is_file() else ""
    if len(pairs := _LINE.findall(text)) < len(text.splitlines()):
        raise UserError(f"{note} is damaged: it has lines that sha256sum does not write; restore or remove it")
    return pairs


def _noted_hashes(path: Path) -> list[str]:
    return [digest for digest, name in _read_note(path) if name == path.name]


def _note(path: Path, hashes: list[str]) -> None:
    pairs = [(digest, path.name) for digest in hashes] + [pair for pair in _read_note(path) if pair[1] != path.name]
    folder = path.absolute().parent.name
    write_atomically(_note_path(path), "".join(f"{digest}  {folder}/{name}\n" for digest, name in pairs))
