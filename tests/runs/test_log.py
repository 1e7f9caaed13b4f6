"""A run's log holds what the terminal shows, but for colours and what is drawn over and over."""

import io
import sys
from contextlib import redirect_stdout

import pytest
from rich.console import Console
from rich.progress import Progress, track

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
            print("on an A")
            print("a warning", file=sys.stderr)
            Console(force_terminal=True).print("[red]a table[/red]")
            log_line("epoch 1/2")
            for _ in track(range(50), console=Console(force_terminal=True), transient=True):
                pass
        print("after")
    log_line("nowhere")
    assert [line for line in path.read_text().splitlines() if line] == [
        *("before", "run folder: x", "on an A", "a warning", "a table", "epoch 1/2")
    ]
    assert "\x1b[31ma table" in terminal.getvalue() and "after" in terminal.getvalue()
    assert capsys.readouterr().err == "a warning\n"


@pytest.mark.parametrize("bars", [1, 3])
def test_what_is_printed_above_a_progress_bar_is_kept_and_the_bar_is_not(tmp_path, monkeypatch, bars):
    monkeypatch.setenv("TERM", "xterm-256color")
    path, console = tmp_path / "a.log", Console(force_terminal=True, width=60)
    with redirect_stdout(Terminal()), copy_output(path):
        print("begun")
        with Progress(console=console, transient=True, auto_refresh=False) as progress:
            tasks = [progress.add_task(f"bar {i}", total=4) for i in range(bars)]
            for step in range(4):
                for task in tasks:
                    progress.update(task, advance=1, refresh=True)
                print(f"step {step}\nand more: NVIDIA", file=sys.stderr if step == 2 else sys.stdout)
        print("done, no line's end", end="")
    lines = [line.rstrip() for line in path.read_text().splitlines() if line.strip()]
    steps = [line for step in range(4) for line in (f"step {step}", "and more: NVIDIA")]
    assert lines == ["begun", *steps, "done, no line's end"]


def test_the_last_state_of_a_line_that_is_drawn_over_is_kept(tmp_path, capsys):
    with copy_output(tmp_path / "a.log"):
        for share in (10, 50, 100):
            print(f"\rdownloaded {share} %", end="", flush=True)
        print("\r\nnext")
    assert (tmp_path / "a.log").read_text() == "downloaded 100 %\nnext\n"


def test_a_warning_beside_a_progress_bar_is_kept(tmp_path, capsys):
    with copy_output(tmp_path / "a.log"):
        print("\x1b[?25lbar 1\nbar b", end="")
        print("a warning", file=sys.stderr)
        print("\r\x1b[1Abar 2\nbar c\x1b[?25h")
    assert (tmp_path / "a.log").read_text() == "a warning\nbar 2\nbar c\n"


def test_only_the_first_process_of_a_run_logs(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with copy_output(tmp_path / "a.log"):
        print("x")
    assert not (tmp_path / "a.log").exists()
