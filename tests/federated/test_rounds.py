"""Rounds of training and averaging: what comes of them, what is kept, what is refused."""

import json

import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf

from adlight.federated.rounds import Place, Request
from adlight.federated.site import StopAfterRound, handle_request
from adlight.federated.weights import shared_weights
from adlight.runs.config import instantiate_node
from adlight.runs.find import find_runs
from adlight.types import UserError

BOTH = ["bottle", "screw"]
TWO = ["sites=[[bottle],[screw]]", "rounds=2"]
FEATURES = [
    *("model=feature_mae", "dataset.image_size=64", "model.backbone.name=resnet18", "model.backbone.weights=random"),
    *("model.backbone.layers=[layer1,layer2]", "model.backbone.min_size=1", "model.cache=features", "model.clusters=2"),
    *(f"model.predictors.neighbour.{key}" for key in ("width=16", "heads=2", "depth=1")),
    *("dataset=mvtec", "dataset.root=data", "dataset.batch_size=4", "trainer=cpu"),
]


@pytest.fixture(scope="module")
def two(federation):
    """A whole federation, to be looked at but not changed."""
    return federation("two", BOTH, *TWO, "test_rounds=2").run()


def state(run):
    found = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}  # not the thresholds


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_each_site_ends_as_a_run_of_the_averaged_weights_with_thresholds_of_its_own(two):
    runs = find_runs([str(two.folder)])
    assert [one.path.name for one in runs] == BOTH
    thresholds = []
    for one in runs:
        tensors = torch.load(one.best_checkpoint, weights_only=True)["state_dict"]
        assert all(torch.equal(tensors[name], value) for name, value in two.folder.averaged("best").weights.items())
        results = one.read_results()
        assert list(results["categories"]) == [one.path.name] and results["federation"]["round"] in (1, 2)
        assert json.loads(one.metadata_text())["federation"] == two.folder.note()["id"]
        thresholds.append(results["thresholds"][one.path.name]["image"])
    assert thresholds[0] != thresholds[1]
    assert not same(state(runs[0].path), state(runs[1].path)), "their own weights differ before they are averaged"


def test_the_table_has_a_row_per_round_with_the_sites_and_their_mean(two):
    rows = pd.read_csv(two.folder.path / "rounds.csv")
    assert rows["round"].tolist() == [1, 2] and rows["train/loss"].notna().all()
    assert rows["auroc/bottle"].isna().tolist() == [True, False]
    means = rows[["val/auroc/bottle", "val/auroc/screw"]].mean(axis=1)
    assert rows["val/auroc"].tolist() == pytest.approx(means.tolist())
    curve = pd.read_csv(two.folder.site("screw") / "metrics.csv")
    assert curve["val/auroc"].tolist() == rows["val/auroc/screw"].tolist() and curve["epoch"].tolist() == [0, 1]


def test_only_weights_and_numbers_leave_a_site(two):
    config = two.folder.config()
    parameters = set(shared_weights(instantiate_node(config.model)))
    assert all(set(one.weights) in (parameters, set()) for one in two.replies)
    assert max(len(json.dumps(one.values)) for one in two.replies) < 500


def test_a_site_s_run_is_evaluated_and_predicted_with_as_any_other(two, adlight):
    site = two.folder.site("screw")
    before, now = (json.loads((one / "metrics.json").read_text()) for one in (site, adlight.evaluate(site)))
    assert now["auroc"] == before["auroc"] and now["thresholds"] == before["thresholds"]
    assert adlight("predict", f"run={site}", "images=data/screw/test/hole").code == 0
    outcome = adlight("evaluate", f"run={two.folder}")
    assert outcome.code == 2 and "sites" in outcome.err


def test_a_federation_of_one_site_is_an_ordinary_training_to_the_last_digit(federation, adlight):
    one = federation("one", ["bottle-screw"], "sites=[[bottle,screw]]", "rounds=2", "epochs_per_round=2").run()
    central = adlight.folder / adlight.train(*adlight.quick, "trainer.max_epochs=4")
    mine, theirs = state(one.folder.site("bottle-screw")), state(central)
    assert all(torch.equal(mine[name], theirs[name]) for name in one.weights)
    assert same({name: mine[name] for name in one.weights}, one.weights)


def test_features_keep_their_statistics_at_each_site(federation):
    one = federation("features", BOTH, *TWO, words=FEATURES).run()
    mine, other = (state(one.folder.site(name)) for name in BOTH)
    assert not torch.equal(mine["mean"], other["mean"]) and "mean" not in one.weights
    assert not [name for name in one.weights if name.startswith("backbone")]


@pytest.mark.parametrize("part", [("train", 2, "screw"), ("measure", 2, "bottle"), ("finish", None, "screw")])
def test_a_federation_that_was_stopped_ends_with_the_same_weights_and_does_nothing_twice(federation, two, part):
    kind, number, site = part
    if number is None:  # the best round is the one that sites finish with
        part = next(done for done in two.asked if done[0] == kind and done[2] == site)
    again = federation("-".join(map(str, part)), BOTH, *TWO, "test_rounds=2")
    again.stop_at = part
    with pytest.raises(KeyboardInterrupt):
        again.run()
    kept = state(again.folder.site("bottle"))
    again.stop_at, again.asked = None, []
    again.run()
    assert same(again.weights, two.weights)
    assert same(kept, state(again.folder.site("bottle"))) and ("train", 1, "bottle") not in again.asked


def test_a_site_that_was_stopped_within_a_round_goes_on_from_its_last_epoch(federation, monkeypatch):
    words = ["sites=[[bottle]]", "rounds=1", "epochs_per_round=2"]
    whole = federation("whole", ["bottle"], *words).run()
    broken = federation("broken", ["bottle"], *words)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            StopAfterRound, "on_train_epoch_end", lambda self, trainer, _: setattr(trainer, "should_stop", True)
        )
        patch.setattr("adlight.federated.rounds.average", stop)
        broken.run()
    assert broken.folder.averaged() is None
    broken.run()
    assert same(broken.weights, whole.weights)


def stop(*anything):
    raise KeyboardInterrupt


def test_more_rounds_go_on_from_the_last(federation, adlight):
    few = federation("more", ["bottle"], "sites=[[bottle]]", "rounds=1").run()
    config = few.folder.config()
    config.rounds = 2
    few.folder.write_config(config)
    few.asked = []
    few.run()
    assert [part for part in few.asked if part[0] == "train"] == [("train", 2, "bottle")]
    assert json.loads((few.folder.site("bottle") / "metrics.json").read_text())["epochs"] == 2


def test_what_a_site_cannot_do_is_one_line_that_names_it(federation):
    with pytest.raises(UserError, match=r"^cable: .*cable"):
        federation("missing", ["bottle", "cable"], "sites=[[bottle],[cable]]").run()


def test_folders_of_another_federation_or_a_training_are_not_written_over(federation, two, tiny_run):
    other = federation("other", BOTH, *TWO)
    for place, part in ((two.folder.site("bottle"), "of another"), (tiny_run[0], "of another")):
        other.handle_request = lambda number, request, place=place: handle_request(request, Place(number, place))
        with pytest.raises(UserError, match=part):
            other.run()


def test_a_config_that_runs_something_else_is_refused_by_the_sites(federation, tmp_path):
    folder = federation("strange", BOTH, *TWO).folder
    config, choices = folder.config(), folder.choices()
    config.model.optimizer._target_ = "os.system"
    settings = {"config": OmegaConf.to_yaml(config), "choices": choices, "federation": "1", "command": "", "epochs": 1}
    values = handle_request(Request("begin", settings, {}), Place(0, tmp_path / "site"))
    assert "os.system" in values.error and not (tmp_path / "site" / ".hydra").exists()


@pytest.mark.parametrize("numbers", [[0, 0], [0, 2], [0]])
def test_each_site_must_be_there_once(federation, numbers):
    strange = federation("numbers-" + "".join(map(str, numbers)), BOTH, *TWO)
    once = strange.exchange
    strange.exchange = lambda request: [one._replace(site=n) for one, n in zip(once(request), numbers, strict=False)]
    with pytest.raises(UserError, match="sites 0 to 1"):
        strange.run()


def test_sites_whose_images_ask_for_different_frames_are_refused(federation):
    strange = federation("frames", BOTH, *TWO)
    once = strange.exchange
    strange.exchange = lambda request: [
        one._replace(values=one.values | {"frame": f"keep_shape={bool(one.site)}"}) for one in once(request)
    ]
    with pytest.raises(UserError, match=r"screw: keep_shape=True"):
        strange.run()
