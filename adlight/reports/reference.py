"""Compare our results with published numbers from CSV files in a few known layouts."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from adlight.reports.collect import Runs
from adlight.reports.protocol import find_mismatch
from adlight.reports.rows import CONFIG, PROTOCOL, REFERENCE
from adlight.runs.config import CONF
from adlight.types import UserError

EXPERIMENTS = CONF.parent / "experiments"  # of a checkout; an installed package has none
CLASS_COLUMNS = ("category", "normal", "normal_digit", "normal_class")
METRICS = {  # a column's name or its ending -> our metric
    **{name: name for name in ("auroc", "ap", "f1_max", "precision_at_f1_max", "recall_at_f1_max", "f1_calibrated")},
    **{name: name for name in ("pixel_auroc", "pixel_ap", "aupro")},
    **{"f1": "f1_max", "precision": "precision_at_f1_max", "recall": "recall_at_f1_max"},  # papers report the oracle
}
SWEPT = {  # sweep, model and data set -> the experiment with published numbers for them
    ("digits", "gan", "mnist"): "gan_mnist",
    ("categories", "mae", "mvtec"): "mae_mvtec",
    **{("categories", model, "mvtec"): "article_table_1" for model in ("autoencoder", "dagan", "mkd")},
}
COLUMNS = {  # experiment whose table has a column per model -> the column for each of our models
    "article_table_1": {"mkd": "mkd", "autoencoder": "unet", "dagan": "dagan"}
    | dict.fromkeys(("mae", "mae_small"), "multimask_mae"),
}
CELL_KEYS = tuple(f"{CONFIG}model.{key}" for key in ("mask_ratio", "network.encoder_depth", "network.decoder_depth"))
_KEYS = ["metric", "category", "mask_ratio", "depth"]
_LAYOUTS = (
    f"it needs a column {', '.join(map(repr, CLASS_COLUMNS))} and columns of methods or metrics "
    "(auroc, ap, f1, precision, recall, ...), or a column 'mask_ratio' and columns of depths (E2D4, ...)"
)


def compare(runs: Runs, named: Sequence[str] | None, column: str | None) -> Runs:
    """Add published numbers to the results, as columns `reference_<metric>`.

    The reference of a mean is the mean over the run's categories, if numbers for all of them were published. A number
    published for a mask ratio and depth is added to the run's headline.

    Args:
        runs: the collected runs.
        named: CSV files or names of experiments to use for all runs; None uses each run's own experiment.
        column: column to use in tables with a column per method; None takes the column in `COLUMNS`, or the last.

    Returns:
        The runs. `published` has a row per run (`name`), `metric` and `category`, or `mask_ratio` and `depth`, with the
        `value`, its `source` and `protocol`: how the run's data differ from the publication's, empty if they do not.
        The results have the protocol in the column `rows.PROTOCOL`.

    Raises:
        UserError: a file is missing or its layout is unknown.
    """
    results, published = runs.results.copy(), _collect_published(runs, named, column)
    is_category, is_mean = results["level"] == "category", results["level"] == "mean"
    places = pd.concat([results["name"], locate_cells(results)], axis=1)
    for metric, rows in published.groupby("metric", sort=False):
        by_category = rows.dropna(subset="category").set_index(["name", "category"])["value"].astype(float)
        by_cell = rows.dropna(subset="depth").set_index(["name", "mask_ratio", "depth"])["value"].astype(float)
        values = by_category.reindex(pd.MultiIndex.from_frame(results[["name", "category"]])).set_axis(results.index)
        complete = values[is_category].groupby(results["name"]).agg(lambda group: group.mean(skipna=False))
        values = values.where(is_category).where(~is_mean, results["name"].map(complete))
        at_cell = by_cell.reindex(pd.MultiIndex.from_frame(places)).set_axis(results.index)
        has_cell = results["headline"] & results["level"].notna()
        results[f"{REFERENCE}{metric}"] = values.fillna(at_cell.where(has_cell))
    if len(published):
        has_reference = results[[name for name in results if name.startswith(REFERENCE)]].notna().any(axis=1)
        protocols = published.groupby("name")["protocol"].first()
        results[PROTOCOL] = results["name"].map(protocols).where(has_reference, "").fillna("").astype(object)
    return replace(runs, results=results, published=published)


def locate_cells(results: pd.DataFrame) -> pd.DataFrame:
    """Return each row's cell in an ablation: `mask_ratio`, and `depth` such as E2D4; missing for other models."""
    columns = [results.get(key, pd.Series(index=results.index, dtype=object)) for key in CELL_KEYS]
    ratio, encoder, decoder = (pd.to_numeric(column, errors="coerce") for column in columns)
    is_cell = ratio.notna() & encoder.notna() & decoder.notna()
    depth = "E" + columns[1].astype(str) + "D" + columns[2].astype(str)
    return pd.DataFrame({"mask_ratio": ratio.where(is_cell), "depth": depth.where(is_cell)})


def match_experiments(run: pd.Series) -> list[str]:
    """List the experiments whose published numbers may apply to a run."""
    names = [run["sweep"], run["experiment"]]
    if not str(run.get(f"{CONFIG}dataset.category")).startswith("["):  # nothing is published for lists of categories
        names.append(SWEPT.get((run["sweep"], run["model"], run["dataset"])))
    return list(dict.fromkeys(name for name in names if isinstance(name, str)))


def choose_column(experiment: str, run: pd.Series) -> str | None:
    """Choose the column of an experiment's table for a run's model; empty if there is none, None if all apply."""
    if experiment not in COLUMNS:
        return None
    network = str(run.get(f"{CONFIG}model.network._target_", "UNet"))
    is_other = run["model"] == "autoencoder" and not network.endswith("UNet")  # the article's autoencoder is a U-Net
    return "" if is_other else COLUMNS[experiment].get(run["model"], "")


def find_table(name: str) -> Path:
    """Return the path of a table, given as a path or as the name of an experiment."""
    path, expected = Path(name).expanduser(), EXPERIMENTS / name / "expected.csv"
    return expected if not path.is_file() and expected.is_file() else path


def read_table(path: Path, column: str | None = None) -> pd.DataFrame:
    """Read a published table, or one `column` of it; percentages become fractions.

    Without `column`, all metrics are read or, from a table of methods, the last column, which is the paper's method.

    Returns:
        One row per `metric` and `category`, or `mask_ratio` and `depth`, with its `value` and the file as `source`.

    Raises:
        UserError: the file does not exist, has an unknown layout, or a cell that is not a number.
    """
    table = _read_csv(path)
    key = next((name for name in (*CLASS_COLUMNS, "mask_ratio") if name in table), "")
    chosen = [name for name in table if name != key]
    source = str(path.relative_to(EXPERIMENTS.parent) if EXPERIMENTS in path.parents else path)
    if key == "mask_ratio":
        chosen = [name for name in chosen if re.fullmatch(r"E\d+D\d+", name)]
    elif column is not None and column not in chosen:
        raise UserError(f"reference {path} has no column {column!r}: there are {', '.join(chosen)}")
    else:
        chosen = [column] if column else [name for name in chosen if name in METRICS] or chosen[-1:]
        source += f" ({chosen[0]})" if len(chosen) == 1 else ""
    if not key or not chosen or table.empty:
        raise UserError(f"reference {path} has the columns {', '.join(table) or 'none'}: {_LAYOUTS}")
    if table[key].duplicated().any():
        raise UserError(f"reference {path} has several rows for the same {key}: keep one of them")
    numeric = [key, *chosen] if key == "mask_ratio" else chosen
    numbers = table.assign(**table[numeric].apply(pd.to_numeric, errors="coerce"))
    for row, at in zip(*(numbers.isna() & (table != "")).to_numpy().nonzero(), strict=True):
        where = f"in column {table.columns[at]!r} of row {table[key][row]!r}"
        raise UserError(f"reference {path}: {table.iloc[row, at]!r} {where} is not a number")
    long = numbers.melt(key, chosen, "column", "value").dropna(subset="value")
    if key == "mask_ratio":
        return long.rename(columns={"column": "depth"}).assign(metric="auroc", category=None, source=source)
    scale = 100 if long["value"].max() > 1.5 else 1
    columns = {"metric": long["column"].map(parse_metric), "category": long[key], "value": long["value"] / scale}
    return pd.DataFrame(columns | {"mask_ratio": float("nan"), "depth": None, "source": source})


def parse_metric(column: str) -> str:
    """Return the metric that a column's name equals or ends in; AUROC for names of methods."""
    endings = [name for name in METRICS if f"_{column}".endswith(f"_{name}")]
    return METRICS[max(endings, key=len)] if endings else "auroc"


def _collect_published(runs: Runs, named: Sequence[str] | None, column: str | None) -> pd.DataFrame:
    tables = {(name, column): read_table(find_table(name), column) for name in named or ()}
    parts = [pd.DataFrame(columns=["name", "source", "protocol", *_KEYS, "value"])]
    for _, run in runs.headlines.iterrows():
        for name in match_experiments(run) if named is None else named:
            own = column or choose_column(name, run)
            if own != "" and (name, own) not in tables and (path := find_table(name)).is_file():
                try:
                    tables[name, own] = read_table(path, own)
                except UserError:
                    if column is not None:
                        raise  # the user asked for this column; otherwise tables of another layout are skipped
                    tables[name, own] = pd.DataFrame()
            if (name, own) in tables:
                protocol = find_mismatch(name, runs.results[runs.results["name"] == run["name"]])
                parts.append(tables[name, own].assign(name=run["name"], protocol=protocol))
    published = pd.concat([part for part in parts if len(part)] or parts)
    return published.drop_duplicates(["name", *_KEYS], ignore_index=True)


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, encoding="utf-8-sig", keep_default_na=False)
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    except (OSError, ValueError) as error:
        raise UserError(f"reference {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return table.fillna("").apply(lambda column: column.str.strip())
