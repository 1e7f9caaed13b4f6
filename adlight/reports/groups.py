"""In what runs differ, which of them differ in their seed or category alone, and the means over those."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

from adlight.reports.collect import CLASS_KEYS, COUNTS, Run

NO_SETTINGS = ("resume", "resume_sweep", "run_dir", "run")  # where a run lies, not what it does
MISSING = "(not set)"
WORDS = 6  # of a label


def label(found: Sequence[Run]) -> None:
    """Set of each run in what it differs from the other runs of its model and data set."""
    for group in grouped(found, lambda run: (run.model, run.dataset)):
        differing = differences(group)
        names = short_keys(list(differing))
        for i, run in enumerate(group):
            run.varying = {key: values[i] for key, values in differing.items()}
            run.label = listed([f"{names[key]}={shown(value)}" for key, value in run.varying.items()])


def shown(value: Any) -> str:
    """A setting's value as it is written in a config."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def differences(found: Sequence[Run]) -> dict[str, list[Any]]:
    """The settings that differ between runs, by key: a value a run, in their order."""
    known = [run.settings for run in found if run.settings]
    keys = dict.fromkeys(key for settings in known for key in settings if key not in NO_SETTINGS)
    values = {key: [run.settings.get(key, MISSING) for run in found] for key in keys}
    return {
        key: row
        for key, row in values.items()
        if len({repr(value) for run, value in zip(found, row, strict=True) if run.settings}) > 1
    }


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """The last word of each dotted key, or all of it where two end in the same."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: word if last.count(word) == 1 else key for key, word in zip(keys, last, strict=True)}


def grouped(found: Iterable[Run], key: Callable[[Run], Hashable]) -> list[list[Run]]:
    """Runs with the same key together, in the order of their first ones."""
    groups: dict[Any, list[Run]] = {}
    for run in found:
        groups.setdefault(key(run), []).append(run)
    return list(groups.values())


def alike(found: Iterable[Run], *ignored: str) -> list[list[Run]]:
    """Finished runs whose settings agree but for some keys, together.

    Where the keys that choose the images are ignored, a model for several categories still is apart from models of one
    each, and from one for others: it is another model, not another draw of the same.
    """
    by_class = not set(ignored).isdisjoint(CLASS_KEYS)
    return grouped(
        (run for run in found if run.state == "finished"),
        lambda run: (essence(run, *ignored), several_of(run) if by_class else ()),
    )


def essence(run: Run, *ignored: str) -> tuple[Any, ...]:
    """Model, data set and all settings but some."""
    keys = sorted(run.settings.keys() - {*ignored, *NO_SETTINGS})
    return run.model, run.dataset, *((key, repr(run.settings[key])) for key in keys)


def several_of(run: Run) -> tuple[str, ...]:
    """The categories of a finished run that is about several, none of a run about one."""
    names = sorted(run.about["categories"])
    return tuple(names) if len(names) > 1 else ()


def common_labels(groups: Sequence[Sequence[Run]], *ignored: str) -> list[str]:
    """What sets each group of like runs apart from the others, each in other words.

    That is its model, the settings that differ, and whether it is one model for several categories.
    """
    first = [group[0] for group in groups]
    kinds, sets = {(run.model, run.dataset) for run in first}, {run.dataset for run in first}
    by_class, found = not set(ignored).isdisjoint(CLASS_KEYS), {}
    for peers in grouped(first, lambda run: (run.model, run.dataset)):
        differing = {key: row for key, row in differences(peers).items() if key not in ignored}
        names = short_keys(list(differing))
        scopes = by_class and len({several_of(run) for run in peers}) > 1
        for i, run in enumerate(peers):
            words = [f"{names[key]}={shown(row[i])}" for key, row in differing.items()]
            words = [scope(run), *words] if scopes else words
            head = f"{run.model} on {run.dataset}" if len(sets) > 1 else run.model
            found[id(run)] = listed([head, *words] if len(kinds) > 1 or not words else words)
    labels = [found[id(run)] for run in first]
    return [f"{text} ({run.name})" if labels.count(text) > 1 else text for text, run in zip(labels, first, strict=True)]


def scope(run: Run) -> str:
    """For how many categories a run's model is, in words."""
    chosen = run.settings.get("dataset.category", "all")
    names = " + ".join(map(str, chosen)) if isinstance(chosen, list) else shown(chosen)
    return f"one model for {names}" if several_of(run) else "a model each"


def listed(words: Sequence[str]) -> str:
    """Words in a row, no more than a label has room for."""
    return ", ".join(words[:WORDS]) + (f" and {len(words) - WORDS} more" if len(words) > WORDS else "")


class Mean(NamedTuple):
    """Means over runs that differ in their seed alone, or in the one category that each is about.

    Attributes:
        label: what sets these runs apart from others.
        seeds: the seeds.
        category: a category, or `mean of n`.
        of: the categories that it is a mean of.
        metrics: mean over the seeds and sample standard deviation, None for a single seed.
        runs: what it was made of.
    """

    label: str
    seeds: list[str]
    category: str
    of: list[str]
    metrics: dict[str, tuple[float, float | None]]
    runs: Sequence[Run]


def means(found: Sequence[Run]) -> list[Mean]:
    """Means over seeds, a row a category; and over the categories of runs that are about one each.

    A single run has one too where it is compared: one model for all categories beside a model each.
    """
    ignored = ("seed", *CLASS_KEYS)
    groups = alike(found, *ignored)
    shared = [essence(group[0], *ignored) for group in groups]
    return [
        row
        for group, mine, label in zip(groups, shared, common_labels(groups, *ignored), strict=True)
        if len(group) > 1 or shared.count(mine) > 1
        for row in means_of(group, label)
    ]


def means_of(group: Sequence[Run], label: str) -> list[Mean]:
    """Means over runs that differ in seed and category alone; none if one of them is there twice."""
    of_seed: dict[str, dict[str, dict[str, float]]] = {}
    for run in group:
        mine = of_seed.setdefault(shown(run.settings.get("seed")), {})
        for row in run.rows:
            if row.level == "category":
                if row.category in mine:
                    return []
                mine[row.category] = {name: value for name, value in row.metrics.items() if name not in COUNTS}
    categories = list(dict.fromkeys(category for tables in of_seed.values() for category in tables))
    rows = [([category], category) for category in categories] if len(of_seed) > 1 else []
    rows += [(categories, f"mean of {len(categories)}")] if len(categories) > 1 else []
    table = []
    for of, title in rows:
        seeds = [seed for seed, tables in of_seed.items() if set(of) <= set(tables)]
        lines = [[of_seed[seed][category] for category in of] for seed in seeds]
        names = [name for name in (lines[0][0] if lines else ()) if all(name in one for line in lines for one in line)]
        values = {name: [fmean(one[name] for one in line) for line in lines] for name in names}
        spread = {name: (fmean(v), stdev(v) if len(v) > 1 else None) for name, v in values.items()}
        if seeds:
            table.append(Mean(label, seeds, title, of, spread, group))
    return table
