"""Tables from run folders: `python experiments/mae_mvtec/collect.py <run> [<run> ...]`.

Writes measured.csv (one row per run, checkpoint and category, the article's AUROC beside ours), from the runs'
evaluations `evaluations/best` and `evaluations/last`, and scores.csv (one row per evaluation with another scorer), from
all others; both beside this file, and printed as Markdown.
"""

import csv
import json
import sys
from pathlib import Path

import yaml

HERE = Path(__file__).parent
METRICS = ["auroc", "ap", "f1_max", "f1_calibrated", "trivial_f1", "pixel_auroc", "aupro"]
MEASURED = ["run", "checkpoint", "category", "normal", "anomalous", *METRICS, "article_auroc", "val_auroc"]
MEASURED += ["epochs", "seconds", "seed", "trained_at", "evaluated_at"]


def article():
    with (HERE / "expected.csv").open() as file:
        return {row["category"]: float(row["multimask_mae"]) for row in csv.DictReader(file)}


def measured(run, paper):
    trained = json.loads((run / "metrics.json").read_text())
    about = {key: trained[key] for key in ("epochs", "seconds", "seed")}
    about |= {"run": run.name, "trained_at": trained["commit"]}
    for which in ("best", "last"):
        content = json.loads((run / "evaluations" / which / "metrics.json").read_text())
        about |= {"checkpoint": which, "evaluated_at": content["commit"]}
        about |= {"val_auroc": content["validation"]["val/auroc"]}
        names = list(content["categories"])
        for name in names:
            yield about | content["categories"][name] | {"category": name, "article_auroc": paper[name]}
        if len(names) > 1:
            mean = sum(paper[name] for name in names) / len(names)
            yield about | {key: content[key] for key in METRICS} | {"category": "mean", "article_auroc": mean}


def scores(run):
    for path in sorted((run / "evaluations").glob("sweep-*/*/metrics.json")):
        words = yaml.safe_load((path.parent / ".hydra" / "overrides.yaml").read_text())
        changes = dict(word.lstrip("+").split("=", 1) for word in words if not word.startswith("run="))
        content = json.loads(path.read_text())
        row = {"run": run.name} | {key.removeprefix("model.scorer."): value for key, value in changes.items()}
        yield row | {key: content[key] for key in METRICS}


def rounded(value):
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def write(name, rows, columns):
    with (HERE / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"\n{name}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print("| " + " | ".join(rounded(row.get(column, "")) for column in columns) + " |")


def main():
    runs, paper = [Path(word) for word in sys.argv[1:]], article()
    write("measured.csv", [row for run in runs for row in measured(run, paper)], MEASURED)
    found = sorted((row for run in runs for row in scores(run)), key=lambda row: (row["run"], -row["auroc"]))
    write("scores.csv", found, ["run", "ckpt", "score", "reduce", *METRICS])


if __name__ == "__main__":
    main()
