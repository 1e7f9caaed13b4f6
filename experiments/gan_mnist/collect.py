"""A table from run folders: `python experiments/gan_mnist/collect.py <table.csv> <run> [<run> ...]`.

Writes a row a run, of any model, and prints the same as Markdown with a mean a model. An evaluation's folder stands for
its run, with the evaluation's numbers. The other experiments with one normal class (`gan_cifar10`, `gan_mvtec`) use it
too.
"""

import csv
import json
import sys
from pathlib import Path

import yaml

METRICS = ["auroc", "ap", "f1_max", "precision_at_f1_max", "recall_at_f1_max", "f1_calibrated", "trivial_f1"]
COLUMNS = ["model", "normal", "seed", *METRICS, "generator_steps", "seconds"]


def row(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    run = Path(metrics.get("run", folder))  # an evaluation names its run
    config = yaml.safe_load((run / ".hydra" / "config.yaml").read_text())["dataset"]
    choices = yaml.safe_load((run / ".hydra" / "hydra.yaml").read_text())["hydra"]["runtime"]["choices"]
    content = json.loads((run / "metrics.json").read_text()) | metrics
    found = {name: content[name] for name in ("seed", *METRICS, "seconds")}
    normal = config.get("normal", config.get("category"))
    return found | {
        "model": choices["model"],
        "normal": normal,
        "generator_steps": content.get("generator_steps", ""),  # of a GAN
    }


def markdown(rows):
    yield f"| model | normal | {' | '.join(METRICS)} |"
    yield f"|---|---|{'--:|' * len(METRICS)}"
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model]
        mean = {name: sum(row[name] for row in mine) / len(mine) for name in METRICS}
        for one in [*mine, mean | {"normal": "**mean**"}] if len(mine) > 1 else mine:
            yield f"| {model} | {one['normal']} | {' | '.join(f'{one[name]:.4f}' for name in METRICS)} |"


def main():
    table, *runs = map(Path, sys.argv[1:])
    rows = sorted((row(run) for run in runs), key=lambda one: (one["model"], str(one["normal"]), one["seed"]))
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print("\n".join(markdown(rows)))


if __name__ == "__main__":
    main()
