"""In what runs differ, which of them differ in their seed or category alone, and the means over those."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from adlight.reports.collect import Runs, config_columns, metric_columns
from adlight.reports.rows import CONFIG, PROTOCOL, REFERENCE

SEED = f"{CONFIG}seed"
CLASS_KEYS = (f"{CONFIG}dataset.category", f"{CONFIG}dataset.normal")  # which images a run is about
UNSET = "(not set)"
WORDS = 6  # of a label
CELLS = 16  # histograms in one drawing


def differing(runs: pd.DataFrame) -> list[str]:
    """List the columns of settings in which runs differ; runs whose config could not be read are left out."""
    config = runs[config_columns(runs)].dropna(how="all")
    return [name for name in config if config[name].nunique(dropna=False) > 1]


def short_names(columns: Sequence[str]) -> dict[str, str]:
    """Give the last word of each setting's dotted key, or all of it where two end in the same."""
    keys = [name.removeprefix(CONFIG) for name in columns]
    last = [key.rpartition(".")[2] for key in keys]
    return {name: word if last.count(word) == 1 else key for name, key, word in zip(columns, keys, last, strict=True)}


def varied(runs: pd.DataFrame) -> pd.DataFrame:
    """Give what each run has set differently from others of its model and data set.

    Returns:
        A column per setting, missing for runs of other models; columns and index as in `runs`.
    """
    parts = [of[differing(of)].fillna(UNSET) for _, of in runs.groupby(["model", "dataset"], dropna=False, sort=False)]
    return pd.concat(parts).reindex(runs.index)


def labels(settings: pd.DataFrame) -> pd.Series:
    """Write each row's settings in one line, no more of them than it has room for."""
    names = short_names(list(settings))

    def label(row: pd.Series) -> str:
        words = [f"{names[key]}={value}" for key, value in row.dropna().items()]
        return ", ".join(words[:WORDS]) + (f" and {len(words) - WORDS} more" if len(words) > WORDS else "")

    return pd.Series([label(row) for _, row in settings.iterrows()], index=settings.index)


def run_titles(runs: pd.DataFrame) -> dict[str, str]:
    """Give each run's name with what it has set differently from others of its model and data set."""
    found = labels(varied(runs))
    return {name: f"{name} ({label})" if label else name for name, label in zip(runs["name"], found, strict=True)}


def group_by_config(runs: pd.DataFrame, *ignored: str) -> dict[str, pd.DataFrame]:
    """Group finished runs whose settings agree but for some columns, by a label that sets each group apart.

    Where the settings that choose the images are ignored, a model for several categories still is apart from models of
    one each, and from one for others: it is another model, not another seed of the same.
    """
    finished = runs[runs["status"] == "finished"]
    if finished.empty:
        return {}
    by_class = not set(ignored).isdisjoint(CLASS_KEYS)
    scope = finished["categories"].where(by_class & (finished["num_categories"] > 1), "")
    found = [of for _, of in finished.assign(scope=scope).groupby([config_key(finished, *ignored), scope], sort=False)]
    return dict(zip(_group_labels(pd.concat([of.iloc[:1] for of in found]), ignored), found, strict=True))


def config_key(runs: pd.DataFrame, *ignored: str) -> pd.Series:
    """Give model, data set and all settings but some, as one value per run."""
    columns = ["model", "dataset", *(name for name in config_columns(runs) if name not in ignored)]
    return runs[columns].fillna(UNSET).apply(tuple, axis=1)


def means(results: pd.DataFrame) -> pd.DataFrame:
    """Average over seeds, a row per category, and over the categories of runs that are about one each.

    A single run has a row too where it is compared: one model for all categories beside one model per category.

    Returns:
        `runs` (their label), `seeds`, `category`, the metrics and `reference_` columns; `<metric>_lower` and `_upper`
        are one sample standard deviation over the seeds away, and missing for a single seed.
    """
    ignored = (SEED, *CLASS_KEYS)
    groups = group_by_config(results[results["headline"]], *ignored)
    keys = [config_key(of, *ignored).iloc[0] for of in groups.values()]
    rows = []
    for (label, of), key in zip(groups.items(), keys, strict=True):
        if len(of) > 1 or keys.count(key) > 1:
            mine = results[results["name"].isin(of["name"]) & (results["level"] == "category")]
            rows += [{"runs": label, **row} for row in _means_of(mine)]
    return pd.DataFrame(rows)


def spreads(found: Runs, series: Mapping[str, pd.DataFrame], metric: str) -> pd.DataFrame:
    """Average a metric over the seeds of each series, by category.

    Returns:
        `series`, `category`, `value`, `lower` and `upper` (one standard deviation away, or of a single seed the ends of
        its interval), and `paper`, the number published about the same images.
    """
    parts = [pd.DataFrame(columns=["series", "category", "value", "lower", "upper", "paper"])]
    results = found.results.reindex(columns=[*found.results, *({metric} - {*found.results})])
    for label, of in series.items():
        rows = results[results["name"].isin(of["name"]) & (results["level"] == "category")].dropna(subset=metric)
        groups = rows.groupby("category", sort=False)
        value, deviation = groups[metric].mean(), groups[metric].std()
        ends = {
            end: groups[f"{metric}_{end}"].first() if f"{metric}_{end}" in rows else value for end in ("lower", "upper")
        }
        table = pd.DataFrame({"value": value, "lower": value - deviation, "upper": value + deviation}).fillna(ends)
        published = found.published[found.published["name"].isin(of["name"]) & (found.published["metric"] == metric)]
        published = published[published["protocol"] == ""]
        paper = published.dropna(subset="category").drop_duplicates("category").set_index("category")["value"]
        parts.append(table.assign(series=label, paper=paper.reindex(table.index)).reset_index())
    return pd.concat([one for one in parts if len(one)] or parts, ignore_index=True)


def group_scores(found: Runs) -> Iterator[tuple[str, dict[str, pd.DataFrame]]]:
    """Give the predictions that share a drawing, by title: the categories of one run, or runs of one category each."""
    if found.predictions.empty:
        return
    single = []
    for name, mine in found.predictions.groupby("name", sort=False):
        parts = [(category, of) for category, of in mine.groupby("category", sort=False)]
        if len(parts) > 1:
            yield name, dict(parts)
        else:
            single.append((name, *parts[0]))
    known = [category for _, category, _ in single]
    for start in range(0, len(single), CELLS):
        part = single[start : start + CELLS]
        several = len(set(known)) > 1
        titles = [c if known.count(c) == 1 else f"{c} ({name})" if several else name for name, c, _ in part]
        title = part[0][0] if len(part) == 1 else f"{part[0][0]} to {part[-1][0]}"
        yield title, {name: of for name, (_, _, of) in zip(titles, part, strict=True)}


def _means_of(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Average runs that differ in seed and category alone; none if one of them is there twice."""
    seed = rows[SEED].fillna(UNSET) if SEED in rows else pd.Series(UNSET, index=rows.index)
    if pd.DataFrame({"seed": seed, "category": rows["category"]}).duplicated().any():
        return []
    references = [name for name in rows if name.startswith(REFERENCE) and name != PROTOCOL]
    rows = rows.assign(**rows.groupby("category")[references].transform("first")) if references else rows
    categories = rows["category"].unique()
    parts = [(name, rows[rows["category"] == name]) for name in categories] if seed.nunique() > 1 else []
    if len(categories) > 1:
        parts.append((f"mean of {len(categories)}", rows[seed.groupby(seed).transform("size") == len(categories)]))
    found = []
    for title, part in parts:
        if len(part):
            values = part[[*metric_columns(rows), *references]].dropna(axis=1)
            by_seed = values.groupby(seed[part.index], sort=False).mean()
            mean, spread = by_seed.mean(), by_seed.std()
            lower, upper = (mean - spread).dropna().add_suffix("_lower"), (mean + spread).dropna().add_suffix("_upper")
            other = {PROTOCOL: max(part[PROTOCOL])} if PROTOCOL in part else {}
            found.append({"seeds": ", ".join(by_seed.index), "category": title, **mean, **lower, **upper, **other})
    return found


def _group_labels(first: pd.DataFrame, ignored: Sequence[str]) -> list[str]:
    """Say what sets each group's first run apart: its model, whether it is for several, the settings that differ."""
    model = first["model"] + (" on " + first["dataset"] if first["dataset"].nunique() > 1 else "")
    several_scopes = first.groupby(["model", "dataset"])["scope"].transform("nunique") > 1
    scope = first.apply(_scope_in_words, axis=1).where(several_scopes, "")
    settings = labels(varied(first.drop(columns=[name for name in ignored if name in first])))
    model = model.where((model.nunique() > 1) | ((scope == "") & (settings == "")), "")
    words = pd.DataFrame({"model": model, "scope": scope, "settings": settings})
    found = words.apply(lambda row: ", ".join(filter(None, row)), axis=1)
    return list(found.where(~found.duplicated(keep=False), found + " (" + first["name"] + ")"))


def _scope_in_words(run: pd.Series) -> str:
    chosen = str(run.get(CLASS_KEYS[0], "all")).strip("[]").replace('"', "").replace(", ", " + ")
    return f"one model for {chosen}" if run["scope"] else "one model per category"
