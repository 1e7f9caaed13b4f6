"""The labels of the test split steer nothing: another labelling of the same test images changes only the metrics."""

import csv
import hashlib
import json

import pytest
import torch
from makers import fake_mvtec

PIECES = ("good", "hole", "scratch")


@pytest.fixture(scope="module")
def pair(adlight):
    """Two runs whose data differ in the names of the test folders: what is good, and what is which defect."""
    folders = []
    for name, turn in (("labelled", 0), ("relabelled", 1)):
        root = fake_mvtec(adlight.folder / name)
        for category in ("bottle", "screw"):
            if turn:
                test = root / category / "test"
                for piece in PIECES:
                    (test / piece).rename(test / f"{piece} before")
                for i, piece in enumerate(PIECES):
                    (test / f"{piece} before").rename(test / PIECES[(i + turn) % 3])
        words = [f"dataset.root={name}" if word.startswith("dataset.root=") else word for word in adlight.quick]
        folders.append((root, adlight.train(*words, f"hydra.run.dir=runs/{name}")))
    return folders


def scores(root, run):
    """Score by image, however it is called, and the labels in the same order."""
    with (run / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    hashes = [hashlib.sha256((root.parent / row["path"]).read_bytes()).hexdigest() for row in rows]
    kept = ("score", "threshold", "anomalous", "threshold_source", "pixel_threshold", "area", "boxes")
    return {h: [row[key] for key in kept] for h, row in zip(hashes, rows, strict=True)}, dict(
        zip(hashes, (row["label"] for row in rows), strict=True)
    )


def test_the_labels_did_change(pair):
    (one, labels), (other, relabelled) = (scores(*each) for each in pair)
    assert one.keys() == other.keys() and len(one) == 18
    assert sum(labels[image] != relabelled[image] for image in labels) == 12
    before, after = (json.loads((run / "metrics.json").read_text()) for _, run in pair)
    assert before["auroc"] != after["auroc"]


def test_no_score_decision_or_threshold_changes(pair):
    assert scores(*pair[0])[0] == scores(*pair[1])[0]
    before, after = (json.loads((run / "metrics.json").read_text()) for _, run in pair)
    for key in ("threshold", "pixel_threshold", "thresholds"):
        assert before[key] == after[key]


@pytest.mark.parametrize("name", ["best.ckpt", "last.ckpt"])
def test_no_checkpoint_changes(pair, name):
    one, other = (torch.load(run / "checkpoints" / name, weights_only=True) for _, run in pair)
    assert one["epoch"] == other["epoch"]  # the choice of the best one
    one, other = one["state_dict"], other["state_dict"]
    assert one.keys() == other.keys() and one.pop("_extra_state") == other.pop("_extra_state")
    assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())


def test_no_curve_changes(pair):
    assert (pair[0][1] / "metrics.csv").read_bytes() == (pair[1][1] / "metrics.csv").read_bytes()
