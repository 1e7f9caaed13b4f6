"""Detectors in feature space, from the command line."""

import csv
import json

import pytest
import torch
from test_configs import composed

from adlight.detector import Detector
from adlight.mae.neighbour import NeighbourMaskedNetwork

TINY = [
    *("dataset=mvtec", "dataset.root=data", "trainer=cpu", "dataset.image_size=64", "dataset.batch_size=4"),
    *("model.backbone.name=resnet18", "model.backbone.layers=[layer1,layer2]", "model.backbone.weights=random"),
    *("model.backbone.min_size=1", "model.cache=features", "model.clusters=2"),
]
COMPLEMENTARY = [f"model.predictors.complementary.{key}" for key in ("width=16", "heads=2")]
NEIGHBOUR = [f"model.predictors.neighbour.{key}" for key in ("width=16", "heads=2", "depth=1")]
RETRIEVAL = ["model.predictors.retrieval.neighbours=3"]
MODELS = {
    "feature_mae": [*NEIGHBOUR, "trainer.max_epochs=2"],
    "complementary": [*COMPLEMENTARY, "trainer.max_epochs=2", "model.members=[complementary]"],
    "retrieval": RETRIEVAL,
    "patchcore": [],
    "dn2": [],
    "subspace": [],
    "ensemble": [*NEIGHBOUR, *RETRIEVAL, "trainer.max_epochs=2", "model.members=[neighbour,retrieval,subspace]"],
}


def model_of(name):
    return f"model={'feature_mae' if name == 'complementary' else name}"


def numbers(folder):
    content = json.loads((folder / "metrics.json").read_text())
    return {key: value for key, value in content.items() if key in ("auroc", "ap")}


@pytest.fixture(scope="module")
def runs(adlight):
    """A run of each model."""
    return {
        name: adlight.train(model_of(name), *TINY, *words, f"hydra.run.dir=runs/{name}")
        for name, words in MODELS.items()
    }


@pytest.mark.parametrize("name", MODELS)
def test_train_evaluate_predict(adlight, runs, name):
    run = runs[name]
    assert (run / "panels" / "bottle.png").is_file()
    again = adlight.evaluate(run)
    assert numbers(again) == numbers(run) and numbers(run)
    outcome = adlight("predict", f"run={run}", "images=data/bottle/test/hole")
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize("name", MODELS)
def test_a_detector_gives_the_test_s_scores(adlight, runs, name, monkeypatch):
    monkeypatch.chdir(adlight.folder)
    with (runs[name] / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))[:4]
    answers = Detector.load(runs[name])([row["path"] for row in rows])
    assert [one.score for one in answers] == pytest.approx([float(row["score"]) for row in rows], rel=2e-2)


@pytest.mark.parametrize("name", MODELS)
def test_what_takes_no_epochs_calibrates_on_all_normal_images(adlight, runs, name):
    of = json.loads((runs[name] / "metrics.json").read_text())["thresholds"]["bottle"]
    crossed = 5 if name in ("retrieval", "patchcore", "subspace", "dn2") else 0
    assert (of["num_normals"], of["cross_fitted"]) == (1 + crossed, crossed) and of["image"] > 0


def test_too_few_images_for_a_fold_are_refused_before_any_work(adlight, tmp_path):
    words = ["model=dn2", *TINY, "dataset.category=bottle", "model.predictors.dn2.neighbours=4"]
    outcome = adlight("train", *words, f"model.cache={tmp_path}", f"hydra.run.dir={tmp_path}/run")
    assert outcome.code == 2 and "neighbours=4 of 4" in outcome.err and "calibration.folds=0" in outcome.err
    assert not list(tmp_path.glob("*.npy"))


def test_another_score_calibrates_anew(adlight, runs):
    again = adlight.evaluate(runs["retrieval"], "model.scorer.reduce=mean")
    thresholds = [json.loads((run / "metrics.json").read_text())["threshold"] for run in (runs["retrieval"], again)]
    assert thresholds[0] > thresholds[1] > 0


def test_calibrating_anew_remembers_rotated_copies_too(adlight, runs):
    run = runs["retrieval"]
    assert "also rotated" in (run / "train.log").read_text()
    again = adlight.evaluate(run, "calibration.image=fpr:0.01")
    assert (again / "calibration.csv").read_text() == (run / "calibration.csv").read_text()


def test_training_moves_the_network(runs, adlight):
    state = torch.load(runs["feature_mae"] / "checkpoints" / "last.ckpt", weights_only=True)
    made = NeighbourMaskedNetwork(192, width=16, heads=2, depth=1)
    name = "predictors.neighbour.blocks.0.proj."
    assert state["state_dict"][name + "bias"].abs().max() > 0 == made.blocks[0].proj.bias.abs().max()
    muon, rest, vectors = (group["initial_lr"] for group in state["optimizer_states"][0]["param_groups"])
    assert muon == 10 * rest == 10 * vectors
    with (runs["feature_mae"] / "metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file)]
    assert len(losses) == 2 and losses[1] < losses[0]


def test_a_checkpoint_holds_no_backbone(runs):
    state = torch.load(runs["feature_mae"] / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert not [key for key in state if "backbone" in key or "layer1" in key]


def test_a_checkpoint_of_another_backbone_is_refused(adlight, runs):
    outcome = adlight("evaluate", f"run={runs['subspace']}", "model.backbone.stride=16")
    assert outcome.code != 0 and "resnet18" in outcome.err and "stride" in outcome.err


def test_features_are_computed_once(adlight, runs, monkeypatch):
    files = sorted((adlight.folder / "features").iterdir())
    assert len(files) >= 3  # training, validation, test: the same for all models; and images that were rotated
    monkeypatch.setattr("adlight.features.backbones.Backbone.channels", 192)

    def refuse(self, image):
        raise AssertionError("no image passes the backbone")

    monkeypatch.setattr("adlight.features.backbones.Backbone.__call__", refuse)
    adlight.train("model=subspace", *TINY)
    assert sorted((adlight.folder / "features").iterdir()) == files


def test_a_run_goes_on(adlight):
    """Complementary masks, of which every step draws its own."""
    words = ["model=feature_mae", *TINY, *COMPLEMENTARY, "model.members=[complementary]"]
    whole = adlight.train(*words, "trainer.max_epochs=3")
    parted = adlight.train(*words, "trainer.max_epochs=3", "hydra.run.dir=runs/parted")
    (parted / "metrics.json").unlink()
    assert adlight("train", *words, f"resume={parted}").code == 0
    assert numbers(parted) == numbers(whole)


def test_memory_without_a_folder_gives_the_same(adlight, runs):
    assert numbers(adlight.train("model=retrieval", *TINY, *RETRIEVAL, "model.cache=null")) == numbers(
        runs["retrieval"]
    )


def test_augmented_images_pass_the_backbone(adlight):
    augmentation = "+dataset.augmentation={_target_: adlight.data.augmentation.Augmentation, crop: 0.8}"
    run = adlight.train("model=feature_mae", *TINY, *NEIGHBOUR, "trainer.max_epochs=1", augmentation)
    assert numbers(run)


def test_an_ensemble_is_made_of_its_members(adlight):
    words = ["model=ensemble", *TINY, *RETRIEVAL, "model.members=[retrieval,patchcore,subspace]"]
    outcome = adlight("train", *words)
    assert outcome.code == 0, outcome.err
    assert all(word in outcome.out for word in ("principal components", "nearest training images", "training cells"))
    assert "attention" not in outcome.out


@pytest.mark.parametrize(("members", "named"), [("[retrieval,subspce]", "subspace"), ("[]", "members")])
def test_an_unknown_member_is_refused(adlight, members, named):
    outcome = adlight("train", "model=ensemble", *TINY, f"model.members={members}")
    assert outcome.code == 2 and named in outcome.err


@pytest.mark.parametrize("dataset", ["mvtec", "folder", "labelled_folder", "synthetic", "mnist", "cifar10"])
@pytest.mark.parametrize("name", MODELS)
def test_no_image_is_too_small_for_the_backbone(name, dataset):
    config = composed(model_of(name), f"dataset={dataset}")
    assert max(config.model.backbone.min_size, config.dataset.image_size) >= 160 and config.dataset.augmentation is None
    assert (config.trainer.max_epochs == 1) == (name in ("retrieval", "patchcore", "subspace", "dn2"))


@pytest.mark.parametrize(("words", "named"), [(["model.clusters=0"], "clusters"), (["model.folds=1"], "folds")])
def test_what_makes_no_sense_is_refused(adlight, words, named):
    outcome = adlight("train", "model=subspace", *TINY, *words)
    assert outcome.code != 0 and named in outcome.err
