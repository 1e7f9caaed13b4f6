"""Tables as text, as Markdown and in the terminal.

The tables are frames with two rows of headings: the title and the kind of a column. Kinds are `TEXT`; `COUNT`; `VALUE`,
a fraction, with the ends `LOW` and `HIGH` of its interval; `PAPER`, the published value; and `DIFFERENCE`, our value
minus the published one.
"""

import os
from collections.abc import Iterable

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

Heading = tuple[str, str]
TEXT, COUNT, VALUE, LOW, HIGH, PAPER, DIFFERENCE = "", "count", "ours", "low", "high", "paper", "ours - paper"
IMPORTANT = (  # columns by priority in a narrow terminal: measurements come before descriptions of the run
    *("val/auroc", "AUROC", "status", "category", "F1 at threshold", "FPR at threshold", "recall at threshold"),
    *("pixel AUROC", "AUPRO", "images", "AP", "model", "dataset", "differs in"),
)


def to_text(table: pd.DataFrame) -> pd.DataFrame:
    """Format a table: fractions with three digits and half the width of their interval."""
    text = {}
    for (title, kind), column in table.items():
        if kind == VALUE:
            low, high = (table.get((title, end), column * float("nan")) for end in (LOW, HIGH))
            # an interval of width 0 is left out: few images, ranked perfectly, are perfect in every bootstrap sample
            half = [f" ± {half:.3f}" if half > 0 else "" for half in (high - low) / 2]
            text[title] = column.map("{:.3f}".format, na_action="ignore") + half
        elif kind == PAPER:
            text[f"paper's {title}"] = column.map("{:.3f}".format, na_action="ignore")
        elif kind == COUNT:
            text[title] = column.map("{:g}".format, na_action="ignore")
        elif kind == TEXT:
            text[title] = column
    return pd.DataFrame(text, dtype=object).fillna("").astype(str)


def to_markdown(table: pd.DataFrame) -> str:
    """Format a table as Markdown, with text aligned left and numbers right."""
    text = to_text(table)
    left = {title for title, kind in table if kind == TEXT}
    rule = ["---" if name in left else "--:" for name in text]
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (text.columns, rule, *text.to_numpy())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def make_console() -> Console:
    """Make a console as wide as the terminal; log files and notebooks get a fixed width unless COLUMNS is set.

    In a notebook the console writes to stdout like `print`, so that a run's log receives the output too.
    """
    console = Console(force_jupyter=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 110 if Console().is_jupyter else 160
    return console


def print_table(table: pd.DataFrame, title: str, footnotes: Iterable[str] = ()) -> None:
    """Print the most important columns of a table, as many as fit the terminal, and the footnotes.

    No value is truncated. A footnote lists the columns that do not fit.
    """
    console, text = make_console(), to_text(table)
    words = {name for name, kind in table if kind == TEXT}
    widths = _choose_columns(text, words, console.width)
    first, *names = widths
    block = Table(title=Text(title, "table.title"), title_justify="left")
    for name, width in widths.items():
        is_left = name == first or name in words
        block.add_column(name, width=width, justify="left" if is_left else "right", overflow="fold")
    for _, line in text.iterrows():
        cells = [line[name] or ("" if name in words else "-") for name in names]
        block.add_row(*map(Text, [line[first], *cells]))
    console.print(block)
    if missing := [name for name in text if name not in widths]:
        footnotes = [f"no room in {console.width} columns for: {', '.join(missing)}", *footnotes]
    for line in footnotes:
        print(line)  # Rich would replace `:bug:` in a path by an emoji


def _choose_columns(text: pd.DataFrame, words: set[str], width: int) -> dict[str, int]:
    """Choose the first column and the most important others that fit into `width`. -> their widths, in order."""
    widths = {name: max(map(len, [*name.split(), *text[name]])) for name in text}
    first, *others = text
    widths[first] = min(widths[first], max(16, width // 3))
    room, chosen = width - widths[first] - 4, {first}  # two rules and the spaces beside them
    for name in sorted(others, key=lambda name: _rank(name, name in words)):
        widths[name] = min(widths[name], width - widths[first] - 7)
        if widths[name] + 3 <= room:
            room -= widths[name] + 3
            chosen.add(name)
    return {name: widths[name] for name in text if name in chosen}


def _rank(name: str, is_text: bool) -> int:
    """Rank columns: other text, which identifies rows, before `IMPORTANT` columns, before other numbers."""
    if name in IMPORTANT:
        return IMPORTANT.index(name) + 1
    return 0 if is_text else len(IMPORTANT) + 1
