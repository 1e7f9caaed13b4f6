"""Tables as text and in the terminal, from frames with headings in two rows.

The upper heading names what is shown. The lower one says what a column is of it: `TEXT`; `COUNT`; `VALUE`, a fraction
with the ends `LOW` and `HIGH` of its interval beside it; `PAPER`, the published number, and `DIFFERENCE`, ours from it.
"""

import os
from collections.abc import Iterable

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

Heading = tuple[str, str]
TEXT, COUNT, VALUE, LOW, HIGH, PAPER, DIFFERENCE = "", "count", "ours", "low", "high", "paper", "ours - paper"
IMPORTANT = (  # numbers that a narrow terminal shows first
    *("val/auroc", "AUROC", "F1 at threshold", "FPR at threshold", "recall at threshold", "pixel AUROC", "AUPRO"),
    *("images", "AP"),
)


def as_text(table: pd.DataFrame) -> pd.DataFrame:
    """Write a table as it is read: fractions with three digits and half the width of their interval."""
    text = {}
    for (title, kind), column in table.items():
        if kind == VALUE:
            low, high = (table.get((title, end), column * float("nan")) for end in (LOW, HIGH))
            half = [f" ± {half:.3f}" if half == half else "" for half in (high - low) / 2]
            text[title] = column.map("{:.3f}".format, na_action="ignore") + half
        elif kind == PAPER:
            text[f"paper's {title}"] = column.map("{:.3f}".format, na_action="ignore")
        elif kind == COUNT:
            text[title] = column.map("{:g}".format, na_action="ignore")
        elif kind == TEXT:
            text[title] = column
    return pd.DataFrame(text, dtype=object).fillna("").astype(str)


def console() -> Console:
    """Make a console as wide as the terminal; a log file and a notebook have none of their own, but for COLUMNS.

    In a notebook it prints as `print` does, so that a run's log gets what is shown.
    """
    found = Console(force_jupyter=False)
    if found.is_terminal or "COLUMNS" in os.environ:
        return found
    return Console(width=110 if Console().is_jupyter else 160, force_jupyter=False)


def print_table(table: pd.DataFrame, title: str, footnotes: Iterable[str] = ()) -> None:
    """Print a table with as many of its columns as the terminal is wide, the most important ones; then footnotes.

    No value is cut. Columns without a place are named; files have them all.
    """
    screen, text = console(), as_text(table)
    words = {name for name, kind in table if kind == TEXT}
    widths = {name: max(map(len, [*name.split(), *text[name]])) for name in text}
    first = min(widths[text.columns[0]], max(16, screen.width // 3))
    left, chosen = screen.width - first - 4, set[str]()  # 4: two rules and the spaces beside them
    for name in sorted(text.columns[1:], key=lambda name: _rank(name, name in words)):
        widths[name] = min(widths[name], screen.width - first - 7)
        if widths[name] + 3 <= left:
            left -= widths[name] + 3
            chosen.add(name)
    names = [name for name in text.columns[1:] if name in chosen]
    block = Table(title=title, title_justify="left")
    block.add_column(text.columns[0], width=first, overflow="fold")
    for name in names:
        block.add_column(name, width=widths[name], justify="left" if name in words else "right", overflow="fold")
    for _, line in text.iterrows():
        cells = [line[name] or ("" if name in words else "-") for name in names]  # left out is not zero
        block.add_row(*map(Text, [line.iloc[0], *cells]))
    screen.print(block)
    if missing := [name for name in text.columns[1:] if name not in chosen]:
        footnotes = [f"no room in {screen.width} columns for: {', '.join(missing)}", *footnotes]
    for line in footnotes:
        screen.print(line, highlight=False, soft_wrap=True, markup=False)


def _rank(name: str, is_text: bool) -> int:
    """Order columns by importance: what tells rows apart, then what `IMPORTANT` says, then the others."""
    if name in IMPORTANT:
        return IMPORTANT.index(name) + 1
    return 0 if is_text else len(IMPORTANT) + 1
