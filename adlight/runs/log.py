"""The log of a run: the terminal's output without colours and without redrawn progress bars."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, TextIO

from adlight.runs.files import rank

HEIGHT = 8  # most lines of progress bars, which are drawn over while the cursor is hidden
_CURSOR = re.compile(r"(\r?\n|\r|\x1b\[\d*A|\x1b\[\?25[lh])")  # line ends; moves back and up; hides and shows
_STYLES = re.compile(r"\x1b\[(?!\d*A|\?25[lh])[0-9;?]*[A-Za-z]")  # colours, styles and erasing
_open_logs: list["_Log"] = []  # innermost last


class _Log:
    """A file with the lines of a terminal; the last lines are held back while they may still be overwritten."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("a", encoding="utf-8", errors="backslashreplace")
        self.lines, self.is_hidden = [""], False

    def show(self, text: str) -> None:
        """Process output to the terminal."""
        for part in _CURSOR.split(_STYLES.sub("", text)):
            if part.endswith("\n"):
                self.lines.append("")
            elif part.startswith("\x1b[?25"):
                self.is_hidden = part.endswith("l")
            elif _CURSOR.fullmatch(part):
                rows = 0 if part == "\r" else int(part[2:-1] or 1)
                del self.lines[max(1, len(self.lines) - rows) :]
                self.lines[-1] = ""
            else:
                self.lines[-1] += part
        kept = HEIGHT if self.is_hidden else 1
        self.write(*self.lines[:-kept])
        del self.lines[:-kept]

    def write(self, *lines: str) -> None:
        """Write lines; on a full disk they are lost, which is reported when results cannot be written."""
        with suppress(OSError, ValueError):  # a stream may be used after the log is closed
            self.file.writelines(f"{line}\n" for line in lines)
            self.file.flush()

    def close(self) -> None:
        self.write(*filter(None, self.lines))
        with suppress(OSError):  # closing flushes once more
            self.file.close()


class _Copy:
    """A stream that also writes to a log; in all other respects it behaves like the original."""

    def __init__(self, stream: TextIO, log: _Log) -> None:
        self._stream, self._log = stream, log

    def write(self, text: str) -> int:
        self._log.show(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def copy_output(path: Path) -> Iterator[None]:
    """Append the output of this process to a log, if it is the run's first process."""
    if rank() != 0:
        yield
        return
    log = _Log(path)
    _open_logs.append(log)
    try:
        with redirect_stdout(_Copy(sys.stdout, log)), redirect_stderr(_Copy(sys.stderr, log)):
            yield
    finally:
        _open_logs.pop()
        log.close()


def log_line(line: str) -> None:
    """Write a line to the log only, as the terminal shows a progress bar instead."""
    for log in _open_logs[-1:]:
        log.write(line)
