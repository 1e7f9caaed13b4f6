"""The thesis's figures from finished runs: `python experiments/figures.py <out.png> <run> [<run> ...]`.

One column a run (a digit, a category): a normal test image and an anomalous one, each with its reconstruction, the
residual and the mask at the calibrated pixel threshold (thesis, figures 4-4, 4-6 and 4-7). The images are drawn by a
fixed seed, not chosen. Below `out.png`, `out-bars.png` has precision, recall and F1 of each run at the best-F1
(oracle) and at the calibrated threshold, beside expected.csv in the same folder (figure 4-5). An evaluation's folder
stands for its run, with the evaluation's numbers.
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

from adlight import runs
from adlight.detector import Detector


def content(folder):
    return json.loads((folder / "metrics.json").read_text())


def run_of(folder):
    """The run itself, or the one that an evaluation names."""
    return Path(content(folder).get("run", folder))


def normal_class(run):
    dataset = runs.load_config(run).dataset
    return str(dataset.get("normal", dataset.get("category")))


def drawn(run, seed=0):
    """A batch of one normal and one anomalous test image of a run, as its test had them."""
    data = instantiate(runs.load_config(run).dataset, _convert_="all")
    data.prepare_data()
    data.setup()
    records, store = data.records("test"), data.stores["test"]
    chosen = [random.Random(seed).choice([i for i, r in enumerate(records) if r.label == label]) for label in (0, 1)]
    batch = store.__getitems__(chosen)
    return batch | {"image": batch["image"].float() / 255}


@torch.no_grad()
def column(run):
    """The eight pictures of a run, top to bottom."""
    module, batch = Detector.load(run).module, drawn(run)
    scores = module.score(batch)
    mask = scores["pixel"] > module.thresholds.of(None).pixel
    residual = (batch["image"] - scores["reconstruction"]).abs().mean(1)
    rows = zip(batch["image"], scores["reconstruction"], residual, mask, strict=True)
    return [one.permute(1, 2, 0).numpy() if one.ndim == 3 else one.numpy() for row in rows for one in row]


def panels(folders):
    folders = [run_of(folder) for folder in folders]
    names = ("normal", "reconstruction", "residual", "mask", "anomalous", "reconstruction", "residual", "mask")
    figure = Figure(figsize=(1 + 1.1 * len(folders), 9), layout="constrained")
    axes = figure.subplots(len(names), len(folders), squeeze=False)
    for j, run in enumerate(folders):
        for i, picture in enumerate(column(run)):
            axes[i, j].imshow(picture, cmap="gray", vmin=0, vmax=1)
            axes[i, j].set(xticks=[], yticks=[])
        axes[0, j].set_title(normal_class(run), fontsize=9)
    for i, name in enumerate(names):
        axes[i, 0].set_ylabel(name, fontsize=8)
    return figure


def bars(folders, expected):
    """Figure 4-5: the thesis's precision, recall and F1, and ours at two thresholds."""
    paper = {row["normal"]: row for row in csv.DictReader(expected.open())}
    figure = Figure(figsize=(1.5 + 1.1 * len(folders), 8), layout="constrained")
    for axis, name in zip(figure.subplots(3, 1, sharex=True), ("precision", "recall", "f1"), strict=True):
        for place, (label, colour) in enumerate(
            (("thesis", "0.7"), ("ours, best F1 (oracle)", "tab:blue"), ("ours, calibrated threshold", "tab:orange"))
        ):
            heights = []
            for folder in folders:
                found = content(folder)
                oracle = {"precision": "precision_at_f1_max", "recall": "recall_at_f1_max", "f1": "f1_max"}[name]
                thesis = float(paper.get(normal_class(run_of(folder)), {}).get(name, "nan"))
                heights.append((thesis, found[oracle], found[f"{name}_calibrated"])[place])
            axis.bar(np.arange(len(folders)) + 0.27 * (place - 1), heights, 0.25, label=label, color=colour)
        axis.set(ylabel=f"{name} (from 0.5)", ylim=(0.5, 1.02), xticks=range(len(folders)))
        axis.set_xticklabels([normal_class(run_of(folder)) for folder in folders])
        axis.grid(axis="y", alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper right", fontsize=8, ncols=3)
    figure.axes[-1].set_xlabel("normal class")
    return figure


def main():
    out, folders = Path(sys.argv[1]), [Path(word) for word in sys.argv[2:]]
    panels(folders).savefig(out, dpi=110)
    bars(folders, out.parent / "expected.csv").savefig(out.with_name(f"{out.stem}-bars.png"), dpi=110)
    print(out, out.with_name(f"{out.stem}-bars.png"))


if __name__ == "__main__":
    main()
