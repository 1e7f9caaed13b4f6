"""Every detector as a graph: ONNX Runtime gives its scores, maps, masks and decisions, whatever the batch."""

from functools import partial

import numpy as np
import onnx_ir
import onnxruntime
import pytest
import torch
from gan_networks import make_gan_detector

from adlight.baselines.detector import BaselineDetector, ResidualScorer
from adlight.baselines.distortion import ImageDistortionModel
from adlight.baselines.networks import PCA, NearestNeighbours
from adlight.detection.classifier import CategoryClassifier
from adlight.detection.detector import AnomalyDetector
from adlight.detection.graph import export_graph
from adlight.detection.maps import ReconstructionError
from adlight.detection.session import GraphDetector, measure_parity
from adlight.distillation.network import Cloner
from adlight.distillation.scorer import DistillationScorer, MKDDetector
from adlight.features.backbones import Backbone
from adlight.features.cells import prepare_cells, standardize
from adlight.features.detector import FeatureDetector
from adlight.features.scorer import CellScorer
from adlight.gan.scorer import InversionScorer
from adlight.mae.complementary import ComplementaryMaskedNetwork
from adlight.mae.neighbour import NeighbourMaskedNetwork
from adlight.mae.network import MaskedAutoencoder
from adlight.mae.scorer import MAEDetector, MultiMaskScorer
from adlight.mae.tokens import PixelTokenizer
from adlight.mae.whitened import WhitenedResidual
from adlight.memory.bank import PatchBank
from adlight.memory.dn2 import DeepNearestNeighbours
from adlight.memory.retrieval import Retrieval
from adlight.memory.subspace import Subspace
from adlight.metrics.thresholds import Threshold
from adlight.reconstruction.detector import AutoencoderDetector, DAGANDetector, VAEDetector
from adlight.reconstruction.networks import ConvAutoencoder, UNet
from adlight.reconstruction.vae import VAE, VAEScorer
from adlight.types import UserError

SIZE = 32, 48
TINY = {f"{part}_{key}": value for part in ("encoder", "decoder") for key, value in (("width", 16), ("heads", 2))}
TINY |= {"encoder_depth": 1, "decoder_depth": 1}


def pictures(count, channels=3, size=SIZE):
    """Coarse blocks of colour under noise. -> (B, C, H, W) uint8."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 200, (count, channels, 4, 4)).repeat(size[0] // 4, 2).repeat(size[1] // 4, 3)
    return torch.from_numpy((blocks + rng.integers(0, 50, (count, channels, *size))).astype(np.uint8))


def mae(ema=0.0, **settings):
    network = partial(MaskedAutoencoder, **TINY, encoder=settings.pop("encoder", "separate"))
    linear_start, tokenizer = settings.pop("linear_start", None), PixelTokenizer(SIZE, 3, 8)
    found = MAEDetector(tokenizer, network, MultiMaskScorer(**settings), ema, linear_start)
    torch.nn.init.normal_(found.network.decoder_pred.weight, std=0.1)
    return found


def whitened_mae():
    """With what is fitted to training images."""
    settings = dict(score="mahalanobis", reduce="topk", whitening=WhitenedResidual(cluster_size=8), linear_start=3)
    found, images = mae(**settings).eval(), pictures(20).float() / 255
    found.linear.fit(found.tokenizer.tokenize(images))
    shown = found.linear(found.tokenizer.tokenize(images), found.scorer.drawn_masks(found.network.num_patches)[0])
    pairs = [(images, found.tokenizer.detokenize(shown))]
    found.scorer.whitening.fit([pairs], pairs)
    return found


def baseline(network, **settings):
    network.fit(pictures(12))
    return BaselineDetector(network, ResidualScorer(**settings))


def tiny_backbone(**settings):
    return Backbone("test_resnet", [0, 1], "random", **settings)


def features(members, **settings):
    """A detector fitted to noise, without a trainer."""
    backbone = tiny_backbone(**settings)
    made = {
        "neighbour": partial(NeighbourMaskedNetwork, width=16, heads=2, depth=1),
        "complementary": partial(ComplementaryMaskedNetwork, width=16, heads=2, encoder_depth=1, decoder_depth=1),
        "retrieval": partial(Retrieval, neighbours=3),
        "patchcore": PatchBank,
        "subspace": Subspace,
        "dn2": DeepNearestNeighbours,
    }
    found = FeatureDetector(backbone, {name: made[name] for name in members}, CellScorer())
    with torch.no_grad():
        known = backbone(pictures(12).float() / 255)  # (12, h, w, C)
        cells, centers = prepare_cells(known.half(), 3, torch.device("cpu"))
        for member in found.members.values():
            member.fit(cells)
        found.mean, found.std = cells.mean, cells.std
        new = standardize(backbone(pictures(20).float()[12:] / 255), found.mean, found.std)
        found.residual_map.fit(found.members, centers, [new[:4], new[4:]], cells.sample(4))
    return found


MODELS = {
    "mae": partial(mae, mask_ratio=0.75, smoothing=2.0),
    "mae + average, topk": partial(mae, ema=0.9, masks="single", mask_ratio=0.6, score="ssim", reduce="topk", rounds=2),
    "mae whitened": whitened_mae,
    "mae + joint, msgms": partial(mae, encoder="joint", mask_ratio=0.5, score="msgms", reduce="max"),
    "gan": partial(make_gan_detector, InversionScorer()),
    "gan + thesis": partial(make_gan_detector, InversionScorer(score="thesis", feature="mse", distance="l1")),
    "feature_mae": partial(features, ["neighbour"]),
    "complementary": partial(features, ["complementary"]),
    "retrieval": partial(features, ["retrieval"]),
    "patchcore": partial(features, ["patchcore"]),
    "subspace": partial(features, ["subspace"], input_size=40),
    "dn2": partial(features, ["dn2"]),
    "ensemble": partial(features, ["neighbour", "retrieval"], input_size=64),
    "autoencoder": lambda: AutoencoderDetector(UNet(3, 4, 2), ReconstructionError("ssim", "topk", 2.0)),
    "vae": lambda: VAEDetector(VAE(SIZE, 3, 4, 2, 6), VAEScorer("elbo")),
    "dagan": lambda: DAGANDetector(UNet(3, 4, 2), ConvAutoencoder(3, 4, 2, 2), ReconstructionError()),
    "mkd": lambda: MKDDetector(tiny_backbone(), partial(Cloner, width=4), DistillationScorer(), 0.5),
    "knn": lambda: baseline(NearestNeighbours(SIZE)),
    "idm": lambda: baseline(ImageDistortionModel(SIZE, candidates=8)),
    "pca": lambda: baseline(PCA(SIZE, components=4), reduce="topk", score="ssim"),
}


def calibrate(detector, pixels):
    """Set thresholds of two categories in the middle of what some images show."""
    scores = detector.make_scorer("32-true", "cpu")(pixels, None)
    middle = np.sort(scores.image)[[1, 2]].mean()
    bounds = {"one": middle, "two": np.sort(scores.image)[[-3, -2]].mean()}
    found = {name: (float(bound), float(np.quantile(scores.pixel, 0.9))) for name, bound in bounds.items()}
    named = {name: as_threshold(one) for name, one in found.items()}
    detector.calibration.load_state_dict({"pooled": as_threshold((float(middle), 1e9)), "categories": named})


def as_threshold(values):
    return {"image": values[0], "pixel": values[1]}


def save(detector, pixels, path):
    thresholds = [detector.calibration.of(name) for name in (*detector.calibration.categories, None)]
    onnx_ir.save(export_graph(detector, pixels.shape[1], tuple(pixels.shape[2:]), thresholds), path)
    return GraphDetector(path, detector.calibration, CategoryClassifier(), "cpu")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * ("+" in name)) for name in MODELS])
def test_a_graph_is_its_detectors_equal(tmp_path, name):
    torch.manual_seed(0)
    detector = MODELS[name]().eval()
    pixels = pictures(27, *((1, (8, 8)) if name.startswith("gan") else ()))[20:].numpy()
    calibrate(detector, pixels)
    graph = save(detector, pixels, tmp_path / "detector.onnx")
    batches = [(pixels[:1], ["one"]), (pixels[1:3], ["two", None]), (pixels[3:], ["one", "two", None, "one"])]
    parity = measure_parity(detector.make_scorer("32-true", "cpu"), graph, detector.calibration, batches)
    assert parity.images == 7 and parity.score <= 1e-4 and parity.decisions == 0 and parity.pixels <= 1e-3
    own = detector.make_scorer("32-true", "cpu")(pixels, None)
    assert np.abs(graph(pixels).pixel - own.pixel).max() <= 1e-3 * own.pixel.max()
    decisions = [graph.session.run(["decision"], {"image": pixels, "category": np.full(7, k)})[0] for k in (0, 1, -1)]
    assert [one.sum() for one in decisions] == [5, 2, 5]


def test_thresholds_are_inputs(tmp_path):
    detector = baseline(NearestNeighbours(SIZE))
    pixels = pictures(25)[20:].numpy()
    calibrate(detector, pixels)
    session = save(detector, pixels, tmp_path / "detector.onnx").session
    feed = {"image": pixels, "category": np.zeros(5, np.int64)}
    low, high = ({"image_thresholds": np.full(3, bound)} for bound in (-1.0, 1e9))
    assert session.run(["decision"], feed | low)[0].all() and not session.run(["decision"], feed | high)[0].any()
    score, found, mask, _ = session.run(None, feed | low | {"pixel_thresholds": np.full(3, 1e9, np.float32)})
    peak = found == found.max((1, 2), keepdims=True)
    assert np.array_equal(mask, peak)  # an anomalous image has a region
    mask = session.run(["mask"], feed | low | {"pixel_thresholds": np.full(3, np.median(found), np.float32)})[0]
    assert np.array_equal(mask, found > np.median(found)) and score.shape == (5,)
    assert not session.run(["mask"], feed | high)[0].any()
    model = onnx_ir.load(tmp_path / "detector.onnx")
    assert [str(one.shape[0]) for one in model.graph.inputs[:2]] == ["batch", "batch"]


def test_what_cannot_be_traced_is_named(tmp_path):
    class Unfit(AnomalyDetector):
        def score(self, batch):
            rows = [one.mean() * (2 if one.mean() > 0.5 else 1) for one in batch["image"]]
            return {"image": torch.stack(rows), "pixel": batch["image"][:, 0]}

    with pytest.raises(UserError, match="Unfit cannot be exported"):
        export_graph(Unfit(), 3, SIZE, [Threshold(0.5, 0.5)])


@pytest.mark.parametrize("method", ["gradient", "encoder+gradient"])
def test_a_search_is_no_graph(method):
    export_blocker = make_gan_detector(InversionScorer(method=method)).export_blocker
    assert f"method={method}" in export_blocker and "method=encoder" in export_blocker


def test_a_gradient_is_no_graph():
    backbone = tiny_backbone()
    for detector, named in (
        (VAEDetector(VAE(SIZE, 3, 4, 2, 6), VAEScorer("gradient")), "method=reconstruction"),
        (MKDDetector(backbone, partial(Cloner, width=4), DistillationScorer("gradient")), "localization=cells"),
    ):
        assert named in detector.export_blocker


@pytest.mark.parametrize("content", [b"", b"no graph"])
def test_a_damaged_graph_is_one_line(tmp_path, content):
    path = tmp_path / "detector.onnx"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"detector\.onnx.*ONNX"):
        GraphDetector(path, None, None, "cpu")


def test_a_device_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"device=tpu.*CPU"):
        GraphDetector(tmp_path / "x.onnx", None, None, "tpu")
    assert "CPUExecutionProvider" in onnxruntime.get_available_providers()
