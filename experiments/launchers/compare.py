"""Whether launchers agree: `python experiments/launchers/compare.py <table.csv> <sweep> <sweep> [...]`.

Writes one row per job and sweep. Fails unless all sweeps have the same finished jobs with the same metrics, to the last
digit, and the same predictions.csv, byte for byte.
"""

import csv
import sys
from pathlib import Path

METRICS = ["val/auroc", "auroc", "ap", "f1_max", "f1_calibrated", "pixel_auroc", "aupro"]


def jobs(sweep):
    with (sweep / "results.csv").open(newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    unfinished = [name for name, row in rows.items() if row["status"] != "finished"]
    if unfinished:
        sys.exit(f"{sweep}: not finished: {', '.join(unfinished)}")
    return {
        name: {metric: row[metric] for metric in METRICS}
        | {"predictions": (sweep / name / "predictions.csv").read_bytes()}
        for name, row in sorted(rows.items())
    }


def main():
    table, *sweeps = map(Path, sys.argv[1:])
    found = {sweep.name: jobs(sweep) for sweep in sweeps}
    first, *others = found
    for other in others:
        if found[other] != found[first]:
            sys.exit(f"{other} differs from {first}")
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["launcher", "job", *METRICS], extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for sweep, rows in found.items():
            writer.writerows({"launcher": sweep, "job": name} | row for name, row in rows.items())
    print(f"{len(found)} sweeps of {len(found[first])} jobs: the same to the last digit")


if __name__ == "__main__":
    main()
