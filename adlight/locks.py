"""Locks between processes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adlight.types import UserError


@contextmanager
def hold_lock(path: Path, waiting: str = "", refusal: str = "") -> Iterator[None]:
    """Hold an advisory lock on a file, which is left behind; print `waiting` if another process holds it.

    Uses lockf, which works over NFS; on file systems without locks nothing is locked. The lock belongs to the process
    and is released when the process ends or closes the file, so the file must not be opened twice.

    Raises:
        UserError: another process holds the lock and `refusal`, the text of the error, is not empty.
    """
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:  # depends on the system
            if refusal:
                raise UserError(refusal) from error
            if waiting:
                print(waiting, flush=True)
            fcntl.lockf(file, fcntl.LOCK_EX)
        except OSError:
            pass
        yield
