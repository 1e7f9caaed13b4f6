"""Labels through the served page's endpoint: `python experiments/few_labels/served.py <run> <draws> <folder>`.

A copy of the run is served, five images of its test are drawn and labelled by HTTP requests, those with a defect with
their masks, and `adlight learn` is called without further arguments. The other test images are scored by the run and by
what it has learned; F1 is that of the calibrated thresholds. One line of a table per draw.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import torch

from adlight.detector import Detector
from adlight.metrics.image import auroc
from adlight.runs.folder import RunFolder

LABELS = 5


def post_labels(run, records):
    """Serve a run, and label images as a page would."""
    command = ["serve", f"run={run}", f"max_labels={LABELS}", "port=0", "device=cpu"]
    server = subprocess.Popen([sys.executable, "-m", "adlight", *command], stdout=subprocess.PIPE, text=True)
    try:
        url = next(line.split()[1] for line in server.stdout if line.startswith("page: "))
        for record in records.itertuples():
            files = {"image": Path(record.path).read_bytes()}
            if record.label:
                kind, name = Path(record.path).parts[-2:]
                folder = Path(record.path).parents[2] / "ground_truth" / kind
                files["mask"] = (folder / f"{Path(name).stem}_mask.png").read_bytes()
            query = {"label": ("normal", "anomalous")[record.label], "category": record.category}
            httpx.post(f"{url}labels", files=files, params=query, timeout=60).raise_for_status()
    finally:
        server.terminate()
        server.wait()


def figures(run, records):
    """AUROC and, at the calibrated thresholds, F1 of a detector."""
    (category,) = set(records["category"])
    found = Detector.load(run, device="cpu", category=category)(list(records["path"]), reconstruct=False)
    label, flagged = records["label"].to_numpy() == 1, np.array([one.anomalous for one in found])
    score = torch.tensor([one.score for one in found], dtype=torch.float64)
    f1 = 2 * (flagged & label).sum() / (flagged.sum() + label.sum())
    return auroc(score, torch.from_numpy(label).long()), f1


def main():
    run, draws, place = RunFolder(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    tested = run.predictions()
    print("| draw | labelled | AUROC before | after | F1 before | after |\n|--:|---|--:|--:|--:|--:|")
    for draw in range(draws):
        copy = place / f"draw{draw}"
        shutil.copytree(run.path, copy)
        chosen = np.random.default_rng(draw).permutation(len(tested))[:LABELS]
        labelled, rest = tested.iloc[chosen], tested.drop(index=tested.index[chosen])
        post_labels(copy, labelled)
        words = ["learn", f"run={copy}", "device=cpu", f"hydra.run.dir={place}/learned{draw}"]
        subprocess.run([sys.executable, "-m", "adlight", *words], check=True, stdout=subprocess.DEVNULL)
        (a, f), (b, g) = figures(copy, rest), figures(place / f"learned{draw}", rest)
        defects = int(labelled["label"].sum())
        said = f"{defects} defects, {LABELS - defects} normal"
        print(f"| {draw} | {said} | {a:.4f} | {b:.4f} | {f:.4f} | {g:.4f} |", flush=True)


if __name__ == "__main__":
    main()
