"""The thesis's table and figures from finished runs: `python experiments/thesis.py <folder> <run> [<run> ...]`.

Writes into the folder, which holds `expected.csv`:

measured.csv    one row per run, of any model; printed as Markdown too, with the mean of each model
panels.png      one column per GAN (a digit, a category). A normal and an anomalous test image, each with its
                reconstruction, the residual and the mask at the calibrated pixel threshold (figures 4-4 and 4-6); of
                MVTec AD a normal training image and an anomalous test image with its reconstruction and mask (figure
                4-7). The images are drawn by a fixed seed, not chosen.
bars.png        precision, recall and F1 of each GAN at the best-F1 (oracle) and at the calibrated threshold, beside the
                thesis's, where it has them (figure 4-5)

An evaluation's folder stands for its run, with the evaluation's numbers.
"""

import csv
import json
import random
import sys
from pathlib import Path

import numpy as np
import torch
from hydra.utils import instantiate
from matplotlib.figure import Figure

from adlight.detector import Detector
from adlight.runs.folder import RunFolder

METRICS = ["auroc", "ap", "f1_max", "precision_at_f1_max", "recall_at_f1_max", "f1_calibrated", "trivial_f1"]
COLUMNS = ["model", "normal", "seed", *METRICS, "generator_steps", "seconds"]
ORACLE = {"precision": "precision_at_f1_max", "recall": "recall_at_f1_max", "f1": "f1_max"}


def content(folder):
    return json.loads((folder / "metrics.json").read_text())


def run_of(folder):
    """The run itself, or the one that an evaluation names."""
    return Path(content(folder).get("run", folder))


def normal_class(run):
    dataset = RunFolder(run).config().dataset
    return str(dataset.get("normal", dataset.get("category")))


def row(folder):
    run = run_of(folder)
    found = content(run) | content(folder)
    return {name: found.get(name, "") for name in COLUMNS} | {  # generator_steps: of a GAN
        "model": RunFolder(run).settings()[1]["model"],
        "normal": normal_class(run),
    }


def markdown(rows):
    yield f"| model | normal | {' | '.join(METRICS)} |"
    yield f"|---|---|{'--:|' * len(METRICS)}"
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model]
        mean = {name: sum(row[name] for row in mine) / len(mine) for name in METRICS}
        for one in [*mine, mean | {"normal": "**mean**"}] if len(mine) > 1 else mine:
            yield f"| {model} | {one['normal']} | {' | '.join(f'{one[name]:.4f}' for name in METRICS)} |"


def drawn(data, split, label, seed=0):
    """One image of a split, as its test or training had it, as a batch."""
    numbers = [i for i, record in enumerate(data.records(split)) if record.label == label]
    batch = data.datasets[split].__getitems__([random.Random(seed).choice(numbers)])
    return batch | {"image": batch["image"].float() / 255}


@torch.no_grad()
def column(run):
    """The pictures of a run and their names, top to bottom."""
    module, config = Detector.load(run).module, RunFolder(run).config().dataset
    data = instantiate(config, _convert_="all")
    data.prepare_data()
    data.setup()
    normal = drawn(data, "train" if "category" in config else "test", 0)
    pictures = []
    for name, batch in (("normal", normal), ("anomalous", drawn(data, "test", 1))):
        scores = module.score(batch)
        mask = scores["pixel"] > module.calibration.of(None).pixel
        residual = (batch["image"] - scores["reconstruction"]).abs().mean(1)
        pictures += [(name, batch["image"]), ("reconstruction", scores["reconstruction"])]
        pictures += [("residual", residual), ("mask", mask)]
    if "category" in config:
        pictures = [pictures[0], pictures[4], pictures[5], pictures[7]]
    return [(name, (one[0].permute(1, 2, 0) if one.ndim == 4 else one[0]).numpy()) for name, one in pictures]


def panels(gans):
    columns = {normal_class(run): column(run) for run in gans}
    height = len(next(iter(columns.values())))
    figure = Figure(figsize=(1 + 1.1 * len(columns), 0.2 + 1.1 * height), layout="constrained")
    axes = figure.subplots(height, len(columns), squeeze=False)
    for j, (title, pictures) in enumerate(columns.items()):
        for i, (name, picture) in enumerate(pictures):
            axes[i, j].imshow(picture, cmap="gray", vmin=0, vmax=1)
            axes[i, j].set(xticks=[], yticks=[])
            axes[i, 0].set_ylabel(name, fontsize=8)
        axes[0, j].set_title(title, fontsize=9)
    return figure


def bars(rows, paper):
    """Figure 4-5: the thesis's precision, recall and F1, and ours at two thresholds."""
    figure = Figure(figsize=(1.5 + 1.1 * len(rows), 8), layout="constrained")
    for axis, (name, oracle) in zip(figure.subplots(3, 1, sharex=True), ORACLE.items(), strict=True):
        series = {
            "thesis": [float(paper[row["normal"]][name]) for row in rows],
            "ours, best F1 (oracle)": [row[oracle] for row in rows],
            "ours, calibrated threshold": [row[f"{name}_calibrated"] for row in rows],
        }
        for place, ((label, heights), colour) in enumerate(
            zip(series.items(), ("0.7", "tab:blue", "tab:orange"), strict=True)
        ):
            axis.bar(np.arange(len(rows)) + 0.27 * (place - 1), heights, 0.25, label=label, color=colour)
        axis.set(ylabel=f"{name} (from 0.5)", ylim=(0.5, 1.02), xticks=range(len(rows)))
        axis.set_xticklabels([row["normal"] for row in rows])
        axis.grid(axis="y", alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper right", fontsize=8, ncols=3)
    figure.axes[-1].set_xlabel("normal class")
    return figure


def main():
    out, *folders = map(Path, sys.argv[1:])
    found = sorted(
        (row(folder) | {"folder": folder} for folder in folders), key=lambda one: (one["model"], one["normal"])
    )
    with (out / "measured.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
    print("\n".join(markdown(found)))
    gans = [one for one in found if one["model"] == "gan"]
    panels([run_of(one["folder"]) for one in gans]).savefig(out / "panels.png", dpi=110)
    paper = {line["normal"]: line for line in csv.DictReader((out / "expected.csv").open())}
    if len(gans) > 1 and {one["normal"] for one in gans} <= paper.keys():
        bars([one | content(one["folder"]) for one in gans], paper).savefig(out / "bars.png", dpi=110)


if __name__ == "__main__":
    main()
