"""The report's `results.csv` and `results.md`."""

import pandas as pd

from adlight.reports import grouping, tables
from adlight.reports.collect import Runs, config_columns
from adlight.reports.terminal import TEXT, as_text


def as_markdown(table: pd.DataFrame) -> str:
    """Write a table as Markdown, words to the left and numbers to the right."""
    text = as_text(table)
    words = {title for title, kind in table if kind == TEXT}
    rule = ["---" if name in words else "--:" for name in text]
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (text.columns, rule, *text.to_numpy())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def results_csv(found: Runs) -> str:
    """Write `results.csv`: `Runs.results` at full precision, without the settings that do not differ."""
    kept = {*grouping.differing(found.headlines), *grouping.CLASS_KEYS, grouping.SEED}
    dropped = [name for name in config_columns(found.results) if name not in kept]
    return found.results.drop(columns=dropped).to_csv(index=False, lineterminator="\n")


def results_markdown(found: Runs, means: pd.DataFrame, title: str) -> str:
    """Write `results.md`."""
    parts = [f"# {title}", found.states, as_markdown(tables.by_run(found))]
    if len(means):
        parts += ["## Means (± standard deviation over seeds)", as_markdown(tables.by_mean(means))]
    if found.problems:
        parts += ["## Problems", "\n".join(f"* {name}: {line}" for name, line in found.problems.items())]
    return "\n\n".join(parts) + "\n"
