"""The log of a run: what the terminal shows, without colours and without the redrawing of progress bars."""

import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, TextIO

from adlight.runs.files import rank

_MOVES = re.compile(r"(\r?\n|\r|\x1b\[\d*A|\x1b\[\?25[lh])")  # of the cursor: back, down, up; hidden, shown
_CODES = re.compile(r"\x1b\[(?!\d*A|\?25[lh])[0-9;?]*[A-Za-z]")  # of colours and styles, and of erasing
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"  # the cursor
_open: list[TextIO] = []  # logs that are being written, the innermost last


class _Screen:
    """The last lines on a terminal, which may still be drawn over: a hidden cursor means a progress bar."""

    def __init__(self) -> None:
        self._lines, self._moved_back, self._hidden = [""], False, False

    def show(self, text: str) -> str:
        """Take what a terminal is given. -> the lines, with their ends, that will not be drawn over any more."""
        final = list[str]()
        for part in _MOVES.split(_CODES.sub("", text)):
            if part.endswith("\n"):
                self._lines.append("")
            elif part in (HIDE, SHOW):
                self._hidden = part == HIDE
            elif _MOVES.fullmatch(part):
                del self._lines[max(1, len(self._lines) - self._rows(part)) :]
                self._lines[-1], self._moved_back = "", True
            elif part:
                if self._moved_back:  # as far as it goes: what is above stays
                    final += self._settle()
                self._lines[-1] += part
        return "".join(f"{line}\n" for line in (final if self._hidden else final + self._settle()))

    def end(self) -> str:
        """Give the lines that stand there at last."""
        return "".join(f"{line}\n" for line in [*self._settle(), *self._lines] if line)

    def _settle(self) -> list[str]:
        *final, last = self._lines
        self._lines, self._moved_back = [last], False
        return final

    @staticmethod
    def _rows(move: str) -> int:
        return 0 if move == "\r" else int(move[2:-1] or 1)


class _Copy:
    """A stream that copies what is written to it into a log; it is the stream in all else."""

    def __init__(self, stream: TextIO, log: TextIO) -> None:
        self._stream, self._log, self._screen = stream, log, _Screen()

    def write(self, text: str) -> int:
        with suppress(OSError):  # a full disk is reported on the terminal, where a result cannot be written
            self._log.write(self._screen.show(text))
        return self._stream.write(text)

    def end(self) -> None:
        """Write what stands in lines that could have been drawn over."""
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
    """Append to a log what this process, if it is a run's first, prints from here on."""
    with ExitStack() as stack:
        if rank() == 0:
            log = path.open("a", encoding="utf-8", errors="backslashreplace")
            stack.callback(_close, log)
            for stream, redirect in ((sys.stdout, redirect_stdout), (sys.stderr, redirect_stderr)):
                copy = _Copy(stream, log)
                stack.callback(copy.end)
                stack.enter_context(redirect(copy))
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
