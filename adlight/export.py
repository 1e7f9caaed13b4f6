"""Export a finished run as one ONNX graph and verify it: `adlight export run=<folder> format=onnx`."""

import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from adlight import __version__
from adlight.cli import main as cli
from adlight.cli.words import require, value_of
from adlight.prediction.stream import ImageStream
from adlight.runs.folder import RunFolder
from adlight.types import Unreadable, UserError

if TYPE_CHECKING:  # torch takes seconds: not for --help
    from adlight.detection.session import Parity, Pixels
    from adlight.detector import Detector

TOLERANCE = 1e-4  # of a score, relative
NOT_CHECKED = "none"
VERSIONS = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")


def export(config: DictConfig) -> Path:
    """Write `detector.onnx` and `detector.json`, and compare the graph's predictions with the run's. -> the graph.

    Raises:
        UserError: the run cannot be exported, or graph and run differ; the graph is then deleted.
    """
    from adlight.detection.session import measure_parity
    from adlight.detector import Detector
    from adlight.prediction.batches import override_attributes
    from adlight.runs.exported import graph_path, load_exported
    from adlight.runs.programs import check_values

    check_values(config)
    category = "pooled" if config.check in (None, NOT_CHECKED) else config.category
    detector = Detector.load(config.run, config.ckpt, "cpu", batch_size=config.batch_size, category=category)
    override_attributes(detector, config, "threshold", "pixel_threshold")
    check_exportable(detector)
    images = None if config.check == NOT_CHECKED else read_images(config, detector)
    path = graph_path(Path(HydraConfig.get().runtime.output_dir))
    write(detector, config, path)
    if images is None:
        print("not compared with the run")
    else:
        try:
            graph, _ = load_exported(path, "cpu")
            check_parity(measure_parity(detector.scorer, graph, detector.calibration, images))
        except UserError:
            path.unlink()
            path.with_suffix(".json").unlink(missing_ok=True)
            raise
    print(f"graph: {path} ({path.stat().st_size / 1e6:.1f} MB)")
    return path


def check_exportable(detector: "Detector") -> None:
    """Raise a UserError if the run cannot be exported; the message says what can be."""
    if detector.frame.keep_shape or detector.tiling or detector.select:
        raise UserError(
            "runs with keep_shape=true, tile or roi cannot be exported, as a graph takes whole images of one size: "
            "train with dataset.keep_shape=false and without tile and roi"
        )
    module: Any = detector.module
    if module.export_blocker:
        raise UserError(f"this run cannot be exported: {module.export_blocker}")
    import numpy as np

    from adlight.detection.graph import make_example

    pixels = make_example(detector.channels, detector.frame.size).numpy()
    exact = module.make_scorer("32-true", "cpu")(pixels, None)
    given = detector.calibration.image.is_number and detector.calibration.pixel.is_number
    if not given and not np.array_equal(exact.image, detector.scorer(pixels, None).image):
        raise UserError(
            "a graph computes in 32 bits, and this run was calibrated in fewer: adlight evaluate run=<run> "
            "trainer.precision=32-true makes a folder that can be exported"
        )


def write(detector: "Detector", config: DictConfig, path: Path) -> None:
    """Write the graph and its settings."""
    import onnx_ir

    from adlight.detection.graph import export_graph
    from adlight.runs.exported import HASH, describe_calibration, name_of, weights_of, write_export_settings
    from adlight.runs.weights import hash_file

    thresholds = [detector.calibration.of(name) for name in (*detector.calibration.categories, None)]
    model = export_graph(cast(Any, detector.module), detector.channels, detector.frame.size, thresholds)
    weights = weights_of(config.run, config.ckpt)
    frame = {"image_size": list(detector.frame.size), "resize": list(detector.frame.resize)}
    source = {"run": name_of(config.run), "checkpoint": weights.name, HASH: hash_file(weights)}
    versions = {"adlight": __version__, "python": platform.python_version()} | {one: version(one) for one in VERSIONS}
    settings = frame | describe_calibration(detector.calibration, detector.module.classifier) | source
    model.metadata_props[HASH] = source[HASH]
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx_ir.save(model, path)
    settings = {"format": config.format, "channels": detector.channels, **settings, "versions": versions}
    write_export_settings(path, settings)


def read_images(config: DictConfig, detector: "Detector") -> "Iterator[Pixels]":
    """Read the images of `check`, or of the run's own test split; raise a UserError if there are none."""
    if config.check is None:
        return read_test_split(config)
    paths = list(ImageStream(str(config.check)))
    detector.category_rule.check(paths)
    return read_files(detector, paths)


def read_files(detector: "Detector", paths: list[Path]) -> "Iterator[Pixels]":
    """Read image files in batches; raise a UserError if one cannot be read."""
    import numpy as np

    for start in range(0, len(paths), detector.batch_size):
        pixels, used = [], paths[start : start + detector.batch_size]
        for image in map(detector.prepare, used):
            if isinstance(image, Unreadable):
                raise UserError(f"{image.error}: fix or remove the file")
            pixels.append(image.pixels)
        yield np.stack(pixels), detector.category_rule(used, np.stack(pixels), None)


def read_test_split(config: DictConfig) -> "Iterator[Pixels]":
    """Read the run's test images in batches; raise a UserError if they no longer exist."""
    from adlight.runs.config import instantiate_node

    data = instantiate_node(RunFolder(config.run).config().dataset)
    try:
        data.prepare_data()
        data.setup("test")
    except UserError as error:
        raise UserError(f"{error}; check=<folder> compares on other images, check={NOT_CHECKED} on none") from error
    dataset = data.datasets["test"]
    for start in range(0, len(dataset), config.batch_size):
        batch = dataset.__getitems__(list(range(start, min(start + config.batch_size, len(dataset)))))
        yield batch["image"].numpy(), [data.categories[i] for i in batch["category"].tolist()]


def check_parity(parity: "Parity") -> None:
    """Print how graph and run differ; raise a UserError if they differ by more than rounding."""
    print(parity)
    if not parity.score <= TOLERANCE or parity.decisions:
        raise UserError(f"graph and run differ, so the graph is not kept: {parity} (allowed: {TOLERANCE:g} and 0)")


def arguments(argv: list[str]) -> list[str]:
    """Check `run` and `check` before a folder is created, and quote values that Hydra would parse."""
    RunFolder(require(argv, "run", "export run=<run folder>")).config()
    if (check := value_of(argv, "check")) and check != NOT_CHECKED:
        ImageStream(check).require()
    return argv


def main() -> None:
    """Run as a program."""
    cli.run(lambda config: cli.run_logged(export, config), "export", arguments)


if __name__ == "__main__":
    main()
