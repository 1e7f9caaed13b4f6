"""The log of a run: what the terminal shows, without colours and without the redrawing of progress bars."""

import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, TextIO

from adlight.runs.files import rank

_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # of colours and styles
_REDRAW = re.compile(r"\r(?!\n)|\x1b\[\d*[AKJ]|\x1b\[\?25[lh]")  # of what stands on the screen already
_open: list[TextIO] = []  # logs that are being written, the innermost last


class _Copy:
    """A stream that copies what is written to it into a log; it is the stream in all else."""

    def __init__(self, stream: TextIO, log: TextIO) -> None:
        self._stream, self._log = stream, log

    def write(self, text: str) -> int:
        if not _REDRAW.search(text):
            with suppress(OSError):  # a full disk is reported on the terminal, where a result cannot be written
                self._log.write(_CODES.sub("", text))
        return self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._log.flush()
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def copy_output(path: Path) -> Iterator[None]:
    """Append to a log what this process, if it is a run's first, prints from here on."""
    with ExitStack() as stack:
        if rank() == 0:
            log = path.open("a", encoding="utf-8", errors="backslashreplace")
            stack.callback(_close, log)
            stack.enter_context(redirect_stdout(_Copy(sys.stdout, log)))
            stack.enter_context(redirect_stderr(_Copy(sys.stderr, log)))
            _open.append(log)
            stack.callback(_open.pop)
        yield


def log_line(line: str) -> None:
    """Write a line to the log alone, which on the terminal stands in a progress bar."""
    with suppress(OSError):  # as above
        for log in _open[-1:]:
            log.write(line + "\n")
            log.flush()


def _close(log: TextIO) -> None:
    with suppress(OSError):  # what could not be written is tried once more
        log.close()
