"""Row `inference`: a detector from pixels to decision, in PyTorch, compiled, and as a graph in 32 and 8 bits.

Each model is trained for a moment on generated images, as speed does not depend on how well; the AUROC is that of the
same generated test, so that what 8 bits cost is seen.
"""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from timing import Row, row, short
from torch._dynamo.exc import TorchDynamoException
from torch._inductor import config as inductor

ONE = ["trainer.max_epochs=1"]
MODELS = {  # what trains them for a moment
    "pca": [],
    "mae_small": ONE,
    "retrieval": [],
    "patchcore": [],
    "feature_mae": ONE,
    "subspace": [],
    "dn2": [],
    "mkd": ONE,
    "autoencoder": ONE,
    "dagan": ONE,
    "vae": ONE,
    "gan": ["dataset.image_size=32", "model.gan.generator_steps=1", "model.gan.n_critic=1", "model.encoder_epochs=1"],
    "knn": [],
    "idm": ["dataset.image_size=28", "dataset.channels=1"],
}
BATCHES, REPEATS, WARMUP, SECONDS = (1, 16), 30, 2, 2.0  # no more calls than fit into so many seconds
Score = Callable[[np.ndarray], np.ndarray]  # (B, C, H, W) uint8 -> (B,)


def measure() -> list[Row]:
    rows = []
    with TemporaryDirectory() as folder:
        for model, words in MODELS.items():
            rows += measure_model(model, words, Path(folder))
    return rows


def measure_model(model: str, words: list[str], folder: Path) -> Iterator[Row]:
    """Train, export, quantize, and time what scores images."""
    import adlight

    quiet = ["dataset=synthetic", f"dataset.root={folder}/data", "callbacks=none", "logger=none", "trainer=cpu"]
    cached = {"model.cache": None} if "cache" in known(model) else {}
    run = adlight.train(
        f"model={model}", "calibration.folds=0", *quiet, *words, run_dir=folder / "runs" / model, **cached
    )
    detector = run.detector(device="cpu", category="pooled")
    normal, pixels, label = images_of(run)
    graphs = export(detector, folder / model, normal)
    threads = sorted({1, os.cpu_count() or 1})
    for name, make in engines(detector, graphs).items():
        try:
            for count in threads:
                torch.set_num_threads(count)
                score = make(count)
                yield from time_engine(f"{model}, {name}, {count} thread{'s' * (count > 1)}", score, pixels)
            yield row("inference", f"{model}, {name}: AUROC", auroc(score, pixels, label), "")
        except TorchDynamoException as error:
            reason = f"cannot be compiled: {str(error).splitlines()[0]}"
            yield {"row": "inference", "what": f"{model}, {name}", "value": "", "unit": "", "aim": "", "spread": reason}


def known(model: str) -> Any:
    from timing import composed

    return composed(f"model={model}").model


def images_of(run: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Some training images, the test images, (N, C, H, W) uint8, and their labels."""
    from adlight.runs.config import instantiate_node

    data = instantiate_node(run.config.dataset)
    data.setup("fit")
    data.setup("test")
    normal = data.datasets["train"].__getitems__(list(range(0, len(data.datasets["train"]), 4)))
    batch = data.datasets["test"].__getitems__(list(range(len(data.datasets["test"]))))
    return normal["image"].numpy(), batch["image"].numpy(), batch["label"].numpy()


def export(detector: Any, folder: Path, normal: np.ndarray) -> dict[str, Path]:
    """Write the graph in 32 bits, and in 8: convolutions statically, by training images; else matrix products."""
    import onnx_ir
    from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from adlight.detection.graph import export_graph

    folder.mkdir()
    calibration = detector.calibration
    thresholds = [calibration.of(name) for name in (*calibration.categories, None)]
    model = export_graph(detector.module, detector.channels, detector.frame.size, thresholds)
    exact, prepared, small = (folder / f"{name}.onnx" for name in ("exact", "prepared", "small"))
    onnx_ir.save(model, exact)
    quant_pre_process(exact, prepared, skip_symbolic_shape=True)
    if any(node.op_type == "Conv" for node in model.graph):
        quantize_static(prepared, small, Reader(normal[:32]), op_types_to_quantize=["Conv"], per_channel=True)
    else:
        quantize_dynamic(prepared, small, op_types_to_quantize=["MatMul"], weight_type=QuantType.QInt8)
    return {"ONNX Runtime fp32": exact, "ONNX Runtime int8": small}


class Reader:
    """Gives onnxruntime the images by which ranges are found."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.batches = iter(np.array_split(pixels, max(1, len(pixels) // 8)))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"image": batch, "category": np.zeros(len(batch), np.int64)}


def engines(detector: Any, graphs: dict[str, Path]) -> dict[str, Callable[[int], Score]]:
    """What scores, made for a number of threads."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)

    inductor.cpp.dynamic_threads = True  # what is compiled once serves any number of threads
    torch.compiler.reset()  # what was compiled for other models counts towards the limit of recompilations
    compiled = torch.compile(score_images, dynamic=False)  # once for each size of a batch

    def module(call: Callable[..., torch.Tensor]) -> Score:
        def run(pixels: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return call(detector.module, torch.from_numpy(pixels)).numpy()

        return run

    def graph(path: Path, threads: int) -> Score:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return lambda pixels: session.run(["score"], {"image": pixels, "category": np.zeros(len(pixels), np.int64)})[0]

    made: dict[str, Callable[[int], Score]] = {
        "PyTorch": lambda threads: module(score_images),
        "torch.compile": lambda threads: module(compiled),
    }
    return made | {name: lambda threads, path=path: graph(path, threads) for name, path in graphs.items()}


def score_images(module: Any, image: torch.Tensor) -> torch.Tensor:
    from adlight.detection.inference import make_batch

    return module.score(make_batch(image))["image"]


def time_engine(what: str, score: Score, pixels: np.ndarray) -> Iterator[Row]:
    """Time batches; p50 and p99 are of one call."""
    for size in BATCHES:
        batch, times = np.resize(pixels, (size, *pixels.shape[1:])), []
        for _ in range(WARMUP):
            score(batch)
        while len(times) < REPEATS and sum(times) < SECONDS:
            start = time.perf_counter()
            score(batch)
            times.append(time.perf_counter() - start)
        cut = quantiles(times, n=100, method="inclusive")
        yield row("inference", f"{what}, batch {size}", [size / one for one in times], "images/s")
        latency = row("inference", f"{what}, batch {size}: latency, p50", 1e3 * cut[49], "ms")
        yield latency | {"spread": f"p99 {short(1e3 * cut[98])}"}


def auroc(score: Score, pixels: np.ndarray, label: np.ndarray) -> float:
    from adlight.metrics.image import auroc

    size, count = BATCHES[-1], len(pixels)
    whole = np.resize(pixels, (-(-count // size) * size, *pixels.shape[1:]))  # batches of another size: compiled anew
    found = np.concatenate([score(part) for part in np.split(whole, len(whole) // size)])[:count]
    return float(auroc(torch.from_numpy(found).double(), torch.from_numpy(label)))
