"""The cells of an ablation: `python experiments/mae_ablation/collect.py <table.csv> <sweep>`.

Writes a row a cell, `paper` being table 2 of the article. The heat maps are `adlight.report`'s.
"""

import csv
import sys
from pathlib import Path

from adlight.reports import collect, reference

METRICS = ["auroc", "ap", "f1_max", "f1_calibrated", "pixel_auroc", "aupro"]
COLUMNS = ["mask_ratio", "encoder_depth", "decoder_depth", "encoder", "auroc", "paper", "auroc_lower", "auroc_upper"]


def row(run, paper):
    network = "model.network."
    settings, metrics = run.settings, run.headline.metrics
    lower, upper = run.headline.intervals["auroc"]
    return {
        "mask_ratio": settings["model.mask_ratio"],
        "encoder_depth": settings[f"{network}encoder_depth"],
        "decoder_depth": settings[f"{network}decoder_depth"],
        "encoder": settings[f"{network}encoder"],
        **{name: f"{metrics[name]:.4f}" for name in METRICS},
        "auroc_lower": f"{lower:.4f}",
        "auroc_upper": f"{upper:.4f}",
        "paper": paper.cells[reference.cell(run)],
        "seed": settings["seed"],
        "epochs": run.about["epochs"],
        "seconds": round(run.about["seconds"]),
    }


def main():
    table, *places = sys.argv[1:]
    paper = reference.read(Path(__file__).with_name("expected.csv"))
    rows = [row(run, paper) for run in collect.collect(places) if run.state == "finished"]
    rows.sort(key=lambda one: (one["encoder"], one["mask_ratio"], -float(one["paper"])))
    with open(table, "w", newline="") as file:
        writer = csv.DictWriter(file, [*COLUMNS, *METRICS[1:], "seed", "epochs", "seconds"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
