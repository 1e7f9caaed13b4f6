"""Group runs by settings: find settings that differ, and average runs that differ only in seed or category."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from adlight.reports.collect import Runs, config_columns, metric_columns
from adlight.reports.rows import CONFIG, PROTOCOL, REFERENCE

SEED = f"{CONFIG}seed"
CLASS_KEYS = (f"{CONFIG}dataset.category", f"{CONFIG}dataset.normal")  # settings that choose the images of a run
UNSET = "(not set)"
LABEL_SETTINGS = 6  # largest number of settings in a label
HISTOGRAMS = 16  # largest number of histograms in a figure


def find_differing(runs: pd.DataFrame) -> list[str]:
    """List the columns of settings in which runs differ, ignoring runs without a readable config."""
    config = runs[config_columns(runs)].dropna(how="all")
    return [name for name in config if config[name].nunique(dropna=False) > 1]


def shorten_keys(columns: Sequence[str]) -> dict[str, str]:
    """Shorten each setting's dotted key to its last part, unless several keys share it."""
    keys = [name.removeprefix(CONFIG) for name in columns]
    last = [key.rpartition(".")[2] for key in keys]
    return {name: word if last.count(word) == 1 else key for name, key, word in zip(columns, keys, last, strict=True)}


def select_differing(runs: pd.DataFrame) -> pd.DataFrame:
    """Select the settings in which runs of the same model and data set differ.

    Returns:
        A column per setting, with the column names and index of `runs`; settings in which finished runs differ come
        first. Cells are missing for runs of other models and data sets.
    """
    groups = [group for _, group in runs.groupby(["model", "dataset"], dropna=False, sort=False)]
    settings = pd.concat([group[find_differing(group)].fillna(UNSET) for group in groups]).reindex(runs.index)
    finished = {name for group in groups for name in find_differing(group[group["status"] == "finished"])}
    return settings[sorted(settings, key=lambda name: name not in finished)]


def label_settings(settings: pd.DataFrame) -> pd.Series:
    """Format each row's settings in one line, up to `LABEL_SETTINGS` of them."""
    names = shorten_keys(list(settings))

    def label(row: pd.Series) -> str:
        words = [f"{names[key]}={value}" for key, value in row.dropna().items()]
        more = f" and {len(words) - LABEL_SETTINGS} more" if len(words) > LABEL_SETTINGS else ""
        return ", ".join(words[:LABEL_SETTINGS]) + more

    return pd.Series([label(row) for _, row in settings.iterrows()], index=settings.index)


def make_titles(runs: pd.DataFrame) -> dict[str, str]:
    """Make a title for each run: its name, and settings in which runs of its model and data set differ."""
    labels = label_settings(select_differing(runs))
    return {name: f"{name} ({label})" if label else name for name, label in zip(runs["name"], labels, strict=True)}


def group_by_config(runs: pd.DataFrame, *ignored: str) -> dict[str, pd.DataFrame]:
    """Group finished runs whose settings agree except in the ignored columns. -> the groups by a distinctive label.

    Even if the settings that choose the images are ignored, a model for several categories is not grouped with models
    for single or other categories: it is another model, not another seed. Of runs with the same settings, only the
    newest is in a group, as a repetition is not another seed.
    """
    finished = runs[runs["status"] == "finished"]
    if finished.empty:
        return {}
    is_repeated = config_key(finished.sort_values("started", kind="stable")).duplicated(keep="last")
    finished = finished[~is_repeated.reindex(finished.index)]
    by_class = not set(ignored).isdisjoint(CLASS_KEYS)
    scope = finished["categories"].where(by_class & (finished["num_categories"] > 1), "")
    groupby = finished.assign(scope=scope).groupby([config_key(finished, *ignored), scope], sort=False)
    groups = [group for _, group in groupby]
    labels = _label_groups(pd.concat([group.iloc[:1] for group in groups]), ignored)
    return dict(zip(labels, groups, strict=True))


def config_key(runs: pd.DataFrame, *ignored: str) -> pd.Series:
    """Return a tuple per run: model, data set and all settings except the ignored ones."""
    columns = ["model", "dataset", *(name for name in config_columns(runs) if name not in ignored)]
    return runs[columns].fillna(UNSET).apply(tuple, axis=1)


def average_runs(results: pd.DataFrame) -> pd.DataFrame:
    """Average each category over seeds, and runs of single categories over the categories.

    A single run also gets a row if there is a group to compare it with, such as a model for all categories beside one
    model per category.

    Returns:
        `runs` (label of the group), `seeds`, `category`, the `reference_` columns, and the metrics; `<metric>_lower`
        and `<metric>_upper` are one sample standard deviation over several seeds below and above.
    """
    ignored = (SEED, *CLASS_KEYS)
    groups = group_by_config(results[results["headline"]], *ignored)
    keys = [config_key(group, *ignored).iloc[0] for group in groups.values()]
    rows = []
    for (label, group), key in zip(groups.items(), keys, strict=True):
        if len(group) > 1 or keys.count(key) > 1:
            categories = results[results["name"].isin(group["name"]) & (results["level"] == "category")]
            rows += [{"runs": label, **row} for row in _average_group(categories)]
    return pd.DataFrame(rows)


def average_series(runs: Runs, series: Mapping[str, pd.DataFrame], metric: str) -> pd.DataFrame:
    """Average a metric (a column of `Runs.results`) over the seeds of each series (see `group_by_config`), by category.

    Returns:
        `series`, `category`, `value`, `lower` and `upper` (one standard deviation below and above; for a single seed,
        the ends of its interval), and `paper`, the published number for the same images.
    """
    parts = [pd.DataFrame(columns=["series", "category", "value", "lower", "upper", "paper"])]
    results = runs.results.reindex(columns=[*runs.results, *({metric} - {*runs.results})])
    for label, group in series.items():
        rows = results[results["name"].isin(group["name"]) & (results["level"] == "category")].dropna(subset=metric)
        groups = rows.groupby("category", sort=False)
        value, deviation = groups[metric].mean(), groups[metric].std()
        ends = {
            end: groups[f"{metric}_{end}"].first() if f"{metric}_{end}" in rows else value for end in ("lower", "upper")
        }
        table = pd.DataFrame({"value": value, "lower": value - deviation, "upper": value + deviation}).fillna(ends)
        published = runs.published[runs.published["name"].isin(group["name"]) & (runs.published["metric"] == metric)]
        published = published[published["protocol"] == ""]
        paper = published.dropna(subset="category").drop_duplicates("category").set_index("category")["value"]
        parts.append(table.assign(series=label, paper=paper.reindex(table.index)).reset_index())
    return pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)


def group_scores(runs: Runs) -> Iterator[tuple[str, dict[str, pd.DataFrame]]]:
    """Yield the title and predictions of each figure: all categories of a run, or several runs of single categories."""
    if runs.predictions.empty:
        return
    single = []
    for name, predictions in runs.predictions.groupby("name", sort=False):
        parts = list(predictions.groupby("category", sort=False))
        if len(parts) > 1:
            yield name, dict(parts)
        else:
            single.append((name, *parts[0]))
    categories = [category for _, category, _ in single]
    several = len(set(categories)) > 1
    for start in range(0, len(single), HISTOGRAMS):
        chunk = single[start : start + HISTOGRAMS]
        titles = [c if categories.count(c) == 1 else f"{c} ({name})" if several else name for name, c, _ in chunk]
        title = chunk[0][0] if len(chunk) == 1 else f"{chunk[0][0]} to {chunk[-1][0]}"
        yield title, {cell: predictions for cell, (_, _, predictions) in zip(titles, chunk, strict=True)}


def _average_group(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Average runs that differ only in seed and category; empty if a seed and category occur twice."""
    seed = rows[SEED].fillna(UNSET) if SEED in rows else pd.Series(UNSET, index=rows.index)
    if pd.DataFrame({"seed": seed, "category": rows["category"]}).duplicated().any():
        return []
    references = [name for name in rows if name.startswith(REFERENCE) and name != PROTOCOL]
    rows = rows.assign(**rows.groupby("category")[references].transform("first")) if references else rows
    categories = rows["category"].unique()
    parts = [(name, rows[rows["category"] == name]) for name in categories] if seed.nunique() > 1 else []
    if len(categories) > 1:
        parts.append((f"mean of {len(categories)}", rows[seed.groupby(seed).transform("size") == len(categories)]))
    averages = []
    for title, part in parts:
        if len(part):
            values = part[[*metric_columns(rows), *references]].dropna(axis=1)
            by_seed = values.groupby(seed[part.index], sort=False).mean()
            mean, spread = by_seed.mean(), by_seed.std()
            lower, upper = (mean - spread).dropna().add_suffix("_lower"), (mean + spread).dropna().add_suffix("_upper")
            other = {PROTOCOL: max(part[PROTOCOL])} if PROTOCOL in part else {}
            averages.append({"seeds": ", ".join(by_seed.index), "category": title, **mean, **lower, **upper, **other})
    return averages


def _label_groups(first: pd.DataFrame, ignored: Sequence[str]) -> list[str]:
    """Label each group by its first run: the model, whether it covers several categories, and differing settings."""
    model = first["model"] + (" on " + first["dataset"] if first["dataset"].nunique() > 1 else "")
    several_scopes = first.groupby(["model", "dataset"])["scope"].transform("nunique") > 1
    scope = first.apply(_describe_scope, axis=1).where(several_scopes, "")
    settings = label_settings(select_differing(first.drop(columns=[name for name in ignored if name in first])))
    model = model.where((model.nunique() > 1) | ((scope == "") & (settings == "")), "")
    words = pd.DataFrame({"model": model, "scope": scope, "settings": settings})
    labels = words.apply(lambda row: ", ".join(filter(None, row)), axis=1)
    return list(labels.where(~labels.duplicated(keep=False), labels + " (" + first["name"] + ")"))


def _describe_scope(run: pd.Series) -> str:
    chosen = str(run.get(CLASS_KEYS[0], "all")).strip("[]").replace('"', "").replace(", ", " + ")
    return f"one model for {chosen}" if run["scope"] else "one model per category"
