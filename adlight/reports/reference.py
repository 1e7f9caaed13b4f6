"""Published numbers, to stand beside ours: CSV files of a few known shapes."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from adlight.reports.collect import Runs
from adlight.reports.protocol import other_protocol
from adlight.reports.rows import CONFIG, PROTOCOL, REFERENCE
from adlight.runs.config import CONF
from adlight.types import UserError

EXPERIMENTS = CONF.parent / "experiments"  # of a checkout; an installed package has none
CLASS_COLUMNS = ("category", "normal", "normal_digit", "normal_class")
METRICS = {  # a column's name or its ending -> the metric it is compared with
    **{name: name for name in ("auroc", "ap", "f1_max", "precision_at_f1_max", "recall_at_f1_max", "f1_calibrated")},
    **{name: name for name in ("pixel_auroc", "pixel_ap", "aupro")},
    **{"f1": "f1_max", "precision": "precision_at_f1_max", "recall": "recall_at_f1_max"},  # a paper's: the oracle's
}
SWEPT = {  # a sweep, its model and data set -> the experiment whose published numbers are about the same
    ("digits", "gan", "mnist"): "gan_mnist",
    ("categories", "mae", "mvtec"): "mae_mvtec",
    **{("categories", model, "mvtec"): "article_table_1" for model in ("autoencoder", "dagan", "mkd")},
}
COLUMNS = {  # an experiment whose table has a column per model -> the column of each model of ours
    "article_table_1": {"mkd": "mkd", "autoencoder": "unet", "dagan": "dagan"}
    | dict.fromkeys(("mae", "mae_small"), "multimask_mae"),
}
CELL_KEYS = tuple(f"{CONFIG}model.{key}" for key in ("mask_ratio", "network.encoder_depth", "network.decoder_depth"))
_KEYS = ["metric", "category", "mask_ratio", "depth"]
_SHAPES = (
    f"it needs a column {', '.join(map(repr, CLASS_COLUMNS))} beside methods or metrics "
    "(auroc, ap, f1, precision, recall, ...), or a column 'mask_ratio' beside depths (E2D4, ...)"
)


def compare(found: Runs, named: Sequence[str] | None, column: str | None) -> Runs:
    """Put published numbers beside ours, as columns `reference_<metric>` of the results.

    That of a mean is the mean over the very categories that the run has, if all of them were published. That of a
    mask ratio and depth stands beside the run's headline. `named` are CSV files or names of experiments, for all runs;
    None takes what each run's own experiment expects. `column` is the method to take of tables with several;
    None takes each model's own where `COLUMNS` says which that is.

    Returns:
        The runs; `published` has a row per run (`name`), `metric` and `category`, or `mask_ratio` and `depth`, with the
        `value`, its `source` and `protocol`: in what the run's data differ from the publication's, if they do. The
        results have this as `rows.PROTOCOL` beside the numbers.

    Raises:
        UserError: a file is missing or of no known shape.
    """
    results, published = found.results.copy(), _published(found, named, column)
    is_category, is_mean = results["level"] == "category", results["level"] == "mean"
    places = pd.concat([results["name"], cells(results)], axis=1)
    for metric, mine in published.groupby("metric", sort=False):
        of_class = mine.dropna(subset="category").set_index(["name", "category"])["value"].astype(float)
        of_cell = mine.dropna(subset="depth").set_index(["name", "mask_ratio", "depth"])["value"].astype(float)
        values = of_class.reindex(pd.MultiIndex.from_frame(results[["name", "category"]])).set_axis(results.index)
        complete = values[is_category].groupby(results["name"]).agg(lambda of: of.mean(skipna=False))
        values = values.where(is_category).where(~is_mean, results["name"].map(complete))
        at_cell = of_cell.reindex(pd.MultiIndex.from_frame(places)).set_axis(results.index)
        has_cell = results["headline"] & results["level"].notna()
        results[f"{REFERENCE}{metric}"] = values.fillna(at_cell.where(has_cell))
    if len(published):
        has_reference = results[[name for name in results if name.startswith(REFERENCE)]].notna().any(axis=1)
        protocols = published.groupby("name")["protocol"].first()
        results[PROTOCOL] = results["name"].map(protocols).where(has_reference, "").fillna("").astype(object)
    return replace(found, results=results, published=published)


def cells(results: pd.DataFrame) -> pd.DataFrame:
    """Give each row's place in an ablation: `mask_ratio`, and `depth` such as E2D4; missing where it has none."""
    columns = [results.get(key, pd.Series(index=results.index, dtype=object)) for key in CELL_KEYS]
    ratio, encoder, decoder = (pd.to_numeric(column, errors="coerce") for column in columns)
    is_cell = ratio.notna() & encoder.notna() & decoder.notna()
    depth = "E" + columns[1].astype(str) + "D" + columns[2].astype(str)
    return pd.DataFrame({"mask_ratio": ratio.where(is_cell), "depth": depth.where(is_cell)})


def experiments(run: pd.Series) -> list[str]:
    """Name the experiments whose published numbers may be about a run."""
    names = [run["sweep"], run["experiment"]]
    if not str(run.get(f"{CONFIG}dataset.category")).startswith("["):  # nobody has published a choice of categories
        names.append(SWEPT.get((run["sweep"], run["model"], run["dataset"])))
    return list(dict.fromkeys(name for name in names if isinstance(name, str)))


def column_of(experiment: str, run: pd.Series) -> str | None:
    """Name the column about a run's model in an experiment's table: empty if none is, None if columns are no models."""
    if experiment not in COLUMNS:
        return None
    network = str(run.get(f"{CONFIG}model.network._target_", "UNet"))  # another autoencoder is not the article's
    is_other = run["model"] == "autoencoder" and not network.endswith("UNet")
    return "" if is_other else COLUMNS[experiment].get(run["model"], "")


def path_of(name: str) -> Path:
    """Find a file, or the expected numbers of an experiment."""
    path, expected = Path(name).expanduser(), EXPERIMENTS / name / "expected.csv"
    return expected if not path.is_file() and expected.is_file() else path


def read(path: Path, column: str | None = None) -> pd.DataFrame:
    """Read a published table; percent become fractions.

    `column` is the method or metric to take; None takes all metrics or, of methods, the last: the paper's own.

    Returns:
        One row per `metric` and `category`, or `mask_ratio` and `depth`: its `value`, and the file as `source`.

    Raises:
        UserError: no such file, not of a known shape, or a cell that is not a number.
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
        raise UserError(f"reference {path} has the columns {', '.join(table) or 'none'}: {_SHAPES}")
    if table[key].duplicated().any():
        raise UserError(f"reference {path} has several rows for the same {key}: there must be one")
    numeric = [key, *chosen] if key == "mask_ratio" else chosen
    numbers = table.assign(**table[numeric].apply(pd.to_numeric, errors="coerce"))
    for row, at in zip(*(numbers.isna() & (table != "")).to_numpy().nonzero(), strict=True):
        where = f"in column {table.columns[at]!r} of row {table[key][row]!r}"
        raise UserError(f"reference {path}: {table.iloc[row, at]!r} {where} is not a number")
    long = numbers.melt(key, chosen, "column", "value").dropna(subset="value")
    if key == "mask_ratio":
        return long.rename(columns={"column": "depth"}).assign(metric="auroc", category=None, source=source)
    scale = 100 if long["value"].max() > 1.5 else 1
    found = {"metric": long["column"].map(metric_of), "category": long[key], "value": long["value"] / scale}
    return pd.DataFrame(found | {"mask_ratio": float("nan"), "depth": None, "source": source})


def metric_of(column: str) -> str:
    """Name the metric that a column's name is or ends in; AUROC if it names a method."""
    endings = [name for name in METRICS if f"_{column}".endswith(f"_{name}")]
    return METRICS[max(endings, key=len)] if endings else "auroc"


def _published(found: Runs, named: Sequence[str] | None, column: str | None) -> pd.DataFrame:
    tables = {(name, column): read(path_of(name), column) for name in named or ()}
    parts = [pd.DataFrame(columns=["name", "source", "protocol", *_KEYS, "value"])]
    for _, run in found.headlines.iterrows():
        for name in experiments(run) if named is None else named:
            own = column or column_of(name, run)
            if own != "" and (name, own) not in tables and (path := path_of(name)).is_file():
                try:
                    tables[name, own] = read(path, own)
                except UserError:
                    if column is not None:  # asked for; otherwise a table of another shape is passed over
                        raise
                    tables[name, own] = pd.DataFrame()
            if (name, own) in tables:
                protocol = other_protocol(name, found.results[found.results["name"] == run["name"]])
                parts.append(tables[name, own].assign(name=run["name"], protocol=protocol))
    together = pd.concat([one for one in parts if len(one)] or parts)
    return together.drop_duplicates(["name", *_KEYS], ignore_index=True)


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, encoding="utf-8-sig", keep_default_na=False)
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    except (OSError, ValueError) as error:
        raise UserError(f"reference {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return table.fillna("").apply(lambda column: column.str.strip())
