"""Nearest neighbours and PCA as detectors."""

import csv
import json
import os
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import in_processes
from sklearn import decomposition, neighbors
from test_configs import composed, names

from adlight.baselines import networks as baselines
from adlight.baselines.module import ResidualScorer
from adlight.baselines.networks import PCA, NearestNeighbours
from adlight.data.datamodule import AnomalyDataModule
from adlight.data.mvtec import MVTecAD
from adlight.data.torchvision_sets import MNIST
from adlight.detector import Detector
from adlight.metrics.image import image_metrics
from adlight.runs.folder import RunFolder
from adlight.runs.restore import build_module
from adlight.runs.weights import load_weights
from adlight.types import UserError

SIZE = 8


def noise(count, seed=0, channels=3):
    return torch.randint(0, 256, (count, channels, SIZE, SIZE), generator=torch.manual_seed(seed), dtype=torch.uint8)


def flat(image):
    return image.flatten(1).double().numpy()


def fitted(network, images):
    network.fit(images)
    return network


# the networks


@pytest.mark.parametrize("k", [1, 3, 40])
def test_neighbours_are_scikit_learns(k, monkeypatch):
    bank, query = noise(40), noise(9, seed=1)
    reference = neighbors.NearestNeighbors(n_neighbors=k, algorithm="brute").fit(flat(bank) / 255)
    wanted, number = reference.kneighbors(flat(query) / 255)
    for chunk in (baselines.CHUNK, 7 * bank[0].numel()):  # the bank in one part, and in six
        monkeypatch.setattr(baselines, "CHUNK", chunk)
        nearest, distance = fitted(NearestNeighbours(SIZE, k=k), bank)(query / 255)
        assert distance.numpy() == pytest.approx(wanted.mean(1), rel=1e-6)
        assert torch.equal((nearest * 255).round().to(torch.uint8), bank[torch.from_numpy(number[:, 0])])


def test_a_training_image_is_its_own_neighbour():
    bank = noise(12)
    nearest, distance = fitted(NearestNeighbours(SIZE, k=1), torch.cat([bank, bank]))(bank / 255)
    assert torch.equal(nearest, bank / 255) and torch.equal(distance, torch.zeros(12))


@pytest.mark.parametrize(("count", "channels"), [(30, 3), (150, 1)])  # fewer and more images than values
def test_components_are_scikit_learns(count, channels):
    images, query = noise(count, channels=channels), noise(9, 1, channels)
    reference = decomposition.PCA(5, svd_solver="full").fit(flat(images) / 255)
    wanted = reference.inverse_transform(reference.transform(flat(query) / 255))
    network = fitted(PCA(SIZE, channels, components=5), images)
    made, distance = network(query / 255)
    assert made.flatten(1).numpy() == pytest.approx(wanted, abs=1e-5)
    assert distance.numpy() == pytest.approx(np.linalg.norm(flat(query) / 255 - wanted, axis=1), rel=1e-5)
    assert (network.components @ network.components.T).numpy() == pytest.approx(np.eye(5), abs=1e-5)


def test_as_many_components_as_images_make_every_one_of_them():
    images = noise(6)
    made, distance = fitted(PCA(SIZE, components=6), images)(images / 255)
    assert made.numpy() == pytest.approx((images / 255).numpy(), abs=1e-5) and distance.max() < 1e-4


def test_equal_training_images_span_nothing():
    same, other = noise(1).expand(9, -1, -1, -1), noise(1, seed=1) / 255
    _, distance = fitted(PCA(SIZE, components=3), same)(same / 255)
    assert distance.max() < 1e-4 and torch.isfinite(fitted(PCA(SIZE, components=3), same)(other)[1]).all()


@pytest.mark.parametrize("network", [NearestNeighbours(SIZE), PCA(SIZE, components=4)], ids=["knn", "pca"])
def test_one_image_one_score(network):
    network.fit(noise(30))
    query = noise(5, seed=1) / 255
    together, alone = network(query)[1], torch.cat([network(one[None])[1] for one in query])
    assert together.numpy() == pytest.approx(alone.numpy(), rel=1e-6)


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(ValueError, match=r"k .*, got 0"):
        NearestNeighbours(SIZE, k=0)
    with pytest.raises(ValueError, match=r"components .*192.* 193"):
        PCA(SIZE, components=193)
    with pytest.raises(UserError, match=r"k=3 .* 2 training images"):
        NearestNeighbours(SIZE).fit(noise(2))
    with pytest.raises(UserError, match=r"components=40 .* 39 training images"):
        PCA(SIZE).fit(noise(39))
    with pytest.raises(UserError, match=r"7\.2 GB.* memory_gb=4"):
        PCA(224, memory_gb=4).check(3000)
    NearestNeighbours(224, memory_gb=4).check(3000)


# the scorer


def test_reductions():
    network, query = fitted(PCA(SIZE, components=4), noise(30)), noise(5, seed=1) / 255
    distance, mean, top = (
        ResidualScorer(reduce=how, smoothing=0)(network, {"image": query}) for how in ("distance", "mean", "max")
    )
    assert distance["image"].square() / (3 * SIZE**2) == pytest.approx(mean["image"], rel=1e-5)
    assert torch.equal(distance["pixel"], (query - distance["reconstruction"]).square().mean(1))
    assert torch.equal(top["image"], distance["pixel"].amax((1, 2)))
    assert not torch.equal(ResidualScorer(score="l1")(network, {"image": query})["pixel"], distance["pixel"])


@pytest.mark.parametrize("settings", [dict(score="psnr"), dict(reduce="sum"), dict(topk=0)], ids=str)
def test_settings_that_make_no_sense_are_refused(settings):
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=f"{name} .*{value}"):
        ResidualScorer(**settings)


# the configs and the whole path


def test_every_data_set_is_looked_at_once_and_as_it_is():
    for model in ("knn", "idm", "pca"):
        for dataset in names("dataset"):
            config = composed(f"model={model}", f"dataset={dataset}")
            assert (config.trainer.max_epochs, config.dataset.augmentation) == (1, None), (model, dataset)
            assert config.model.network.image_size == config.dataset.image_size


WORDS = ["dataset=mvtec", "dataset.root=data", "dataset.image_size=32", "dataset.batch_size=4", "trainer=cpu"]
MODELS = {
    "knn": ["model=knn", "model.network.k=2"],
    "idm": ["model=idm", "model.network.k=2"],
    "pca": ["model=pca", "model.network.components=3"],
}


@pytest.fixture(scope="module", params=MODELS)
def run(request, adlight):
    """A complete run of each baseline, to be looked at and evaluated but not changed."""
    return adlight.train(*MODELS[request.param], *WORDS, f"hydra.run.dir=runs/{request.param}")


def rows(folder):
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def scores(folder):
    return [float(row["score"]) for row in rows(folder)]


def content(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_a_run_is_like_any_other(run, tiny_run):
    missing = {"evaluations", "predictions"}
    assert {path.name for path in run.iterdir()} - missing == {path.name for path in tiny_run[0].iterdir()} - missing
    assert {path.name for path in (run / "panels").iterdir()} == {"bottle.png", "screw.png"}
    found = content(run)
    assert found["epochs"] == 1 and 0 <= found["auroc"] <= 1 and found["threshold"] > 0
    assert len((run / "metrics.csv").read_text().splitlines()) == 2


def test_checkpoints_hold_tensors_only(run):
    state = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items() if name.startswith("network.")}
    bank = {"network.bank": (10, 3, 32, 32)}  # 12 normal training images, one a category held out
    components = {"network.mean": (3, 32, 32), "network.components": (3, 3 * 32**2)}
    assert shapes == {"knn": bank, "idm": bank | {"network.edges": (10, 8, 16, 16)}, "pca": components}[run.name]


def test_evaluate_gives_the_same_bytes(adlight, run):
    again = adlight.evaluate(run, "~callbacks.panels")
    assert (again / "predictions.csv").read_bytes() == (run / "predictions.csv").read_bytes()
    assert content(again)["auroc"] == content(run)["auroc"]


def test_another_reduction_needs_no_training(adlight, run):
    again = adlight.evaluate(run, "model.scorer.reduce=max", "~callbacks.panels")
    assert scores(again) != scores(run) and content(again)["threshold"] != content(run)["threshold"]


def test_training_images_calibrate_by_models_that_have_not_seen_them(run, adlight):
    """Five folds of a run's training images, each scored by a network that is fitted to the others."""
    found, module = content(run), build_module(RunFolder(run))[0]
    load_weights(module, run / "checkpoints" / "best.ckpt")
    data = AnomalyDataModule(MVTecAD, root=adlight.folder / "data", image_size=32)
    data.setup("fit")
    images, held_out = (data.datasets[split].images for split in ("train", "val"))
    category, expected = data.datasets["train"].category, torch.empty(len(images))
    for fold in range(5):
        mine = torch.arange(len(images)) % 5 == fold
        other = deepcopy(module.network)
        other.fit(images[~mine])
        expected[mine] = other(images[mine].float() / 255)[1]
    _, own = module.network(held_out.float() / 255)
    for number, name in enumerate(("bottle", "screw")):
        of = found["thresholds"][name]
        assert (of["num_normals"], of["cross_fitted"], of["promised_fpr"]) == (6, 5, 1 / 7)
        largest = max(expected[category == number].max(), own[number])
        assert of["image"] == pytest.approx(largest.item(), rel=1e-5)


def test_held_out_images_alone(adlight, run):
    again = adlight.evaluate(run, "calibration.folds=0", "~callbacks.panels")
    assert scores(again) == scores(run) and content(again)["validation"]["val/auroc"] == pytest.approx(
        content(run)["validation"]["val/auroc"]
    )
    of = content(again)["thresholds"]["bottle"]
    assert (of["num_normals"], of["cross_fitted"]) == (1, 0) and of != content(run)["thresholds"]["bottle"]
    restored = adlight.evaluate(run, "calibration.folds=5", "~callbacks.panels")
    assert content(restored)["thresholds"] == content(run)["thresholds"]


def test_a_detector_gives_the_same_scores(adlight, run):
    detector = Detector.load(run, device="cpu")
    answers = detector([adlight.folder / row["path"] for row in rows(run)[:4]])
    assert [answer.score for answer in answers] == pytest.approx(scores(run)[:4], rel=1e-6)


def test_a_second_epoch_fits_the_same(adlight, run):
    again = adlight.train(*MODELS[run.name], *WORDS, "trainer.max_epochs=2", "~callbacks.panels")
    assert scores(again) == scores(run)
    outcome = adlight("train", f"resume={again}", "trainer.max_epochs=3")
    assert outcome.code == 0 and scores(again) == scores(run), outcome.err


def test_two_processes_fit_the_same(adlight):
    """An odd number of images in two processes: the sampler gives one of them twice, the fit takes it once."""
    words = [*MODELS["knn"], *WORDS, "~callbacks.panels"]
    two = adlight.folder / "runs" / "knn in two"
    devices = ["trainer.devices=2", "trainer.strategy=ddp", "trainer.accelerator=cpu"]
    in_processes(adlight, "train", *words, "dataset.category=bottle", *devices, f"hydra.run.dir='{two}'")
    one = adlight.train(*words, "dataset.category=bottle")
    assert scores(two) == pytest.approx(scores(one), rel=1e-6)
    assert [row["path"] for row in rows(two)] == [row["path"] for row in rows(one)]
    assert content(two)["threshold"] == pytest.approx(content(one)["threshold"], rel=1e-6)
    states = [torch.load(f / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for f in (one, two)]
    assert torch.equal(states[0]["network.bank"], states[1]["network.bank"]) and len(states[0]["network.bank"]) == 5


def test_a_checkpoint_of_another_size_is_refused(run):
    module, _ = build_module(RunFolder(run), ["dataset.image_size=16"])
    with pytest.raises(UserError, match=r"another architecture: network\.\w+ .* of shape \(.* in the model"):
        load_weights(module, run / "checkpoints" / "best.ckpt")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model=knn", "model.network.k=11"], ("k=11", "10 training images")),
        (["model=pca"], ("components=40", "10 training images")),
        (["model=knn", "model.network.k=9"], ("k=9", "8 training images", "calibration.folds=0")),
        (["model=knn", "model.network.k=0"], ("k", "got 0")),
        (["model=knn", "model.network.memory_gb=0"], ("model.network.memory_gb", "got 0")),
    ],
)
def test_bad_input_is_one_line(adlight, words, said):
    outcome = adlight("train", *words, *WORDS)
    assert outcome.code == 2 and outcome.err.count("error: ") == 1 and all(part in outcome.err for part in said)
    assert "Traceback" not in outcome.err


DATA = Path(os.environ.get("ADLIGHT_DATA", "data"))
KNOWN = {  # AUROC and best F1 of 3 neighbours and of 40 components, measured by other code on all training images
    0: (0.9943, 0.9929, 0.9935, 0.9925),
    1: (0.9993, 0.9981, 0.9989, 0.9973),
    2: (0.9265, 0.9578, 0.9201, 0.9543),
    3: (0.9374, 0.9684, 0.9524, 0.9794),
    4: (0.9460, 0.9691, 0.9421, 0.9629),
    5: (0.9546, 0.9806, 0.9702, 0.9806),
    6: (0.9796, 0.9800, 0.9860, 0.9859),
    7: (0.9619, 0.9710, 0.9683, 0.9800),
    8: (0.8881, 0.9571, 0.8328, 0.9500),
    9: (0.9615, 0.9782, 0.9618, 0.9736),
}


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "MNIST" / "raw").exists(), reason="no MNIST in ADLIGHT_DATA")
@pytest.mark.parametrize("digit", KNOWN)
def test_known_values_on_the_whole_mnist(digit):
    source = MNIST(DATA, normal=0)
    train, test = (source._load(split) for split in ("train", "test"))
    images, label = train.data[train.targets == digit][:, None], (test.targets != digit).long()
    found = []
    for network in (NearestNeighbours(28, 1), PCA(28, 1)):
        network.fit(images)
        score = torch.cat([network(part[:, None] / 255)[1] for part in test.data.split(1000)]).double()
        metrics, _ = image_metrics(score, label, None)
        found += [metrics["auroc"], metrics["f1_max"]]
    assert found == pytest.approx(KNOWN[digit], abs=1e-3)


@pytest.mark.parametrize("make", [lambda: NearestNeighbours(SIZE, k=3), lambda: PCA(SIZE, components=3)])
def test_padding_is_no_part_of_a_distance(make):
    """Distances of padded images are those without padding, as if there were as much of them as of the frame."""
    images, query = noise(20), noise(5, seed=1)
    content = (torch.arange(SIZE) < SIZE // 2).expand(20, SIZE, SIZE)
    small = type(make())(
        [SIZE, SIZE // 2], **({"k": 3} if isinstance(make(), NearestNeighbours) else {"components": 3})
    )
    small.fit(images[..., : SIZE // 2])
    nearest, distance = small(query[..., : SIZE // 2] / 255)
    padded = make()
    padded.fit(images, content)
    closest, found = padded(query / 255, content[:5])
    torch.testing.assert_close(found, distance * 2**0.5, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(closest[..., : SIZE // 2], nearest, rtol=1e-4, atol=1e-5)
    whole, same = fitted(make(), images), make()
    everything = torch.ones(20, SIZE, SIZE, dtype=torch.bool)
    same.fit(images, everything)
    torch.testing.assert_close(same(query / 255, everything[:5]), whole(query / 255))
