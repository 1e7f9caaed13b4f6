"""Rotations told apart: the network, its loss as a score, and whole runs."""

import pytest
import torch
from gan.tiny import stop_and_resume
from readers import numbers, table
from torch.nn import functional as F

from adlight.detector import Detector
from adlight.rotation.network import RotationNetwork
from adlight.runs.folder import RunFolder
from adlight.runs.restore import build_module

TINY = [
    *("model=rotation", "dataset=mvtec", "dataset.root=data", "dataset.category=bottle", "trainer=cpu"),
    *("dataset.image_size=32", "dataset.batch_size=4", "trainer.max_epochs=2", "~callbacks.gallery"),
    *("model.backbone.name=resnet18", "model.backbone.layers=[layer2]", "model.backbone.min_size=1"),
    *("model.backbone.weights=random", "model.network.weights=random", "model.network.name=resnet18"),
    *("model.network.side=32", "+callbacks.stop._target_=gan.tiny.CtrlC"),
]


def image(count, side, seed=0):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def network():
    made = RotationNetwork("resnet18", "random", side=32)
    torch.nn.init.normal_(made.head.weight, generator=torch.Generator().manual_seed(1))
    return made.train()


def test_a_loss_for_each_of_the_four_turns(network):
    x = image(3, 32)
    answers = [(network(torch.rot90(x, turn, (2, 3))), torch.full((3,), turn)) for turn in range(4)]
    wanted = torch.stack([F.cross_entropy(*answer, reduction="none") for answer in answers], 1)  # (3, 4)
    torch.testing.assert_close(network.loss(x), wanted, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(network.loss(x[1:2]), network.loss(x)[1:2], rtol=1e-3, atol=1e-4)  # no batch statistics
    grey = x[:, :1]
    torch.testing.assert_close(network.loss(grey), network.loss(grey.expand(-1, 3, -1, -1)))


def test_an_untrained_network_knows_nothing():
    made = RotationNetwork("resnet18", "random", side=32)
    torch.testing.assert_close(made.loss(image(2, 48)), torch.full((2, 4), 4.0).log())


def test_training_tells_normal_images_from_others():
    """Images that are bright above are recognised in every turn; those without a direction are not."""
    torch.manual_seed(0)
    made = RotationNetwork("resnet18", "random", side=32)
    optimizer = torch.optim.AdamW(made.parameters(), 1e-3)
    ramp = torch.linspace(1, 0, 32)[:, None].expand(32, 32)
    for seed in range(12):
        made.loss(0.5 * ramp + 0.5 * image(8, 32, seed)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        normal, other = made.loss(0.5 * ramp + 0.5 * image(8, 32, 99)), made.loss(0.25 + 0.5 * image(8, 32, 98))
    assert normal.mean(1).max() < other.mean(1).min()


@pytest.fixture(scope="module")
def run(adlight):
    return adlight.train(*TINY, "hydra.run.dir=runs/rotation")


def test_evaluate_predict_detector(adlight, run, monkeypatch):
    again = adlight.evaluate(run)
    assert (again / "predictions.csv").read_bytes() == (run / "predictions.csv").read_bytes()
    states = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"]
    assert sum(float(one["exp_avg_sq"].sum()) > 0 for one in states[0]["state"].values()) > 40  # of resnet18's 62
    losses = [float(row["train/loss"]) for row in table(run / "metrics.csv") if row.get("train/loss")]
    assert losses[1] < losses[0]
    monkeypatch.chdir(adlight.folder)
    rows = table(run / "predictions.csv")
    answers = Detector.load(run, device="cpu")([row["path"] for row in rows])
    assert [one.score for one in answers] == pytest.approx([float(row["score"]) for row in rows], rel=1e-3)


def test_the_score_is_a_sum(adlight, run):
    """Without the weight, scores are those of the features alone."""
    alone = adlight.evaluate(run, "model.weight=0")
    both, one = table(run / "predictions.csv"), table(alone / "predictions.csv")
    differences = {float(a["score"]) - float(b["score"]) for a, b in zip(both, one, strict=True)}
    assert len(differences) == len(both)
    module, _ = build_module(RunFolder(run))
    assert not hasattr(module, "training_step")


def test_a_stopped_run_ends_as_if_it_had_not_been(adlight, run):
    stopped = stop_and_resume(adlight, ("RotationModule", 1), TINY, "runs/stopped_rotation")
    for file in ("predictions.csv", "metrics.csv"):
        assert (stopped / file).read_bytes() == (run / file).read_bytes(), file
    assert numbers(stopped) == numbers(run)


def test_a_graph_scores_alike(adlight, run):
    outcome = adlight("export", f"run={run}", "hydra.run.dir=exported")  # compares the graph with the run
    assert outcome.code == 0, outcome.err
    assert (adlight.folder / "exported" / "detector.onnx").is_file()


def test_padding_is_refused(adlight):
    outcome = adlight("train", *TINY, "dataset.keep_shape=true", "hydra.run.dir=refused")
    assert outcome.code == 2 and "dataset.keep_shape" in outcome.err
