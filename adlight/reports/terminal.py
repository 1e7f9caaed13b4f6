"""Tables as text and in the terminal, from frames with headings in two rows.

The upper heading names what is shown. The lower one says what a column is of it: `TEXT`; `COUNT`; `VALUE`, a fraction
with the ends `LOW` and `HIGH` of its interval beside it; `PAPER`, the published number, and `DIFFERENCE`, ours from it.
"""

from collections.abc import Iterable

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

Heading = tuple[str, str]
TEXT, COUNT, VALUE, LOW, HIGH, PAPER, DIFFERENCE = "", "count", "ours", "low", "high", "paper", "ours - paper"


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


def print_table(table: pd.DataFrame, title: str, footnotes: Iterable[str] = ()) -> None:
    """Print a table in as many blocks as the terminal's width asks for, each with the first column; then footnotes."""
    console = Console() if Console().is_terminal else Console(width=160)  # a log file has no width of its own
    text = as_text(table)
    words = {name for name, kind in table if kind == TEXT}
    widths = {name: max(map(len, [*name.split(), *text[name]])) for name in text}
    first = min(widths[text.columns[0]], max(16, console.width // 3))
    blocks, left = list[list[str]](), 0
    for name in text.columns[1:]:
        widths[name] = min(widths[name], console.width - first - 7)  # 7: three rules and the spaces beside them
        if left < widths[name] + 3:
            blocks, left = [*blocks, []], console.width - first - 4
        blocks[-1].append(name)
        left -= widths[name] + 3
    for i, names in enumerate(blocks):
        block = Table(title=None if i else title, title_justify="left")
        block.add_column(text.columns[0], width=first, overflow="fold")
        for name in names:
            block.add_column(name, width=widths[name], justify="left" if name in words else "right", overflow="fold")
        for _, line in text.iterrows():
            cells = [line[name] or ("" if name in words else "-") for name in names]  # left out is not zero
            block.add_row(*map(Text, [line.iloc[0], *cells]))
        console.print(block)
    for line in footnotes:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
