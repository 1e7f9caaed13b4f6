"""Files that several processes may write or wait for: whole or not at all, and one at a time."""

import os
import traceback
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adlight.types import UserError


def rank() -> int:
    """Return this process's number among those of a run (set by Lightning's ddp or Slurm's srun); 0 writes.

    Raises:
        UserError: what is set is no number.
    """
    found = _rank() or "0"
    if not found.isdecimal():
        raise UserError(f"environment variable LOCAL_RANK or SLURM_PROCID is {found!r}, which is no number: unset it")
    return int(found)


def number_of(variable: str, default: int = 1) -> int:
    """Read a number from an environment variable; the default where it is not set.

    Raises:
        UserError: it is no number.
    """
    found = os.environ.get(variable) or str(default)
    if not found.isdecimal():
        raise UserError(f"environment variable {variable} is {found!r}, which is no number: unset it")
    return int(found)


def is_numbered() -> bool:
    """Say whether this process has such a number, as one of several has, but for the one that starts the others."""
    return _rank() is not None


def _rank() -> str | None:
    return os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_PROCID") or None


def write_atomically(path: Path, content: str | bytes) -> Path:
    """Write a file whole or not at all, with its folder. -> its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")  # two machines may write the same file
    try:
        if isinstance(content, str):
            content = content.encode(errors="surrogateescape")  # names of files keep their bytes, whatever these are
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        error.filename = str(path)  # a full disk names none, others the partial one
        raise
    finally:
        partial.unlink(missing_ok=True)
    return path


def read_if_exists(path: Path) -> str | None:
    """Return a file's text; None if there is no such file (any more: another process may have deleted it)."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return None


def append_traceback(log: Path, error: BaseException) -> None:
    """Append an error's full traceback to a log."""
    with log.open("a", encoding="utf-8", errors="backslashreplace") as file:
        traceback.print_exception(error, file=file)


@contextmanager
def hold_lock(path: Path, waiting: str = "", refusal: str = "") -> Iterator[None]:
    """Hold an advisory lock on a file, which is left behind; print `waiting` if another process holds it.

    lockf works over NFS too; file systems without locks go without. The lock belongs to the process, which releases it
    when it ends or closes the file: never open it twice.

    Raises:
        UserError: another process holds it, and there is a `refusal`, its text.
    """
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:  # which of them depends on the system
            if refusal:
                raise UserError(refusal) from error
            if waiting:
                print(waiting, flush=True)
            fcntl.lockf(file, fcntl.LOCK_EX)
        except OSError:
            pass
        yield
