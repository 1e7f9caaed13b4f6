"""Promised and found false alarm rates: `python experiments/calibration/measure.py <rows.csv> [override ...]`.

Each of the comma-separated `model=`, `dataset.normal=` or `dataset.category=` and `seed=` is fitted once, on images
drawn by that seed, which decides what is held out too. Of each fit the file gets rows for the shares ALPHAS and the
RULES: which scores calibrate (held-out images, or with them the cross-fitted training images) and how (interpolated
quantile, as it was before, or the conformal one). What is found is the share of the test's normal images above the
threshold. `table <rows.csv> ...` prints means over all fits, with their standard errors and what was promised, as
Markdown.
"""

import csv
import itertools
import logging
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from hydra import compose, initialize_config_dir

from adlight.detection.crossfitting import fetch
from adlight.detection.inference import inference
from adlight.metrics.methods import Method
from adlight.runs.config import CONF
from adlight.train import build

ALPHAS = ("0.05", "0.1", "0.2")
RULES = ("held out, interpolated", "held out, conformal", "cross-fitted, interpolated", "cross-fitted, conformal")
SWEPT = ("model", "dataset.normal", "dataset.category", "seed")
FIXED = (
    "run_dir=.",
    "trainer=cpu",
    "logger=none",
    "callbacks=none",
    "trainer.enable_progress_bar=false",
    "dataset.keep_shape=false",
)
COLUMNS = ["data", "model", "class", "limit", "seed", "alpha", "rule", "images", "promised", "found", "normals"]


def jobs(overrides):
    """Every combination of the swept settings, as lists of overrides."""
    pairs = [word.split("=", 1) for word in overrides]
    choices = [[(key, one) for one in (value.split(",") if key in SWEPT else [value])] for key, value in pairs]
    return [dict(job) for job in itertools.product(*choices)]


def fit(settings):
    """Scores of the held-out images, of the cross-fitted ones, and of the test's normal images."""
    words = [f"{key}={value}" for key, value in settings.items()]
    config = compose("train", [*FIXED, f"dataset.source.seed={settings['seed']}", *words])
    data, module, trainer = build(config)
    trainer.fit(module, data)
    normal = [row for row in module.validation_scores if row.label == 0]
    data.setup("test")
    index = torch.tensor([i for i, record in enumerate(data.records("test")) if not record.label])
    with inference(torch.device("cpu"), None):
        test = [module.score(fetch(data.datasets["test"], part, module.device))["image"] for part in index.split(256)]
    held_out, training = ([row.score for row in normal if (row.index < 0) == crossed] for crossed in (False, True))
    return np.array(held_out), np.array(training), torch.cat(test).double().numpy()


def threshold(score, alpha, rule):
    if rule.endswith("interpolated"):
        return np.quantile(score, 1 - float(alpha))
    return Method.parse(f"fpr:{alpha}").of_images(torch.from_numpy(score))


def rows(settings):
    held_out, training, test = fit(settings)
    given = {"data": settings["dataset"], "model": settings["model"], "seed": settings["seed"]}
    given["class"] = settings.get("dataset.normal", settings.get("dataset.category"))
    given["limit"] = settings.get("dataset.train_limit", "")
    for alpha, rule in itertools.product(ALPHAS, RULES):
        score = held_out if rule.startswith("held out") else np.concatenate([held_out, training])
        found = float((test > threshold(score, alpha, rule)).mean())
        promised = Method.parse(f"fpr:{alpha}").promised(len(score))
        yield (
            given
            | {"alpha": alpha, "rule": rule, "images": len(score), "promised": promised}
            | {
                "found": found,
                "normals": len(test),
            }
        )


def table(paths):
    """One row per data set, model and number of images: the mean of the fits' found rates, rule by rule."""
    found = pd.concat([pd.read_csv(path, dtype={"alpha": str}) for path in paths])
    found["limit"] = found["limit"].map("{:g}".format).replace("nan", "all")
    print(f"| data | limit | model | fits | alpha | {' | '.join(RULES)} |\n|---|--:|---|--:|--:|{'--:|' * len(RULES)}")
    for key, part in found.groupby(["data", "limit", "model", "alpha"], sort=False):
        cells = []
        for rule in RULES:
            mine = part[part["rule"] == rule]
            error = mine["found"].std() / len(mine) ** 0.5  # of the fits' mean
            promised = "" if rule.endswith("interpolated") else f" ({mine['promised'].mean():.3f})"
            cells.append(f"{mine['found'].mean():.3f} ± {error:.3f}{promised}")
        print(f"| {' | '.join(map(str, key[:3]))} | {len(part) // len(RULES)} | {key[3]} | {' | '.join(cells)} |")


def main():
    if sys.argv[1] == "table":
        return table(sys.argv[2:])
    path, overrides = Path(sys.argv[1]), sys.argv[2:]
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    new = not path.exists()
    with initialize_config_dir(str(CONF), version_base="1.3"), path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        for settings in jobs(overrides):
            writer.writerows(rows(settings))
            file.flush()
    return None


if __name__ == "__main__":
    main()
