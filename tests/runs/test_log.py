"""A run's log holds what the terminal shows, but for colours and what is drawn over and over."""

import io
import sys
from contextlib import redirect_stdout

from rich.console import Console
from rich.progress import track

from adlight.runs.log import copy_output, log_line


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_lines_are_copied_without_colours(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm-256color")
    terminal, path = Terminal(), tmp_path / "a.log"
    path.write_text("before\n")
    with redirect_stdout(terminal):
        with copy_output(path):
            print("run folder: x")
            print("a warning", file=sys.stderr)
            Console(force_terminal=True).print("[red]a table[/red]")
            log_line("epoch 1/2")
            for _ in track(range(50), console=Console(force_terminal=True), transient=True):
                pass
        print("after")
    log_line("nowhere")
    assert [line for line in path.read_text().splitlines() if line] == [
        *("before", "run folder: x", "a warning", "a table", "epoch 1/2")
    ]
    assert "\x1b[31ma table" in terminal.getvalue() and "after" in terminal.getvalue()
    assert capsys.readouterr().err == "a warning\n"


def test_only_the_first_process_of_a_run_logs(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with copy_output(tmp_path / "a.log"):
        print("x")
    assert not (tmp_path / "a.log").exists()
