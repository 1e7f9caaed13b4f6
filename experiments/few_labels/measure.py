"""Few labelled defects: `python experiments/few_labels/measure.py <rows.csv> <run> ...`.

Of each category of each run 1, 2, 5 and 10 defects of the test are drawn, ten times, and the run learns from them as
`adlight.learn` does: with their masks and without. The rest of the category's test is scored, before and after, and so
is the whole test of the run's other categories. Thresholds are those of `recall=0.9`. `table <rows.csv>` prints means
over the categories, and the deviation of that mean over the draws, as Markdown.
"""

import csv
import logging
import sys
import warnings
from pathlib import Path

import pandas as pd
import torch
from hydra import initialize_config_dir

from adlight.learn import FOLDS
from adlight.learning.module import LearnedModule
from adlight.learning.samples import fit_heads, held_out_normals, score_labelled, score_learned, score_unseen
from adlight.learning.thresholds import recall_threshold
from adlight.metrics.image import auroc
from adlight.runs.config import CONF
from adlight.runs.folder import RunFolder
from adlight.runs.restore import frozen_config
from adlight.runs.weights import load_weights
from adlight.train import build

COUNTS, DRAWS, RECALL = (1, 2, 5, 10), 10, 0.9


def read(run):
    """The frozen detector, cells of held-out normal images, and every test image as if it were labelled."""
    config = frozen_config(RunFolder(run), "cpu")
    config.run_dir = "."
    data, module, trainer = build(config)
    load_weights(module, RunFolder(run).checkpoint(config.ckpt))
    data.setup("test")
    records = data.records("test")
    tested = score_labelled(module, records, data, "32-true", lambda record, batch: record.category)
    whole = tested[0].size is None and tested[0].content is None
    frame = tested[0].cells.score.shape[1:] if whole else data.frame.size  # small maps, the same image scores
    return module, held_out_normals(module, data, trainer, FOLDS), tested, frame


def scores(learned, tested, frame):
    """Scores of test images by the head that was fitted to all labels."""
    return torch.tensor([score_learned(learned, image, 0, frame) for image in tested])


def rows(run):
    module, normals, tested, frame = read(run)
    before, label = (torch.tensor([getattr(one, name) for one in tested]) for name in ("score", "label"))
    category = [one.category for one in tested]
    for name in dict.fromkeys(category):
        mine = torch.tensor([one == name for one in category])
        defects, others = (mine & (label == 1)).nonzero()[:, 0], ~mine
        for count, draw in ((count, draw) for count in COUNTS for draw in range(DRAWS)):
            chosen = defects[torch.randperm(len(defects), generator=torch.Generator().manual_seed(draw))[:count]]
            rest = mine.clone()
            rest[chosen] = False
            for masks in (1, 0):
                labelled = [tested[i] if masks else tested[i]._replace(covered=None) for i in chosen.tolist()]
                learned = LearnedModule(module, normals.cells.features.shape[1], count, 0, FOLDS)
                learned.set_heads(*fit_heads(normals, labelled, FOLDS))
                after = scores(learned, tested, frame)
                flagged = after > recall_threshold(score_unseen(learned, labelled, frame), RECALL).threshold
                found = {"auroc_before": auroc(before[rest], label[rest]), "auroc": auroc(after[rest], label[rest])}
                if others.any():
                    found["others_before"] = sum_auroc(before, label, category, name)
                    found["others"] = sum_auroc(after, label, category, name)
                found["recall"] = flagged[rest & (label == 1)].double().mean().item()
                found["fpr"] = flagged[rest & (label == 0)].double().mean().item()
                told = {"run": Path(run).name, "category": name, "defects": count, "masks": masks, "draw": draw}
                yield told | {key: f"{value:.6g}" for key, value in found.items()}


def sum_auroc(score, label, category, but):
    """Mean AUROC of the other categories."""
    found = []
    for name in {*category} - {but}:
        mine = torch.tensor([one == name for one in category])
        found.append(auroc(score[mine], label[mine]))
    return sum(found) / len(found)


def table(path):
    found = pd.read_csv(path)
    found["gain"] = found["auroc"] - found["auroc_before"]
    found["others_gain"] = found["others"] - found["others_before"]
    found["model"] = found["run"].map(lambda name: "one for all" if name == "all" else "one per category")
    print(
        "| model | masks | defects | before | after | gain ± deviation of draws | worst draw | by category | others |"
    )
    print("|---|---|--:|--:|--:|--:|--:|---|--:|")
    for key, part in found.groupby(["model", "masks", "defects"]):
        draws = part.groupby("draw")["gain"].mean()
        each = part.groupby("category")["gain"].mean()
        by_category = ", ".join(f"{name} {value:+.4f}" for name, value in each.items())
        others = part["others_gain"].mean()
        cells = [key[0], "yes" if key[1] else "no", key[2], f"{part['auroc_before'].mean():.4f}"]
        cells += [f"{part['auroc'].mean():.4f}", f"{draws.mean():+.4f} ± {draws.std():.4f}", f"{draws.min():+.4f}"]
        cells += [by_category, "" if pd.isna(others) else f"{others:+.4f}"]
        print(f"| {' | '.join(map(str, cells))} |")
    print("\n| defects | promised recall | found | false alarms |\n|--:|--:|--:|--:|")
    for count, part in found[(found["masks"] == 1) & (found["run"] != "all")].groupby("defects"):
        promised = 1 - max(1, int((count + 1) * (1 - RECALL) + 1e-9)) / (count + 1)
        draws = part.groupby("draw")["recall"].mean()
        said = f"{draws.mean():.3f} ± {draws.std():.3f} | {part['fpr'].mean():.3f}"
        print(f"| {count} | {promised:.3f} | {said} |")


def main():
    if sys.argv[1] == "table":
        return table(sys.argv[2])
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with initialize_config_dir(str(CONF), version_base="1.3"), open(sys.argv[1], "w", newline="") as file:
        names = ["run", "category", "defects", "masks", "draw", "auroc_before", "auroc", "others_before", "others"]
        writer = csv.DictWriter(file, [*names, "recall", "fpr"], lineterminator="\n")
        writer.writeheader()
        for run in sys.argv[2:]:
            for row in rows(run):
                writer.writerow(row)
                file.flush()
    return None


if __name__ == "__main__":
    main()
