"""Predict for images batch by batch: decode the next batch and write pictures in threads while one batch is scored."""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from adlight.data.arrays import allocate
from adlight.data.image_files import read_image
from adlight.data.images import to_channels
from adlight.detection.coco import annotate
from adlight.detection.pictures import draw_overlay, draw_panel
from adlight.prediction.stream import ImageStream
from adlight.runs.predictions import Entry
from adlight.types import Prediction, Unreadable, UserError

if TYPE_CHECKING:  # torch takes seconds: not for --help
    from adlight.data.images import PreparedImage
    from adlight.detector import Detector


def load_detector(settings: Mapping[str, Any]) -> "Detector":
    """Load a run's detector and apply the thresholds and region settings of the command.

    Args:
        settings: all settings of `adlight.predict`.
    """
    from adlight.detector import Detector

    inputs = {name: settings[name] for name in ("roi", "tile", "overlap")}
    run, ckpt, device, size, category = (settings[name] for name in ("run", "ckpt", "device", "batch_size", "category"))
    detector = Detector.load(run, ckpt, device, (), size, category, **inputs)
    override_attributes(detector, settings, "threshold", "pixel_threshold")
    override_attributes(detector.calibration, settings, "min_area", "closing")
    return detector


def override_attributes(target: Any, settings: Mapping[Any, Any], *names: str) -> None:
    """Set the named attributes of an object to the settings that are not None."""
    for name in names:
        if settings[name] is not None:
            setattr(target, name, settings[name])


class ResultWriter:
    """Write an image's pictures, one folder per kind, and make its entry in the tables.

    Args:
        folder: folder of the predictions.
        pictures: kinds of pictures to write: `masks`, `maps`, `panels`.
        stream: the images; it gives each picture its file name.
    """

    def __init__(self, folder: Path, pictures: list[str], stream: ImageStream) -> None:
        self.folder, self.pictures, self.stream = folder, pictures, stream

    def __call__(self, path: Path, prediction: Prediction) -> Entry:
        """Write the pictures. -> the entry."""
        assert prediction.mask is not None and prediction.anomaly_map is not None
        for kind in self.pictures:
            if kind == "masks":
                grey = allocate(prediction.mask.shape, np.uint8)
                picture = Image.fromarray(np.multiply(prediction.mask, np.uint8(255), out=grey))  # not copied
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
    detector: "Detector",
    paths: Iterator[Path],
    count: int,
    writer: ResultWriter,
    on_bad_image: str,
    threads: int | None = None,
) -> Iterator[list[Entry]]:
    """Predict for images batch by batch and write their pictures. -> a list of entries per batch, in order.

    Args:
        detector: the detector.
        paths: paths of the images.
        count: number of images, for the progress bar.
        writer: writes the pictures and makes the entries.
        on_bad_image: `skip` gives an unreadable image an entry with the error; `error` stops.
        threads: number of threads that decode images and write pictures; None for one per core.

    Raises:
        UserError: an image cannot be read; the entries of all images before it have been yielded.
    """
    console = Console(stderr=True)
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        steps, hidden = -(-count // detector.images_at_once), not console.is_terminal
        batches = read_ahead(detector, paths, pool)
        for batch in track(batches, "predicting", steps, console=console, transient=True, disable=hidden):
            unreadable = [i for i, (_, image) in enumerate(batch) if isinstance(image, Unreadable)]
            stop = unreadable[0] if unreadable and on_bad_image == "error" else len(batch)
            images = {path: image for path, image in batch[:stop] if not isinstance(image, Unreadable)}
            predictions = detector.predict(list(images.values()), "panels" in writer.pictures) if images else []
            entries = dict(zip(images, pool.map(writer, images, predictions), strict=True))
            yield [image.as_dict() if isinstance(image, Unreadable) else entries[path] for path, image in batch[:stop]]
            for _, image in batch[stop:]:
                if isinstance(image, Unreadable):
                    raise UserError(image.error)


def read_ahead(
    detector: "Detector", paths: Iterator[Path], pool: ThreadPoolExecutor
) -> Iterator[list[tuple[Path, "PreparedImage | Unreadable"]]]:
    """Decode images batch by batch in a thread pool, the next batch while this one is scored."""
    waiting: list[tuple[Path, Future[PreparedImage | Unreadable]]] = []
    while True:
        coming = [(path, pool.submit(detector.prepare, path)) for path in islice(paths, detector.images_at_once)]
        if waiting:
            yield [(path, future.result()) for path, future in waiting]
        elif not coming:
            return
        waiting = coming
