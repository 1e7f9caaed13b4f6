"""The log of a run: the terminal's output without colours and without redrawn progress bars."""

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, TextIO

from adlight.runs.files import rank

HEIGHT = 8  # most lines of progress bars, which are drawn over while the cursor is hidden
_CURSOR = re.compile(r"(\r?\n|\r|\x1b\[\d*A|\x1b\[\?25[lh])")  # line ends; moves back and up; hides and shows
_STYLES = re.compile(r"\x1b\[(?!\d*A|\?25[lh])[0-9;?]*[A-Za-z]")  # colours, styles and erasing
_open_logs: list[TextIO] = []  # innermost last


class _Copy:
    """A stream that also writes to a log; in all other respects it behaves like the original.

    The last lines are held back from the log while they may still be overwritten.
    """

    def __init__(self, stream: TextIO, log: TextIO) -> None:
        self._stream, self._log, self._lines, self._is_hidden = stream, log, [""], False

    def write(self, text: str) -> int:
        for part in _CURSOR.split(_STYLES.sub("", text)):
            if part.endswith("\n"):
                self._lines.append("")
            elif part.startswith("\x1b[?25"):
                self._is_hidden = part.endswith("l")
            elif _CURSOR.fullmatch(part):
                rows = 0 if part == "\r" else int(part[2:-1] or 1)
                del self._lines[max(1, len(self._lines) - rows) :]
                self._lines[-1] = ""
            else:
                self._lines[-1] += part
        kept = HEIGHT if self._is_hidden else 1
        _write(self._log, self._lines[:-kept])
        del self._lines[:-kept]
        return self._stream.write(text)

    def end(self) -> None:
        """Write the remaining lines."""
        _write(self._log, filter(None, self._lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _write(log: TextIO, lines: Iterable[str]) -> None:
    """Write lines; on a full disk they are lost, which is reported when results cannot be written."""
    with suppress(OSError, ValueError):  # a stream may be used after the log is closed
        log.writelines(f"{line}\n" for line in lines)
        log.flush()


@contextmanager
def copy_output(path: Path) -> Iterator[None]:
    """Append the output of this process to a log, if it is the run's first process."""
    if rank() != 0:
        yield
        return
    log = path.open("a", encoding="utf-8", errors="backslashreplace")
    out, err = _Copy(sys.stdout, log), _Copy(sys.stderr, log)
    _open_logs.append(log)
    try:
        with redirect_stdout(out), redirect_stderr(err):
            yield
    finally:
        _open_logs.pop()
        out.end()
        err.end()
        with suppress(OSError):  # closing flushes once more
            log.close()


def log_line(line: str) -> None:
    """Write a line to the log only, as the terminal shows a progress bar instead."""
    for log in _open_logs[-1:]:
        _write(log, [line])
