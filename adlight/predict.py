"""Predict for new images by a finished run: `python -m adlight.predict run=<folder> images=<file, folder or glob>`."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from PIL import Image
from rich.console import Console
from rich.progress import track

from adlight.cli import main as cli
from adlight.cli.arguments import quote, quote_values, shows_help, value_of
from adlight.cli.given import set_given
from adlight.cli.resume import check_same_prediction, prediction_advice, resume_prediction
from adlight.data.images import read_image, to_channels
from adlight.data.stream import ImageStream
from adlight.detection.coco import annotate
from adlight.detection.pictures import draw_overlay, draw_panel
from adlight.reports.predicted import Summary
from adlight.runs.checks import check_values
from adlight.runs.exported import weights_of
from adlight.runs.folder import RunFolder
from adlight.runs.graphs import check_exists, folder_of, is_exported
from adlight.runs.predictions import Entry, PredictionFolder
from adlight.types import Prediction, Unreadable, UserError, unknown_name

if TYPE_CHECKING:  # torch takes seconds: not for --help
    from adlight.data.images import PreparedImage
    from adlight.detector import Detector

PICTURES = ("masks", "maps", "panels")


def predict(config: DictConfig) -> None:
    """Write the tables and the pictures asked for, then print a summary.

    Raises:
        UserError: no images, one that cannot be read (unless `on_bad_image=skip`) or whose category is unknown, or a
            setting out of range.
    """
    from adlight.runs.programs import PredictSettings

    check_values(PredictSettings, config)
    stream, pictures = ImageStream(str(config.images)), parse_pictures(str(config.save))
    stream.require()
    folder = PredictionFolder(HydraConfig.get().runtime.output_dir)
    if config.resume:
        check_same_prediction(folder, config)
    detector = load_detector(config)
    detector.category_rule.check(stream)
    count, left_out = stream.survey()
    done, started = folder.begin(weights_of(config.run, config.ckpt), resume=bool(config.resume)), time.perf_counter()
    writer = ResultWriter(folder.path, pictures, stream)
    try:
        rest = folder.remaining(iter(stream))
        for entries in predict_batches(detector, rest, count - done, writer, config.on_bad_image):
            folder.add(entries)
    except (KeyboardInterrupt, UserError) as error:
        raise type(error)(prediction_advice(folder, str(error))) from error
    summary, rate = Summary(folder.entries()), (count - done) / (time.perf_counter() - started)
    folder.finish()
    summary.print(folder, [folder.path / kind for kind in pictures], rate)
    if detector.category_rule.by_looks:
        print(*detector.category_rule.classifier.describe())
    if left_out:
        print(left_out)


def load_detector(config: DictConfig) -> "Detector":
    """Load the run's detector, with the thresholds and the rules of regions that are asked for."""
    from adlight.detector import Detector

    inputs = {name: config[name] for name in ("roi", "tile", "overlap")}
    detector = Detector.load(config.run, config.ckpt, config.device, (), config.batch_size, config.category, **inputs)
    set_given(detector, config, "threshold", "pixel_threshold")
    set_given(detector.calibration, config, "min_area", "closing")
    return detector


class ResultWriter:
    """Writes an image's pictures, each kind into a folder of its own, and makes its entry in the tables.

    Args:
        folder: of the predictions.
        pictures: kinds.
        stream: names them.
    """

    def __init__(self, folder: Path, pictures: list[str], stream: ImageStream) -> None:
        self.folder, self.pictures, self.stream = folder, pictures, stream

    def __call__(self, path: Path, prediction: Prediction) -> Entry:
        """Write the pictures. -> the entry."""
        assert prediction.mask is not None and prediction.anomaly_map is not None
        for kind in self.pictures:
            if kind == "masks":
                picture = Image.fromarray(prediction.mask.astype(np.uint8) * 255)
            else:
                image = to_channels(read_image(path), 3)
                picture = (draw_overlay if kind == "maps" else draw_panel)(image, prediction)
            target = self.folder / kind / f"{self.stream.name(path)}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            picture.save(target, compress_level=1)  # a fifth of the time for a tenth more space
        height, width = prediction.mask.shape
        regions = annotate(prediction.mask, prediction.anomaly_map)
        return {**prediction.as_dict(), "path": str(path), "width": width, "height": height, "regions": regions}


def predict_batches(
    detector: "Detector", paths: Iterator[Path], count: int, writer: ResultWriter, on_bad_image: str
) -> Iterator[list[Entry]]:
    """Predict for images batch by batch, and write their pictures. -> their entries, in order.

    Args:
        detector: predicts.
        paths: of the images.
        count: how many they are, for the progress bar.
        writer: writes the pictures.
        on_bad_image: `skip` gives an unreadable image an entry that says so; `error` stops.

    Raises:
        UserError: an image cannot be read; the entries of those before it came.
    """
    console = Console(stderr=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        steps, hidden = -(-count // detector.images_at_once), not console.is_terminal
        batches = read_ahead(detector, paths, pool)
        for batch in track(batches, "predicting", steps, console=console, transient=True, disable=hidden):
            bad = [one for _, one in batch if isinstance(one, Unreadable)] if on_bad_image == "error" else []
            whole = batch[: [one for _, one in batch].index(bad[0])] if bad else batch
            images = {path: one for path, one in whole if not isinstance(one, Unreadable)}
            found = detector.predict(list(images.values()), "panels" in writer.pictures) if images else []
            entries = dict(zip(images, pool.map(writer, images, found), strict=True))
            yield [one.as_dict() if isinstance(one, Unreadable) else entries[path] for path, one in whole]
            if bad:
                raise UserError(bad[0].error)


def read_ahead(
    detector: "Detector", paths: Iterator[Path], pool: ThreadPoolExecutor
) -> Iterator[list[tuple[Path, "PreparedImage | Unreadable"]]]:
    """Decode images batch by batch on all cores, the next batch while this one is scored."""
    waiting: list[tuple[Path, Future[PreparedImage | Unreadable]]] = []
    while True:
        coming = [(path, pool.submit(detector.prepare, path)) for path in islice(paths, detector.images_at_once)]
        if waiting:
            yield [(path, future.result()) for path, future in waiting]
        elif not coming:
            return
        waiting = coming


def parse_pictures(text: str) -> list[str]:
    """Read the kinds of pictures to write from `masks,maps` or `none`."""
    kinds = [kind.strip("' \"") for kind in text.strip("[]").split(",")]
    unknown = [kind for kind in kinds if kind not in (*PICTURES, "none", "null", "")]
    if unknown:
        raise UserError(unknown_name("save", unknown[0], (*PICTURES, "none")))
    return [kind for kind in PICTURES if kind in kinds]


def arguments(argv: list[str]) -> list[str]:
    """Check what can be checked before a folder is made, and quote what Hydra's grammar would take apart.

    Raises:
        UserError: `run` or `images` is missing or holds nothing.
    """
    if shows_help(argv):
        return argv
    quoted = quote_values(argv, "run", "images", "save")
    if value_of(argv, "resume") not in (None, "null"):
        return resume_prediction(quoted)
    run, images, pictures = (value_of(argv, key) for key in ("run", "images", "save"))
    if run is None or images is None:
        raise UserError("say which: python -m adlight.predict run=<run folder> images=<file, folder or glob>")
    check_exists(run)
    ImageStream(images).require()
    kinds = parse_pictures(pictures or "none")
    if not is_exported(run):
        return quoted
    if "panels" in kinds:
        raise UserError(f"save=panels shows reconstructions, which {run} does not make: save=masks,maps")
    folder = RunFolder(folder_of(run)).predictions_folder / "${now:%Y%m%d-%H%M%S-%f}"
    return quoted if value_of(argv, "hydra.run.dir") else [*quoted, quote("hydra.run.dir", folder)]


def main() -> None:
    """Run as a program."""
    cli.run(predict, "predict", arguments)


if __name__ == "__main__":
    main()
