"""Predict for images batch by batch, with threads that decode images and write pictures, and print a summary."""

import heapq
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from adlight.data.arrays import allocate
from adlight.data.image_files import ADVICE, read_image
from adlight.data.images import to_channels
from adlight.detection.pictures import colour_ceiling, draw_overlay, draw_panel
from adlight.detection.regions import annotate
from adlight.prediction.stream import ImageStream
from adlight.progress import track
from adlight.runs.predictions import Entry, PredictionFolder
from adlight.types import Prediction, Unreadable, UserError

if TYPE_CHECKING:  # torch takes seconds: not for --help
    from adlight.data.images import PreparedImage
    from adlight.detector import Detector

SHOWN = 5  # largest number of unreadable files listed in the summary
HIGHEST = 10  # number of images with the highest scores listed in the summary


def load_detector(settings: Mapping[str, Any]) -> "Detector":
    """Load a run's detector and apply the thresholds and region settings of `adlight.predict`.

    Raises:
        UserError: see `Detector.load`; or there are no thresholds.
    """
    from adlight.detection.predictions import check_calibrated
    from adlight.detector import Detector

    inputs = {name: settings[name] for name in ("roi", "tile", "overlap")}
    run, ckpt, device, size, category = (settings[name] for name in ("run", "ckpt", "device", "batch_size", "category"))
    detector = Detector.load(run, ckpt, device, (), size, category, **inputs)
    override_attributes(detector, settings, "threshold", "pixel_threshold")
    override_attributes(detector.calibration, settings, "min_area", "closing")
    check_calibrated(detector.calibration)  # before a folder is begun
    return detector


def override_attributes(target: Any, settings: Mapping[Any, Any], *names: str) -> None:
    """Set the named attributes of an object to the settings that are not None."""
    for name in names:
        if settings[name] is not None:
            setattr(target, name, settings[name])


class ResultWriter:
    """Writes an image's pictures to a folder per kind (`masks`, `maps`, `panels`), and makes its table entry."""

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
    """Predict for images batch by batch and write their pictures. Yield the entries of each batch, in order.

    Args:
        detector: the detector.
        paths: paths of the images.
        count: number of images, for the progress bar.
        writer: writes the pictures and makes the entries.
        on_bad_image: `skip` makes an entry with the error for an unreadable image; `error` raises a UserError after
            yielding the entries of all images before it.
        threads: number of threads that decode images and write pictures; None for one per core.
    """
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        steps = -(-count // detector.images_at_once)
        for batch in track(read_ahead(detector, paths, pool), "predicting", steps):
            unreadable = [i for i, (_, image) in enumerate(batch) if isinstance(image, Unreadable)]
            stop = unreadable[0] if unreadable and on_bad_image == "error" else len(batch)
            images = {path: image for path, image in batch[:stop] if not isinstance(image, Unreadable)}
            predictions = detector.predict(list(images.values()), "panels" in writer.pictures) if images else []
            entries = dict(zip(images, pool.map(writer, images, predictions), strict=True))
            yield [image.as_dict() if isinstance(image, Unreadable) else entries[path] for path, image in batch[:stop]]
            for _, image in batch[stop:]:
                if isinstance(image, Unreadable):
                    raise UserError(image.error + ADVICE)


def read_ahead(
    detector: "Detector", paths: Iterator[Path], pool: ThreadPoolExecutor
) -> Iterator[list[tuple[Path, "PreparedImage | Unreadable"]]]:
    """Decode images batch by batch in a thread pool, each batch while the one before it is scored."""
    waiting: list[tuple[Path, Future[PreparedImage | Unreadable]]] = []
    while True:
        coming = [(path, pool.submit(detector.prepare, path)) for path in islice(paths, detector.images_at_once)]
        if waiting:
            yield [(path, future.result()) for path, future in waiting]
        elif not coming:
            return
        waiting = coming


class Summary:
    """Counts of normal, anomalous and unreadable images, from entries that are read one at a time."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        # keyed by source of the thresholds, image threshold, pixel threshold and decision
        self.counts = Counter[tuple[str, float, float, bool]]()
        self.failed, self.num_failed = list[str](), 0
        self.highest: list[tuple[float, int, str]] = []  # a heap of scores minus thresholds, numbers and descriptions
        for entry in entries:
            if "error" in entry:
                self.failed += [entry["error"]] * (self.num_failed < SHOWN)
                self.num_failed += 1
            else:
                key = entry["threshold_source"], entry["threshold"], entry["pixel_threshold"], entry["anomalous"]
                self.counts[key] += 1
                decision = "anomalous" if entry["anomalous"] else "normal"
                line = f"{decision:9} {entry['score']:<8.4g} {entry['path']}"
                heapq.heappush(self.highest, (entry["score"] - entry["threshold"], -self.counts.total(), line))
                if len(self.highest) > HIGHEST:
                    heapq.heappop(self.highest)

    def print(self, folder: PredictionFolder, pictures: Sequence[str], rate: float) -> None:
        """Print the counts, the folders of predictions and pictures, and the rate in images per second."""
        table = Table()
        for name in ("threshold of", "threshold", "images", "anomalous"):
            table.add_column(name, justify="left" if name == "threshold of" else "right")
        thresholds = sorted({key[:3] for key in self.counts})
        for source, threshold, pixel_threshold in thresholds:
            counts = [self.counts[source, threshold, pixel_threshold, is_anomalous] for is_anomalous in (False, True)]
            table.add_row(Text(source), f"{threshold:.6g}", str(sum(counts)), str(counts[1]))
        Console().print(table)
        total = self.counts.total()
        order = ", by score minus threshold" if len(thresholds) > 1 else ""
        lines = [f"the {HIGHEST} most anomalous of {total} images{order}:"] if total > HIGHEST else []
        lines += [line for *_, line in sorted(self.highest, reverse=True)]
        lines += [f"skipped: {error}" for error in self.failed]
        if self.num_failed:
            lines.append(f"unreadable images: {self.num_failed}, listed in {folder.unreadable}")
        lines.append(f"{total} image{'s' * (total != 1)}, {self.num_failed} skipped, {rate:.1f} images/s")
        lines.append(f"predictions: {folder.table}")
        if pictures:
            lines.append(f"pictures: {', '.join(pictures)} in {folder.path}")
        if {"maps", "panels"} & {*pictures}:
            scale = ", ".join(dict.fromkeys(f"{colour_ceiling(pixel):.3g}" for _, _, pixel in thresholds))
            lines[-1] += f" (colours from 0 to twice the pixel threshold: {scale})"
        print(*lines, sep="\n")
