"""What was tried on a run: `python experiments/gan_mnist/tries.py <run> <file>` writes the file beside this one.

One row per evaluation that changed the scorer (`<run>/evaluations/<sweep>/<job>`), by falling validation AUROC:
what may choose, beside the test, which may not.
"""

import csv
import json
import sys
from pathlib import Path

import yaml

COLUMNS = ["method", "steps", "latent_penalty", "score", "lam", "weights", "feature"]
METRICS = ["val_auroc", "auroc", "ap", "f1_max", "f1_calibrated"]


def row(path):
    words = yaml.safe_load((path.parent / ".hydra" / "overrides.yaml").read_text())
    changes = dict(word.lstrip("+").split("=", 1) for word in words)
    content = json.loads(path.read_text())
    found = {name: changes.get(f"model.scorer.{name}", "") for name in COLUMNS}
    return found | content | {"val_auroc": content["validation"]["val/auroc"]}


def main():
    paths = Path(sys.argv[1]).glob("evaluations/*/*/metrics.json")
    rows = sorted(map(row, paths), key=lambda one: -one["val_auroc"])
    with (Path(__file__).parent / sys.argv[2]).open("w", newline="") as file:
        writer = csv.DictWriter(file, [*COLUMNS, *METRICS], extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    names = [*COLUMNS, *METRICS]
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")
    for one in rows:
        print("| " + " | ".join(f"{one[n]:.3f}" if n in METRICS else str(one[n]) for n in names) + " |")


if __name__ == "__main__":
    main()
