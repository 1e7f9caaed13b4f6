"""Files shared by several processes, written whole or not at all."""

import json
import os
import traceback
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from adlight.types import UserError

ENCODING: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}  # keeps names' bytes
PROCESS_NUMBERS = ("LOCAL_RANK", "SLURM_PROCID")  # environment variables of Lightning's ddp and of Slurm's srun


class Folder:
    """A folder, which need not exist yet; it prints as its path."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __str__(self) -> str:
        return str(self.path)


def rank() -> int:
    """Return this process's number in a run; process 0 writes. Raise a UserError if the variable is not a number."""
    return next((read_number(name) for name in PROCESS_NUMBERS if os.environ.get(name)), 0)


def is_numbered() -> bool:
    """Return whether this process has a number, which the process that started the others has not."""
    return any(os.environ.get(name) for name in PROCESS_NUMBERS)


def read_number(variable: str) -> int:
    """Read a number from an environment variable, 1 if it is unset; raise a UserError if it is not a number."""
    text = os.environ.get(variable) or "1"
    if not text.isdecimal():
        raise UserError(f"environment variable {variable} is {text!r}, which is not a number: unset it")
    return int(text)


def write_atomically(path: Path, content: str | bytes) -> Path:
    """Write a file whole or not at all, creating its folder. -> its path."""
    with open_whole(path) as file:
        file.write(content) if isinstance(content, str) else file.buffer.write(content)
    return path


@contextmanager
def open_whole(path: Path) -> Iterator[TextIOWrapper]:
    """Open a text file that gets its name when it is complete; its folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")  # two machines may write the same file
    try:
        with partial.open("w", **ENCODING) as file:
            yield file
        os.replace(partial, path)
    except OSError as error:
        error.filename = str(path)  # instead of the partial file or, on a full disk, no name at all
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all, creating its folder."""
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def read_if_exists(path: Path) -> str | None:
    """Read a file's text; None if it does not exist, perhaps because another process has deleted it."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return None


def append_traceback(log: Path, error: BaseException) -> None:
    """Append an error's full traceback to a log."""
    with log.open("a", encoding="utf-8", errors="backslashreplace") as file:
        traceback.print_exception(error, file=file)
