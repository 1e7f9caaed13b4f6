"""The log of a run: the terminal's output without colours and without redrawn progress bars."""

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, TextIO

from adlight.runs.files import rank

_CURSOR = re.compile(r"(\r?\n|\r|\x1b\[\d*A|\x1b\[\?25[lh])")  # line ends; moves back and up; hides and shows
_STYLES = re.compile(r"\x1b\[(?!\d*A|\?25[lh])[0-9;?]*[A-Za-z]")  # colours, styles and erasing
_HIDE, _SHOW = "\x1b[?25l", "\x1b[?25h"  # the cursor
_open_logs: list[TextIO] = []  # innermost last


class _Screen:
    """The last lines of a terminal, which may still be overwritten; progress bars hide the cursor."""

    def __init__(self) -> None:
        self._lines, self._moved_back, self._hidden = [""], False, False

    def show(self, text: str) -> str:
        """Process output to the terminal. -> the lines that can no longer be overwritten."""
        final = list[str]()
        for part in _CURSOR.split(_STYLES.sub("", text)):
            if part.endswith("\n"):
                self._lines.append("")
            elif part in (_HIDE, _SHOW):
                self._hidden = part == _HIDE
            elif _CURSOR.fullmatch(part):
                rows = 0 if part == "\r" else int(part[2:-1] or 1)
                del self._lines[max(1, len(self._lines) - rows) :]
                self._lines[-1], self._moved_back = "", True
            elif part:
                if self._moved_back:  # the lines above stay
                    final += self._pop_lines()
                self._lines[-1] += part
        return _join(final if self._hidden else final + self._pop_lines())

    def end(self) -> str:
        """Return the remaining lines."""
        return _join(line for line in [*self._pop_lines(), *self._lines] if line)

    def _pop_lines(self) -> list[str]:
        *final, last = self._lines
        self._lines, self._moved_back = [last], False
        return final


def _join(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


class _Copy:
    """A stream that also writes to a log; in all other respects it behaves like the original."""

    def __init__(self, stream: TextIO, log: TextIO) -> None:
        self._stream, self._log, self._screen = stream, log, _Screen()

    def write(self, text: str) -> int:
        with suppress(OSError):  # a full disk is reported when results cannot be written
            self._log.write(self._screen.show(text))
        return self._stream.write(text)

    def end(self) -> None:
        with suppress(OSError):
            self._log.write(self._screen.end())

    def flush(self) -> None:
        with suppress(OSError):
            self._log.flush()
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def copy_output(path: Path) -> Iterator[None]:
    """Append the output of this process to a log, if it is the run's first process."""
    with ExitStack() as stack:
        if rank() == 0:
            log = path.open("a", encoding="utf-8", errors="backslashreplace")
            stack.callback(_close, log)
            for stream, redirect in ((sys.stdout, redirect_stdout), (sys.stderr, redirect_stderr)):
                copy = _Copy(stream, log)
                stack.callback(copy.end)
                stack.enter_context(redirect(copy))
            _open_logs.append(log)
            stack.callback(_open_logs.pop)
        yield


def log_line(line: str) -> None:
    """Write a line to the log only, as the terminal shows a progress bar instead."""
    with suppress(OSError):
        for log in _open_logs[-1:]:
            log.write(line + "\n")
            log.flush()


def _close(log: TextIO) -> None:
    with suppress(OSError):  # closing flushes once more
        log.close()
