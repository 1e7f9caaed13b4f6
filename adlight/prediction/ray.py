"""Predict by a pool of Ray actors, each with a detector of its own, on this machine or on a cluster.

Ray Data hands parts of the images to the actors, which write them into the folder of the predictions.
"""

import logging
import math
import os
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import track

from adlight.data.stream import ImageStream
from adlight.prediction.batches import ResultWriter, load_detector, predict_batches
from adlight.runs.predictions import PredictionFolder
from adlight.types import UserError

if TYPE_CHECKING:  # an extra
    import pyarrow

DEVICES = ("auto", "cpu", "cuda")
PARTS_AT_ONCE = 1000  # known to Ray: a million paths in its memory


class PartPredictor:
    """An actor's work: predict for parts of the images and write each, once it is whole.

    Args:
        folder: of the predictions.
        settings: those of `adlight.predict`.
        pictures: kinds to write.
        place: the folder that relative paths start from.
        threads: decode images.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], pictures: list[str], place: str, threads: int
    ) -> None:
        os.chdir(place)  # of a process that is the actor's own
        self.folder, self.settings, self.threads = PredictionFolder(folder), settings, threads
        self.detector = load_detector(settings)
        self.writer = ResultWriter(folder, pictures, ImageStream(str(settings["images"])))

    def __call__(self, parts: "pyarrow.Table") -> dict[str, list[Any]]:
        """Predict for some parts (`number`, `images`). -> `error` of each, empty where there is none."""
        return {"error": [self._predict(part["number"], part["images"]) for part in parts.to_pylist()]}

    def _predict(self, number: int, images: list[str]) -> str:
        words = (self.writer, self.settings["on_bad_image"], self.threads)
        try:
            batches = predict_batches(self.detector, map(Path, images), len(images), *words)
            self.folder.parts.write(number, (entry for batch in batches for entry in batch))
        except UserError as error:  # Ray would wrap it
            return str(error)
        return ""


def check_ray(settings: Mapping[str, Any]) -> None:
    """Refuse, before anything expensive, what Ray cannot do.

    Raises:
        UserError: Ray is not installed, or the device is one that Ray chooses itself.
    """
    try:
        import pyarrow  # noqa: F401
        import ray.data  # noqa: F401
    except ImportError as error:
        raise UserError(f"engine=ray needs {error.name}: pip install 'adlight[ray]'") from error
    if settings["device"] not in DEVICES:
        raise UserError(f"device={settings['device']}: with engine=ray one of {', '.join(DEVICES)}; Ray numbers GPUs")


def predict_parts(
    folder: PredictionFolder, stream: ImageStream, count: int, settings: Mapping[str, Any], pictures: list[str]
) -> None:
    """Predict for all images that have no part yet.

    Args:
        folder: takes the parts.
        stream: the images.
        count: how many are left, for the progress bar.
        settings: those of `adlight.predict`.
        pictures: kinds to write.

    Raises:
        UserError: no cluster, more actors than it has CPUs, or as `predict_batches`; whole parts are kept.
    """
    import ray

    is_ours = not ray.is_initialized()
    if is_ours:
        _connect(settings["ray_address"])
    try:
        actors, threads, gpus = _size_pool(settings, ray.cluster_resources())
        pool = {
            "fn_constructor_args": (folder.path, dict(settings), pictures, os.getcwd(), threads),
            **{"num_cpus": 1, "num_gpus": gpus, "batch_size": 1, "batch_format": "pyarrow"},
        }
        parts = folder.parts.remaining(iter(stream), settings["part_size"])
        steps, console = -(-count // settings["part_size"]), Console(stderr=True)
        errors, hidden = _run(parts, actors, pool), not console.is_terminal
        for error in track(errors, "predicting", steps, console=console, transient=True, disable=hidden):
            if error:
                raise UserError(error)
    finally:
        if is_ours:
            ray.shutdown()


def _run(parts: Iterator[tuple[int, list[str]]], actors: int, pool: dict[str, Any]) -> Iterator[str]:
    """Yield the error of each part, empty where there is none, as the parts are done."""
    import ray.data

    while some := [{"number": number, "images": images} for number, images in islice(parts, PARTS_AT_ONCE)]:
        compute = ray.data.ActorPoolStrategy(size=min(actors, len(some)), max_tasks_in_flight_per_actor=1)
        rows = ray.data.from_items(some, override_num_blocks=len(some))
        done = rows.map_batches(PartPredictor, compute=compute, **pool)
        yield from (row["error"] for row in done.iter_rows())


def _connect(address: str | None) -> None:
    """Start Ray on this machine, or join the cluster at an address."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it takes actors of Ray Data's own making for errors
    try:
        ray.init(address or "local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError) as error:
        raise UserError(f"ray_address={address}: no cluster there; `ray start --head` makes one") from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False


def _size_pool(settings: Mapping[str, Any], resources: Mapping[str, float]) -> tuple[int, int, float]:
    """Give the number of actors, the threads and the share of a GPU that each has.

    Raises:
        UserError: Ray would wait for ever for so many.
    """
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    gpus = 0 if settings["device"] == "cpu" else gpus
    actors = settings["actors"] or gpus or cpus
    if actors > cpus:
        raise UserError(f"actors={actors}: Ray has {cpus} CPUs, and each actor takes one")
    return actors, max(1, cpus // actors), 1 / math.ceil(actors / gpus) if gpus else 0
