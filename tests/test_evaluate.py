"""Scoring a finished run again through the command line."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from makers import fake_mvtec, write_image
from processes import check_refused
from readers import content, scores, table

from adlight import load
from adlight.detector import Detector


@pytest.fixture(scope="module")
def run(tiny_run):
    return tiny_run[0]


def test_without_overrides_everything_comes_out_again(adlight, run):
    before = {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in run.rglob("*")
        if path.is_file() and "evaluations" not in path.parts
    }
    again = adlight.evaluate(run)
    assert (again / "predictions.csv").read_bytes() == (run / "predictions.csv").read_bytes()
    of_this_run = {"command", "started", "seconds", "epochs", "run", "validation"}
    old, new = (
        {key: value for key, value in content(folder).items() if key not in of_this_run} for folder in (run, again)
    )
    assert {**old, "checkpoint": ""} == {**new, "checkpoint": ""}
    assert {path.name for path in (again / "panels").iterdir()} == {"bottle.png", "screw.png"}
    for path, was in before.items():
        assert (path.read_bytes(), path.stat().st_mtime_ns) == was, path
    assert {path for path in run.rglob("*") if path.is_file() and "evaluations" not in path.parts} == set(before)


def test_another_reduction_changes_scores_and_threshold(adlight, run):
    again = adlight.evaluate(run, "model.scorer.reduce=max", "~callbacks.panels")
    assert scores(again) != scores(run)
    assert content(again)["threshold"] != content(run)["threshold"]  # calibrated anew, on the held-out normals
    assert all(found > mean for found, mean in zip(scores(again), scores(run), strict=True))
    assert not (again / "panels").exists()


def test_thresholds(adlight, run):
    by_number = adlight.evaluate(run, "calibration.image=0.125", "~callbacks.panels")
    assert content(by_number)["threshold"] == 0.125 and content(by_number)["threshold_method"] == "0.125"
    by_quantile = adlight.evaluate(run, "calibration.image=quantile:0.3", "~callbacks.panels")
    assert content(by_quantile)["threshold"] < content(run)["threshold"]
    assert scores(by_number) == scores(by_quantile) == scores(run)
    assert content(by_number)["auroc"] == content(run)["auroc"]


def test_the_run_s_own_rule_gives_its_threshold_again(adlight, run):
    again = adlight.evaluate(run, "calibration.image=quantile:0.95", "~callbacks.panels")
    assert content(again)["threshold"] == content(run)["threshold"]
    assert content(again)["pixel_threshold"] == content(run)["pixel_threshold"]


def test_one_threshold_for_all_categories(adlight, run):
    shared = adlight.evaluate(run, "calibration.per=all", "~callbacks.panels")
    own, found = content(run), content(shared)
    assert f"run={shared} " in (shared / "evaluate.log").read_text().splitlines()[-1]
    assert (own["threshold_per"], found["threshold_per"]) == ("category", "all")
    assert "validation" not in found and found["thresholds"] == own["thresholds"]  # the checkpoint holds both ways
    for category in ("bottle", "screw"):
        assert found["categories"][category]["threshold"] == found["threshold"] == own["threshold"]
        assert own["categories"][category]["threshold"] == own["thresholds"][category]["image"]
    assert found["threshold"] == max(one["image"] for one in own["thresholds"].values())  # of one image each
    assert len({one["image"] for one in own["thresholds"].values()}) == 2
    assert scores(shared) == scores(run)


COLUMNS = ("anomalous", "threshold", "pixel_threshold")


def decisions(folder, place):
    """Path, decision and thresholds of each image, sorted by path, and their scores."""
    rows = {str(Path(place, row["path"]).relative_to(place)): row for row in table(folder / "predictions.csv")}
    decided = [(path, *(rows[path][name] for name in COLUMNS)) for path in sorted(rows)]
    return decided, [float(rows[path]["score"]) for path in sorted(rows)]


@pytest.mark.parametrize(
    "words",
    [
        [
            "calibration.image=quantile:0.3",
            "dataset.val_fraction=0.5",
            "model.training_residuals=1",
        ],  # refits covariances
        ["calibration.image=0.1", "calibration.per=all", "ckpt=last"],
        ["model.scorer.score=mse", "model.scorer.reduce=max", "trainer=cpu"],
    ],
)
def test_an_evaluation_predicts_with_its_thresholds(adlight, run, tmp_path, words):
    evaluation = adlight.evaluate(run, *words, "~callbacks.panels", "~callbacks.gallery")
    assert f"run={evaluation} " in (evaluation / "evaluate.log").read_text().splitlines()[-1]
    words = [f"run={evaluation}", "images=data/*/test/*/*.png", "save=none", f"hydra.run.dir={tmp_path}"]
    assert adlight("predict", *words, "device=cpu").code == 0
    found, scored = decisions(tmp_path, adlight.folder)
    expected, tested = decisions(evaluation, adlight.folder)
    own, _ = decisions(run, adlight.folder)
    assert len(found) == 18 and found == expected
    assert scored == pytest.approx(tested, rel=1e-5)
    assert [row[1] for row in found] != [row[1] for row in own] and {row[2] for row in found} != {row[2] for row in own}


def test_an_evaluation_is_a_detector_wherever_it_lies(adlight, run, tmp_path):
    copy, moved = tmp_path / "run", tmp_path / "moved"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("evaluations", "predictions"))
    evaluation = adlight.evaluate(copy, "calibration.image=quantile:0.3", "~callbacks.panels")
    place = load(evaluation).detector(device="cpu").calibration
    shutil.copytree(evaluation, moved)
    assert Detector.load(moved, device="cpu").calibration.state_dict() == place.state_dict()
    assert place.of("screw").image == content(evaluation)["thresholds"]["screw"]["image"]
    for name, words in (("evaluate", ()), ("learn", ["labels=data/bottle"])):
        check_refused(adlight(name, f"run={moved}", *words), str(moved), str(copy))
    check_refused(adlight("predict", f"run={moved}", "images=data", "ckpt=last"), "ckpt=last", "ckpt=best")
    (copy / "checkpoints.sha256").unlink()
    shutil.copy(copy / "checkpoints" / "last.ckpt", copy / "checkpoints" / "best.ckpt")
    check_refused(adlight("predict", f"run={evaluation}", "images=data"), "best.ckpt", "calibrated.ckpt")
    shutil.rmtree(copy)
    check_refused(adlight("predict", f"run={moved}", "images=data"), str(moved), str(copy))
    (moved / "checkpoints" / "calibrated.ckpt").unlink()
    check_refused(adlight("predict", f"run={moved}", "images=data"), "calibrated.ckpt")


def test_a_category_that_validation_never_saw(adlight, run):
    """Another threshold, calibrated on the first image alone: the other category has the one of all."""
    words = ["trainer.limit_val_batches=1", "dataset.eval_batch_size=2", "~callbacks.panels"]
    outcome = adlight("evaluate", f"run={run}", *words, "hydra.run.dir=partly")
    assert outcome.code == 0, outcome.err
    found = content(adlight.folder / "partly")
    assert list(found["thresholds"]) == ["bottle"]
    assert found["left_out"] == {"screw/threshold": "no normal validation image of it: that of all categories is used"}
    assert found["categories"]["screw"]["threshold"] == found["threshold"] == found["thresholds"]["bottle"]["image"]
    assert "(of 1 of all categories," in outcome.out


def test_the_defect_types_are_printed(adlight, run):
    out = adlight("evaluate", f"run={run}", "~callbacks.panels", "hydra.run.dir=defects").out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "│ scratch" in line]
    for row, category in zip(rows, ("bottle", "screw"), strict=True):
        figures = content(run)["defects"][category]["scratch"]
        assert row == [
            category,
            "scratch",
            "3 + 3",
            *(f"{figures[key]:.3f}" for key in ("auroc", "ap", "recall_calibrated")),
        ]


def test_a_copy_of_the_data(adlight, run):
    shutil.copytree(adlight.folder / "data", adlight.folder / "copy of data")
    again = adlight.evaluate(run, 'dataset.root="copy of data"', "~callbacks.panels")
    assert scores(again) == scores(run)
    assert (again / "predictions.csv").read_text() == (run / "predictions.csv").read_text().replace(
        "data/", "copy of data/"
    )


def test_other_data(adlight, run):
    fake_mvtec(adlight.folder / "other", ["screw", "zipper"], test=2)
    again = adlight.evaluate(run, "dataset.root=other", "~callbacks.panels")
    assert set(content(again)["categories"]) == {"screw", "zipper"}
    assert len(scores(again)) == 12


def test_a_whole_group(adlight, run):
    again = adlight.evaluate(run, "trainer=debug", "trainer.limit_test_batches=1", "dataset.eval_batch_size=5")
    assert scores(again) == scores(run)[:5]


def test_another_data_set_keeps_the_network_s_size(adlight, run):
    words = ["dataset=folder", "dataset.root=data", "dataset.normal_dir=bottle/train/good"]
    again = adlight.evaluate(run, *words, "dataset.abnormal_dir=bottle/test/hole", "~callbacks.panels")
    assert len(scores(again)) == 4  # one of the normal images is held out


@pytest.mark.parametrize(
    "words, found",
    [
        (["dataset.val_fraction=0.5"], ["4 of 6"]),
        (
            ["dataset=folder", "dataset.normal_dir=bottle/train/good", "dataset.normal_test_fraction=0.6"],
            ["1 of 1", "3 of 4"],
        ),
        (["dataset.category=bottle", "dataset.test_limit=4"], []),
        (["model.scorer.score=mse"], []),
    ],
)
def test_images_of_the_training_are_counted(adlight, run, words, found):
    """Other splits of the same images: they are calibrated on or tested after they were trained on."""
    again = adlight.evaluate(run, *words, "dataset.root=data", "~callbacks.panels", "~callbacks.gallery")
    lines = [line for line in (again / "evaluate.log").read_text().splitlines() if f"of {run}" in line]
    assert [line.split(" normal ")[0].removeprefix("data: ") for line in lines] == found


def test_checkpoints_by_name_and_path(adlight, run):
    last = adlight.evaluate(run, "ckpt=last", "~callbacks.panels")
    by_path = adlight.evaluate(run, f"ckpt={run / 'checkpoints' / 'last.ckpt'}", "~callbacks.panels")
    best = adlight.evaluate(run, "ckpt=best", "~callbacks.panels")
    assert scores(last) == scores(by_path) and scores(best) == scores(run)
    assert content(last)["checkpoint"] == content(by_path)["checkpoint"]


def test_no_lpips_weights_are_needed(adlight, no_alexnet, monkeypatch):
    """The article's model, in small; where it is evaluated the objective is never built."""
    words = ["model=mae", *adlight.quick[1:], "trainer.max_epochs=1", "dataset.category=bottle"]
    outcome = adlight("train", *words, "hydra.run.dir=runs/lpips")
    assert outcome.code == 0 and "loss: 1 ssim + 1 l1 + 1 lpips" in outcome.out

    def unreachable(**settings):
        raise OSError("no network")

    monkeypatch.setattr("lpips.LPIPS", unreachable)
    run = adlight.folder / "runs" / "lpips"
    assert scores(adlight.evaluate(run)) == scores(run)


def test_images_that_were_trained_on_are_found_when_the_folder_has_changed(adlight, tmp_path):
    for i in range(20):
        write_image(tmp_path / "parts" / "good" / f"{i:03d}.png", i)
    words = ("model=knn", "dataset=folder", f"dataset.root={tmp_path}/parts", "dataset.normal_dir=good")
    words += ("dataset.image_size=32", "trainer=cpu", "~callbacks.panels", "~callbacks.gallery")
    run = adlight.train(*words, f"hydra.run.dir={tmp_path}/run")
    trained = set(pd.read_csv(run / "trained.csv")["path"])
    assert len(trained) == 14 and trained.isdisjoint(pd.read_csv(run / "predictions.csv")["path"])
    before = adlight("evaluate", f"run={run}", f"hydra.run.dir={tmp_path}/before")
    assert before.code == 0 and f"of {run}: " not in before.out
    for i in range(20):
        write_image(tmp_path / "parts" / "good" / f"a{i:03d}.png", 100 + i)
    after = adlight("evaluate", f"run={run}", "calibration.image=max", f"hydra.run.dir={tmp_path}/after")
    count = pd.read_csv(tmp_path / "after" / "predictions.csv")["path"].isin(trained).sum()
    assert count > 0 and f"{count} of 8 normal" in after.out and after.out.count(f"of {run}: ") == 2
    check_refused(adlight("train", f"resume={run}"), str(run), f"{tmp_path}/parts/good/")
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.json").unlink()
    again = adlight("train", *words, "seed=1", f"hydra.run.dir={run}")
    assert again.code == 0, f"nothing was trained that could be resumed: {again.err}"
    (run / "trained.csv").unlink()  # as in runs of earlier versions
    split_anew = adlight("evaluate", f"run={run}", "dataset.val_fraction=0.5", f"hydra.run.dir={tmp_path}/anew")
    assert split_anew.code == 0 and f"of {run}: " in split_anew.out
