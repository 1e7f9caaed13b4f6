"""Whole trainings through the command line: what a run leaves behind, how it goes on, what changes no number."""

import json
import shlex
import shutil
import subprocess
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from makers import write_mask
from processes import check_refused
from readers import numbers, table
from sklearn import metrics as reference

TESTS = Path(__file__).parent


def test_a_run_leaves_exactly_this(tiny_run):
    run, _ = tiny_run
    found = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert {path for path in found if not path.startswith(("evaluations/", "gallery/"))} == {
        *(f".hydra/{name}.yaml" for name in ("config", "hydra", "overrides")),
        *("run.json", "train.log", ".lock", "checkpoints.sha256", "checkpoints/best.ckpt", "checkpoints/last.ckpt"),
        *("metrics.csv", "metrics.json", "predictions.csv", "defects.csv", "calibration.csv", "trained.csv"),
        *("panels/bottle.png", "panels/screw.png"),
    }


def test_run_json_says_how_to_do_it_again(tiny_run):
    about = json.loads((tiny_run[0] / "run.json").read_text())
    assert about["command"].startswith("adlight train ") and "model=mae_small dataset=mvtec" in about["command"]
    assert about["seed"] == 0
    assert (
        torch.__version__.startswith(about["versions"]["torch"])
        and about["versions"]["pytorch-lightning"] == pl.__version__
    )
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=TESTS, capture_output=True, text=True)
    if commit.returncode == 0:
        assert commit.stdout.startswith(about["commit"].partition("+")[0])
    else:
        assert about["commit"] is None


def test_checkpoints_hold_tensors_only(tiny_run):
    best, last = (
        torch.load(tiny_run[0] / "checkpoints" / f"{name}.ckpt", weights_only=True) for name in ("best", "last")
    )
    assert best["state_dict"].keys() == last["state_dict"].keys()
    assert last["epoch"] == 1 and last["global_step"] == 6
    assert "optimizer_states" in last and "optimizer_states" not in best
    thresholds = best["state_dict"]["_extra_state"]
    assert list(thresholds["categories"]) == ["bottle", "screw"] and np.isfinite(thresholds["pooled"]["image"])


def test_curves_have_a_row_an_epoch(tiny_run):
    rows = table(tiny_run[0] / "metrics.csv")
    assert [(row["epoch"], row["step"]) for row in rows] == [("0", "2"), ("1", "5")]
    for row in rows:
        assert np.isclose(float(row["train/loss"]), float(row["train/ssim"]) + float(row["train/l1"]))
        assert 0 <= float(row["val/auroc"]) <= 1


def test_predictions(tiny_run):
    run, _ = tiny_run
    rows, found = table(run / "predictions.csv"), json.loads((run / "metrics.json").read_text())
    columns = ["path", "category", "defect", "label", "score", "threshold", "anomalous"]
    assert list(rows[0])[:7] == columns
    assert len(rows) == 18
    for row in rows:
        assert row["path"].startswith(f"data/{row['category']}/test/{row['defect']}/")
        assert row["label"] == str(int(row["defect"] != "good"))
        used = found["categories"][row["category"]]
        assert float(row["threshold"]) == used["threshold"] == found["thresholds"][row["category"]]["image"]
        assert float(row["pixel_threshold"]) == used["pixel_threshold"] and row["threshold_source"] == row["category"]
        assert row["anomalous"] == str(int(float(row["score"]) > float(row["threshold"])))
        assert float(np.float32(row["score"])) == float(row["score"])  # all digits of a float32


def test_metrics_equal_scikit_learns(tiny_run):
    run, _ = tiny_run
    rows, found = table(run / "predictions.csv"), json.loads((run / "metrics.json").read_text())
    sets = {name: [row for row in rows if row["category"] == name] for name in ("bottle", "screw")}
    means = {}
    for name, mine in [*sets.items(), ("pooled", rows)]:
        label, score, called = (np.array([float(row[key]) for row in mine]) for key in ("label", "score", "anomalous"))
        precision, recall, _ = reference.precision_recall_curve(label, score)
        expected = {
            "auroc": reference.roc_auc_score(label, score),
            "ap": reference.average_precision_score(label, score),
            "f1_max": max(2 * precision * recall / np.maximum(precision + recall, 1e-12)),
            "f1_calibrated": reference.f1_score(label, called),
            "precision_calibrated": reference.precision_score(label, called, zero_division=0),
            "recall_calibrated": reference.recall_score(label, called),
            "trivial_f1": reference.f1_score(label, np.ones_like(label)),
        }
        content = found["pooled"] if name == "pooled" else found["categories"][name]
        for key, value in expected.items():
            assert content[key] == pytest.approx(value, abs=1e-9), (name, key)
            if name != "pooled":
                means.setdefault(key, []).append(value)
    for key, values in means.items():
        assert found[key] == pytest.approx(np.mean(values), abs=1e-9), key
    assert 0 <= found["pixel_auroc"] <= 1


def test_the_terminal_shows_the_table(tiny_run):
    run, out = tiny_run
    found = json.loads((run / "metrics.json").read_text())
    for name in ("bottle", "screw"):
        line = next(line for line in out.splitlines() if line.startswith(f"│ {name} "))
        assert "3 + 6" in line
        for key in ("auroc", "ap", "f1_max", "f1_calibrated", "trivial_f1", "pixel_auroc"):
            assert f" {found['categories'][name][key]:.3f} " in line
        for key in ("auroc", "ap", "f1_max"):
            value, lower, upper = (found["categories"][name][key + end] for end in ("", "_lower", "_upper"))
            assert f" {value:.3f}{f' ± {(upper - lower) / 2:.3f}' if lower < upper else ''} " in line
        assert f"{name} {found['thresholds'][name]['image']:.6g}" in out
    for said in ("mean", "AUROC", "F1 at", "loss: 1 ssim + 1 l1", "fpr:0.05", "each of 1", str(run / "panels")):
        assert said in out


def test_defect_types_have_a_row_each(tiny_run):
    run, _ = tiny_run
    rows, found = table(run / "defects.csv"), json.loads((run / "metrics.json").read_text())["defects"]
    assert [(row["category"], row["defect"]) for row in rows] == list(product(("bottle", "screw"), ("hole", "scratch")))
    predictions = table(run / "predictions.csv")
    for row in rows:
        mine = [p for p in predictions if p["category"] == row["category"] and p["defect"] in ("good", row["defect"])]
        label, score = ([float(p[key]) for p in mine] for key in ("label", "score"))
        assert (row["normal"], row["anomalous"]) == ("3", "3")
        assert float(row["auroc"]) == pytest.approx(reference.roc_auc_score(label, score))
        assert float(row["ap"]) == pytest.approx(reference.average_precision_score(label, score))
        called = [int(p["anomalous"]) for p in mine]
        assert float(row["recall_calibrated"]) == pytest.approx(reference.recall_score(label, called))
        content = found[row["category"]][row["defect"]]
        assert content == {key: float(value) for key, value in row.items() if key in content}


def test_one_number_decides_everything(adlight, tiny_run):
    again = adlight.train(*adlight.quick)
    assert numbers(again) == numbers(tiny_run[0])
    assert (again / "predictions.csv").read_bytes() == (tiny_run[0] / "predictions.csv").read_bytes()
    assert (again / "metrics.csv").read_bytes() == (tiny_run[0] / "metrics.csv").read_bytes()
    assert numbers(adlight.train(*adlight.quick, "seed=1")) != numbers(again)


def test_without_callbacks_the_numbers_stay(adlight, tiny_run):
    run = adlight.train(*adlight.quick, "trainer.enable_progress_bar=false", "logger=none")
    assert numbers(run) == numbers(tiny_run[0])
    assert not (run / "panels").exists() and not (run / "metrics.csv").exists()
    bare = adlight.train(*adlight.tiny, "callbacks=null", "logger=null")  # checkpoints are none of the callbacks
    assert numbers(bare) == numbers(run)
    assert numbers(adlight.evaluate(bare)) == numbers(run)
    assert numbers(adlight.evaluate(tiny_run[0], "callbacks=null", "logger=null")) == numbers(run)
    shutil.rmtree(bare / "evaluations")
    (bare / "metrics.json").unlink()
    assert adlight("train", f"resume={bare}").code == 0 and numbers(bare) == numbers(run)


def test_ckpt_chooses_what_is_tested(adlight):
    run = adlight.train(*adlight.quick, "ckpt=last")
    assert json.loads((run / "metrics.json").read_text())["checkpoint"].endswith("last.ckpt")


def test_a_training_tests_no_other_run_s_weights(adlight, tiny_run):
    outcome = adlight("train", *adlight.quick, f"ckpt={tiny_run[0]}/checkpoints/best.ckpt")
    assert outcome.code == 2 and "ckpt=" in outcome.err and "adlight evaluate" in outcome.err


def test_resume_with_more_epochs_continues_the_numbering(adlight, tiny_run):
    run = adlight.folder / "runs" / "longer"
    shutil.copytree(tiny_run[0], run, ignore=shutil.ignore_patterns("evaluations"))
    earlier = table(run / "metrics.csv")
    adlight.train("resume=runs/longer", "trainer.max_epochs=4", "~callbacks.panels")
    rows = table(run / "metrics.csv")
    assert rows[:2] == earlier
    assert [(row["epoch"], row["step"]) for row in rows] == [(str(e), str(3 * e + 2)) for e in range(4)]
    assert json.loads((run / "metrics.json").read_text())["epochs"] == 4
    assert (run / "metrics.previous.json").exists()
    assert "max_epochs: 4" in (run / ".hydra" / "config.yaml").read_text()


def test_resume_auto_without_a_match_starts_anew(adlight):
    outcome = adlight("train", *adlight.quick, "resume=auto", "seed=12", "trainer.max_epochs=1")
    assert outcome.code == 0 and "epoch 1" in outcome.out, outcome.err


@pytest.mark.parametrize("word", ["ckpt=bst", "trainer.limit_val_batches=0"])
def test_what_would_make_the_end_useless_is_refused_at_the_start(adlight, word):
    outcome = adlight("train", *adlight.quick, word)
    assert outcome.code == 2 and word.partition("=")[0] in outcome.err and "epoch 1" not in outcome.out


def test_the_last_epoch_is_validated_in_any_case(adlight):
    run = adlight.train(*adlight.quick, "trainer.check_val_every_n_epoch=3")
    assert [bool(row["val/auroc"]) for row in table(run / "metrics.csv")] == [False, True]


def test_resumed_with_fewer_epochs_it_is_refused_and_left_as_it_was(adlight, tiny_run):
    run = adlight.folder / "runs" / "shorter"
    shutil.copytree(tiny_run[0], run, ignore=shutil.ignore_patterns("evaluations"))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    outcome = adlight("train", "resume=runs/shorter", "trainer.max_epochs=1")
    assert outcome.code == 2 and "2 epochs" in outcome.err and " 1" in outcome.err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.suffix != ".log"} == {
        path: content for path, content in before.items() if path.suffix != ".log"
    }


VARIANTS = {
    "plain MAE": "model.masks=single",
    "leaking encoder": "model.network.encoder=joint",
    "averaged weights": "model.ema=0.9",
    "grey": "dataset.channels=1",
    "one term": "model.objective.ssim=0",
    "no augmentation": "dataset.augmentation=null",
    "nothing cached": "dataset.cache_gb=0 dataset.num_workers=0",
    "several rounds": "model.scorer.rounds=2",
}


@pytest.mark.parametrize("words", VARIANTS.values(), ids=VARIANTS.keys())
def test_variants_run(adlight, words):
    run = adlight.train(*adlight.quick, "trainer=debug", "dataset.category=bottle", *words.split())
    assert 0 <= json.loads((run / "metrics.json").read_text())["auroc"] <= 1


@pytest.mark.parametrize(
    ("score", "reduce"), [("mse", "mean"), ("l1", "max"), ("ssim", "topk"), ("msgms", "max"), ("lpips", "topk")]
)
def test_scores_and_reductions_run(adlight, tiny_run, no_alexnet, score, reduce):
    run = adlight.evaluate(
        tiny_run[0],
        f"model.scorer.score={score}",
        f"model.scorer.reduce={reduce}",
        "dataset.category=bottle",
        "~callbacks.panels",
    )
    scores = [float(row["score"]) for row in table(run / "predictions.csv")]
    assert len(set(scores)) == 9 and np.isfinite(scores).all()


def test_normal_images_only(adlight):
    """Without labelled anomalies what cannot be computed is left out."""
    words = [word for word in adlight.quick if not word.startswith("dataset=")]
    run = adlight.train(*words, "dataset=folder", "dataset.normal_dir=bottle/train/good", "trainer.max_epochs=1")
    content = json.loads((run / "metrics.json").read_text())
    assert "auroc" not in content and "anomalous" in content["left_out"]["bottle/auroc"]
    assert 0 <= content["fpr_calibrated"] <= 1
    (told,) = [line for line in (run / "train.log").read_text().splitlines() if line.startswith("left out: ")]
    assert "AUROC" in told and "bottle" in told and "anomalous" in told


def copy_of(run, folder):
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("evaluations"))
    return folder, contents(folder)


def contents(run):
    """What lies in a run, but for its log, to which every command appends."""
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.suffix != ".log"}


@pytest.mark.parametrize("words, said", [
    ("trainer.max_epoch=4", "max_epochs?"),
    ("trainer.max_epochs=4 dataset.root=nowhere", "nowhere"),
    ("trainer.max_epochs=4 seed=1", "seed"),
    ("trainer.max_epochs=4 dataset.seed=1", "dataset.seed"),
    ("trainer.max_epochs=4 dataset.val_fraction=0.5", "dataset.val_fraction"),
    ("trainer.max_epochs=4 dataset.train_limit=3", "dataset.train_limit"),
    ("trainer.max_epochs=4 dataset.category=bottle", "dataset.category"),
    ("trainer.max_epochs=4 dataset=synthetic dataset.image_size=32", "dataset.source"),
    ("ckpt=bst", "ckpt"),
    ("dataset.root=small_mask_2", "001_mask.png"),  # found by the test, with no epoch left
])  # fmt: skip
def test_what_fails_on_resume_leaves_a_finished_run_finished(adlight, tiny_run, tmp_path, words, said):
    shutil.copytree(adlight.folder / "data", adlight.folder / "small_mask_2", dirs_exist_ok=True)
    write_mask(adlight.folder / "small_mask_2" / "bottle" / "ground_truth" / "hole" / "001_mask.png", 5)
    run, before = copy_of(tiny_run[0], tmp_path / "run")
    check_refused(adlight("train", f"resume={run}", *words.split()), said)
    assert contents(run) == before
    assert said in (run / "train.log").read_text().splitlines()[-1]  # which every command appends to


def test_an_error_in_the_first_new_epoch_leaves_a_finished_run_finished(adlight, monkeypatch):
    words = [*adlight.quick, "trainer.max_epochs=1", "+callbacks.trouble._target_=trouble.Trouble"]
    run = adlight.folder / adlight.train(*words, "hydra.run.dir=runs/breaks")
    before = contents(run)
    monkeypatch.setenv("ADLIGHT_TEST_TROUBLE", "break 0")
    with pytest.raises(ZeroDivisionError):
        adlight("train", f"resume={run}", "trainer.max_epochs=2")
    assert contents(run) == before
    monkeypatch.delenv("ADLIGHT_TEST_TROUBLE")
    assert adlight("train", f"resume={run}", "trainer.max_epochs=2").code == 0
    assert (run / "metrics.previous.json").exists() and "max_epochs: 2" in (run / ".hydra" / "config.yaml").read_text()
    first = shlex.join(["adlight", "train", *words])  # and what was changed on resume: together they repeat the run
    assert json.loads((run / "run.json").read_text())["command"] == f"{first} ++trainer.max_epochs=2"


def test_with_no_epoch_left_a_resumed_run_is_tested_again(adlight, tiny_run, tmp_path):
    run, before = copy_of(tiny_run[0], tmp_path / "run")
    assert adlight("train", f"resume={run}", "~callbacks.panels").code == 0
    changed = {path.name for path, content in contents(run).items() if before.get(path) != content}
    assert {"config.yaml", "run.json", "metrics.json", "metrics.previous.json"} <= changed
    assert not {"best.ckpt", "last.ckpt", "metrics.csv"} & changed
    assert numbers(run) == numbers(tiny_run[0])


def test_stopped_between_a_checkpoint_and_its_row_a_run_loses_no_row(adlight, tiny_run, monkeypatch):
    from adlight.runs import checkpoints

    save, words = checkpoints.save, [*adlight.quick, "trainer.check_val_every_n_epoch=2", "hydra.run.dir=runs/between"]

    def save_and_stop(trainer, path, weights_only=False):
        save(trainer, path, weights_only)
        if path.name == "last.ckpt":
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save", save_and_stop)
    assert adlight("train", *words).code == 130
    monkeypatch.undo()
    run = adlight.folder / "runs" / "between"
    assert adlight("train", f"resume={run}").code == 0
    columns = ("epoch", "step", "train/loss")  # the step too, where no validation has logged one
    assert [[row[name] for name in columns] for row in table(run / "metrics.csv")] == [
        [row[name] for name in columns] for row in table(tiny_run[0] / "metrics.csv")
    ]
