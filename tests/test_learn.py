"""Learning from labels: what a CSV or folders say, the head, thresholds that labels support, and the whole command."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from makers import write_image, write_mask
from processes import check_refused
from readers import content, scores, table
from scipy.stats import beta

from adlight.detector import Detector
from adlight.learning.calibration import LabelledCalibration
from adlight.learning.cells import Cells, extract_cells, fit_folds, fit_head, select_defect_cells
from adlight.learning.labels import read_labels
from adlight.learning.samples import _Collector
from adlight.learning.thresholds import lower_bound, precision_threshold, recall_threshold
from adlight.runs.labels import LabelFolder
from adlight.types import Batch, Scores, UserError


def write_labels(path, rows, columns=("path", "label", "mask")):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


@pytest.fixture
def images(tmp_path):
    """Two normal images and two defects, one with a mask."""
    for name in ("good/a", "good/b", "bad/c", "bad/d"):
        write_image(tmp_path / f"{name}.png", ord(name[-1]))
    write_mask(tmp_path / "masks" / "d_mask.png")
    return tmp_path


def test_a_table_and_folders_say_the_same(images):
    rows = [("good/a.png", "normal", ""), (images / "good/b.png", 0, ""), ("bad/c.png", 1, "")]
    rows += [("bad/d.png", "anomalous", "masks/d_mask.png")]
    by_table, by_folder = read_labels(write_labels(images / "labels.csv", rows)), read_labels(images)
    assert by_table == by_folder and [one.label for one in by_table] == [0, 0, 1, 1]
    assert by_table[3].mask == str(images / "masks/d_mask.png") and by_table[2].mask is None
    table = images / "labels.csv"
    table.write_text(table.read_text().replace(",", ";"))
    assert read_labels(table) == by_table


def test_each_defect_has_the_mask_of_its_own_folder(images):
    for kind in ("hole", "scratch"):
        write_image(images / "bad" / kind / "x.png", len(kind))
        write_mask(images / "masks" / kind / "x_mask.png")
    found = {Path(one.path).relative_to(images): one.mask for one in read_labels(images)}
    for kind in ("hole", "scratch"):
        assert found[Path("bad", kind, "x.png")] == str(images / "masks" / kind / "x_mask.png")


def test_corrected_predictions_are_labels_where_something_is_written(images):
    rows = [("good/a.png", 2.0, 1, "normal"), ("good/b.png", 1.0, 0, ""), ("bad/c.png", 1.0, 0, "1")]
    found = read_labels(write_labels(images / "p.csv", rows, ("path", "score", "label", "corrected")))
    assert [(one.path[-5:], one.label) for one in found] == [("a.png", 0), ("c.png", 1)]


@pytest.mark.parametrize(
    ("rows", "columns", "named"),
    [
        ([("good/a.png", "maybe")], ("path", "label"), "line 2"),
        ([("good/a.png", "0"), ("good/x.png", "0")], ("path", "label"), "good/x.png"),
        ([("good/a.png", "0", "masks/d_mask.png")], ("path", "label", "mask"), "mask"),
        ([("good/a.png", "0"), ("good/../good/a.png", "1")], ("path", "label"), "good/../good/a.png"),
        ([("good/a.png", "0")], ("file", "label"), "file, label"),
        ([("good/a.png", "")], ("path", "corrected"), "corrected"),
    ],
)
def test_bad_tables_are_refused_by_name(images, rows, columns, named):
    with pytest.raises(UserError, match=named):
        read_labels(write_labels(images / "labels.csv", rows, columns))


def test_labels_accumulate_and_the_last_one_counts(images):
    labels = LabelFolder(images / "run")
    records = read_labels(images)
    assert labels.add(records) == (4, 0) and labels.add(records) == (0, 0)
    assert labels.add([records[0]._replace(label=1)]) == (0, 1)
    shutil.rmtree(images / "good")  # what is kept does not need it
    kept = labels.read()
    assert [one.label for one in kept] == [1, 0, 1, 1] and [one.category for one in kept] == [""] * 4
    assert Detector and np.array_equal(*[np.fromfile(path, np.uint8) for path in (kept[3].path, records[3].path)])
    same = images / "same.JPEG"  # by its name, not by what is in it
    shutil.copy(records[2].path, same)
    assert labels.find(same).label == 1 and labels.add([records[2]._replace(path=str(same), category="x")]) == (0, 1)
    write_mask(images / "masks" / "d_mask.png", 64)
    assert labels.add([records[3]]) == (0, 1) and labels.find(images / "masks/d_mask.png") is None
    assert labels.count_among([records[0].path, same, images / "masks/d_mask.png"]) == 2 and len(labels.read()) == 4
    (labels.path / "labels.csv").write_text("path,label\na,2\n")
    with pytest.raises(UserError, match="damaged"):
        labels.read()


def random_cells(count, width=6, seed=0):
    rng = np.random.default_rng(seed)
    return torch.tensor(rng.normal(size=(count, width)) @ np.diag(np.arange(1, width + 1)), dtype=torch.float32)


def test_the_head_is_fisher_s_discriminant():
    """Beside scikit-learn's direction; normal cells have mean 0, and the deviation that n gives."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    normal, defect = random_cells(4000), random_cells(300, seed=1) + torch.arange(6)
    score = random_cells(4000, 1, 2)[:, 0] * 3 + 5
    head = fit_head(Cells(score, normal), [defect[:100], defect[100:]])
    added = normal.double() @ head.weight.double() + head.bias.double()
    assert added.mean().abs() < 1e-4 and added.std(correction=0).item() == pytest.approx(
        2 / 10 * score.std(correction=0).item(), rel=1e-4
    )
    x, y = torch.cat([normal, defect]).numpy(), np.repeat([0, 1], [4000, 300])
    reference = LinearDiscriminantAnalysis(solver="lsqr").fit(x, y).coef_[0]
    cosine = np.dot(reference, weight := head.weight.numpy()) / np.linalg.norm(reference) / np.linalg.norm(weight)
    assert cosine > 0.9  # of the ridge, and of the defects' own covariance
    assert ((defect @ head.weight) + head.bias).mean() > added.max() / 4


def test_without_defects_the_head_adds_nothing_and_folds_do_not_see_their_own():
    normal, score = random_cells(1000), random_cells(1000, 1, 2)[:, 0]
    cells, fold = Cells(score, normal), torch.arange(1000) % 5
    assert not fit_head(cells, []).weight.any()
    defect = random_cells(50, seed=3) + 4
    whole, parts = fit_folds(cells, fold, [defect], 5)
    assert whole.weight.any() and not parts[0].weight.any()  # the only defect is in the first fold
    changed = Cells(score, normal.clone())
    changed.features[fold == 2] = 100.0
    other = fit_folds(changed, fold, [defect], 5)[1]
    assert torch.equal(other[2].weight, parts[2].weight) and not torch.equal(other[1].weight, parts[1].weight)


def test_cells_of_a_defect():
    found = Cells(torch.tensor([[1.0, 5.0], [4.0, torch.nan]]), torch.arange(8.0).view(2, 2, 2))
    assert select_defect_cells(found, None, 3.0).tolist() == [[2, 3], [4, 5]]
    assert select_defect_cells(found, None, 9.0).tolist() == [[2, 3]]  # the highest
    covered = torch.tensor([[0.3, 0.0], [0.1, 1.0]])  # the last one is padding
    assert select_defect_cells(found, covered, 3.0).tolist() == [[0, 1]]


def test_detectors_without_cells_have_averages_over_the_map():
    image, pixel = torch.rand(2, 3, 20, 40), torch.rand(2, 20, 40)
    batch = Batch(image=image, label=None, mask=torch.zeros(2, 20, 40, dtype=torch.bool), index=None, category=None)
    found = extract_cells(batch, Scores(image=None, pixel=pixel, reconstruction=image * 0))
    assert found.score.shape == (2, 2, 3) and found.features.shape == (2, 2, 3, 6)
    torch.testing.assert_close(found.score[:, 0, 0], pixel[:, :10, :14].mean((1, 2)))
    padded = {**batch, "size": torch.tensor([[20, 40], [20, 16]])}
    assert extract_cells(padded, Scores(image=None, pixel=pixel, reconstruction=image)).score.isnan().sum() == 2


def test_a_recall_is_kept_by_as_many_labels_as_it_takes():
    score = torch.arange(1.0, 20.0)  # 19 defects
    assert recall_threshold(score, 0.95).threshold == 1.0 and "19" in recall_threshold(score, 0.95).text
    few = recall_threshold(score[:9], 0.95)
    assert few.threshold < 1.0 and few.threshold == pytest.approx(1.0) and "0.9" in few.text and "19" in few.text
    rng = torch.Generator().manual_seed(0)
    draws = torch.randn(4000, 21, generator=rng)
    kept = [(row[20] > recall_threshold(row[:20], 0.9).threshold) for row in draws]
    assert sum(kept) / 4000 == pytest.approx(1 - 2 / 21, abs=0.015)
    with pytest.raises(UserError, match="recall"):
        recall_threshold(score[:0], 0.9)


def test_a_precision_is_reached_by_the_lowest_threshold():
    score, label = torch.tensor([1.0, 2, 3, 4, 5, 6, 6]), torch.tensor([0, 1, 0, 0, 1, 1, 1])
    found = precision_threshold(score, label, 0.99)
    assert found.threshold == 4.0 and "3 of 3" in found.text and f"{lower_bound(3, 3):.3g}" in found.text
    assert (
        precision_threshold(score, label, 0.55).threshold < 1 and precision_threshold(score, label, 0.6).threshold == 1
    )
    assert lower_bound(3, 3) == pytest.approx(0.05 ** (1 / 3)) and lower_bound(0, 3) == 0
    assert lower_bound(7, 9) == pytest.approx(beta.ppf(0.05, 7, 3))
    for wrong in (label * 0, label * 0 + 1):
        with pytest.raises(UserError, match="precision"):
            precision_threshold(score, wrong, 0.9)
    with pytest.raises(UserError, match="not reached"):
        precision_threshold(-score, label, 0.9)


@pytest.fixture(scope="module")
def taught(adlight, tiny_run, tmp_path_factory):
    """A copy of the run that has learned from some of its test images; its folder, and what was printed."""
    run = tmp_path_factory.mktemp("learn") / "run"
    shutil.copytree(tiny_run[0], run, ignore=shutil.ignore_patterns("evaluations", "predictions"))
    data, rows = adlight.folder / "data" / "bottle", []
    for i in range(3):
        mask = data / f"ground_truth/hole/00{i}_mask.png"
        rows += [(data / f"test/hole/00{i}.png", 1, mask), (data / f"test/good/00{i}.png", 0, "")]
    labels = write_labels(run.parent / "labels.csv", rows)
    outcome = adlight("learn", f"run={run}", f"labels={labels}", "recall=0.9", "device=cpu", "hydra.run.dir=taught")
    assert outcome.code == 0, outcome.err
    return run, adlight.folder / "taught", outcome.out


def test_the_learned_run_predicts_and_is_evaluated(adlight, taught, tiny_run):
    run, learned, out = taught
    assert "6 new" in out and "9 are needed" in out and "6 labelled images are of the run's test" in out
    assert content(run) == content(tiny_run[0]) and len(LabelFolder(run).read()) == 6
    before, after = Detector.load(run, device="cpu"), Detector.load(learned, device="cpu")
    paths = [str(path) for path in sorted((adlight.folder / "data" / "bottle" / "test").rglob("*.png"))]
    old, new = ([one.score for one in of(paths)] for of in (before, after))
    hole = [i for i, path in enumerate(paths) if "hole" in path]
    assert old != new and {one.threshold_source for one in after(paths)} == {"labels of bottle"}
    assert all(after(paths)[i].anomalous for i in hole)
    folder = adlight.evaluate(learned, "callbacks=none")
    tested = {row["path"]: float(row["score"]) for row in table(folder / "predictions.csv")}
    assert [tested[str(path).removeprefix(f"{adlight.folder}/")] for path in paths] == pytest.approx(new, rel=1e-5)
    found = json.loads((folder / "metrics.json").read_text())
    assert found["threshold_method"] == "recall=0.9" and found["labelled"] == {"defects": 3, "normals": 3}
    other = adlight.evaluate(learned, "calibration.asked=null", "callbacks=none")  # those of normal images
    assert content(other)["thresholds"]["bottle"]["source"] == "bottle" and scores(other) == pytest.approx(
        scores(folder)
    )
    refused = adlight("evaluate", f"run={learned}", "calibration.pixel=max", "callbacks=none")
    assert refused.code == 2 and "calibration.asked=null" in refused.err


def test_thresholds_alone_need_no_data_set(adlight, taught, tmp_path):
    run, _, _ = taught
    words = ["head=false", "precision=0.5", f"root={tmp_path / 'gone'}", f"hydra.run.dir={tmp_path / 'out'}"]
    outcome = adlight("learn", f"run={run}", *words)  # the labels that are kept
    assert outcome.code == 0, outcome.err
    old, new = (Detector.load(one, device="cpu", category="bottle") for one in (run, tmp_path / "out"))
    path = str(adlight.folder / "data/bottle/test/scratch/000.png")
    assert old(path)[0].score == new(path)[0].score and old.threshold != new.threshold


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "run="),
        (["run=nowhere", "labels=x"], "nowhere"),
        (["run=runs/tiny"], "labels="),
        (["run=runs/tiny", "labels=nowhere.csv"], "nowhere.csv"),
        (["run=runs/tiny", "labels=data/bottle/test", "recall=1.5"], "recall"),
        (["run=runs/tiny", "labels=data/bottle/test", "recall=0.9", "precision=0.9"], "precision"),
        (["run=runs/tiny", "labels=data/bottle/test", "categry=bottle"], "did you mean category?"),
        (["run=taught", "labels=data/bottle/test"], "taught"),
    ],
)
def test_mistakes(adlight, tiny_run, taught, words, named):
    check_refused(adlight("learn", *words, "hydra.run.dir=runs/not_learned"), named)
    assert not (tiny_run[0] / "labels").exists()


def test_of_many_held_out_images_some_of_every_fold_are_kept():
    collector = _Collector(copies=1, folds=5, items=2400)
    for start in range(0, 4800, 480):  # each normal image has one defective copy behind it
        index = torch.arange(start, start + 480)
        batch = {"index": index, "label": index % 2, "image": torch.zeros(480, 3, 8, 8)}
        maps = {"cells": index.view(-1, 1, 1).float(), "residual": torch.zeros(480, 1, 1, 2)}
        collector.on_validation_batch_end(None, None, maps, batch)
    kept = torch.cat([one.cells.score for one in collector.parts])
    fold = torch.cat([one.fold for one in collector.parts])
    assert 300 < len(kept) <= 500 and (kept % 2 == 0).all() and set(fold.tolist()) == set(range(5))
    assert torch.equal(fold, (kept.long() // 2) % 5)


def test_a_learned_run_limits_closing_as_any_other():
    with pytest.raises(ValueError, match=r"closing .*501"):
        LabelledCalibration(closing=501.0)
