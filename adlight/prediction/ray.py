"""Predict with a pool of Ray actors on this machine or a cluster; each actor has its own detector.

The images are divided into parts. Ray Data hands parts to actors, which write the entries to the prediction folder.
"""

import logging
import math
import os
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adlight.prediction.batches import ResultWriter, load_detector, predict_batches
from adlight.prediction.stream import ImageStream
from adlight.progress import track
from adlight.runs.predictions import PredictionFolder
from adlight.types import UserError

if TYPE_CHECKING:  # an extra
    import pyarrow

DEVICES = ("auto", "cpu", "cuda")
PARTS_AT_ONCE = 1000  # handed to Ray at a time, so that the paths of all images need not be in memory


class PartPredictor:
    """An actor that predicts for parts of the images, and writes each part when it is complete.

    Relative paths in the settings of `adlight.predict` are resolved against `working_dir`.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], pictures: list[str], working_dir: str, threads: int
    ) -> None:
        os.chdir(working_dir)  # safe: an actor has a process of its own
        self.folder, self.settings, self.threads = PredictionFolder(folder), settings, threads
        self.detector = load_detector(settings)
        self.writer = ResultWriter(folder, pictures, ImageStream(str(settings["images"])))

    def __call__(self, parts: "pyarrow.Table") -> dict[str, list[Any]]:
        """Predict for parts, given as `number` and `images`. -> each part's `error`, empty if there is none."""
        return {"error": [self._predict(part["number"], part["images"]) for part in parts.to_pylist()]}

    def _predict(self, number: int, images: list[str]) -> str:
        paths, on_bad_image = map(Path, images), self.settings["on_bad_image"]
        try:
            batches = predict_batches(self.detector, paths, len(images), self.writer, on_bad_image, self.threads)
            self.folder.parts.write(number, (entry for batch in batches for entry in batch))
        except UserError as error:  # returned, as Ray would wrap it
            return str(error)
        return ""


def check_ray(settings: Mapping[str, Any]) -> None:
    """Raise a UserError if Ray is missing, or if `device` names a particular GPU: Ray assigns GPUs itself."""
    try:
        import pyarrow  # noqa: F401
        import ray.data  # noqa: F401
    except ImportError as error:
        raise UserError(f"engine=ray needs {error.name}: pip install 'adlight[ray]'") from error
    if settings["device"] not in DEVICES:
        raise UserError(
            f"device={settings['device']} with engine=ray: choose {', '.join(DEVICES)}, as Ray assigns the GPUs"
        )


def predict_parts(
    folder: PredictionFolder, stream: ImageStream, count: int, settings: Mapping[str, Any], pictures: list[str]
) -> None:
    """Predict for the `count` images that are not in a finished part.

    Raises:
        UserError: no cluster, more actors than CPUs, or an error of `predict_batches`; finished parts are kept.
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
        steps = -(-count // settings["part_size"])
        for error in track(_run(parts, actors, pool), "predicting", steps):
            if error:
                raise UserError(error)
    finally:
        if is_ours:
            ray.shutdown()


def _run(parts: Iterator[tuple[int, list[str]]], actors: int, pool: dict[str, Any]) -> Iterator[str]:
    """Yield the error, or an empty text, of each part as it is finished."""
    import ray.data

    while items := [{"number": number, "images": images} for number, images in islice(parts, PARTS_AT_ONCE)]:
        compute = ray.data.ActorPoolStrategy(size=min(actors, len(items)), max_tasks_in_flight_per_actor=1)
        rows = ray.data.from_items(items, override_num_blocks=len(items))
        results = rows.map_batches(PartPredictor, compute=compute, **pool)
        yield from (row["error"] for row in results.iter_rows())


def _connect(address: str | None) -> None:
    """Start Ray on this machine, or join the cluster at `address`."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # otherwise it reports Ray Data's own actors as errors
    try:
        ray.init(address or "local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError) as error:
        raise UserError(f"ray_address={address}: no cluster there; `ray start --head` makes one") from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False


def _size_pool(settings: Mapping[str, Any], resources: Mapping[str, float]) -> tuple[int, int, float]:
    """Return the number of actors, and the number of threads and fraction of a GPU for each.

    Raises:
        UserError: there are more actors than CPUs, for which Ray would wait forever.
    """
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    gpus = 0 if settings["device"] == "cpu" else gpus
    actors = settings["actors"] or gpus or cpus
    if actors > cpus:
        raise UserError(f"actors={actors}: Ray has {cpus} CPUs, and each actor takes one")
    return actors, max(1, cpus // actors), 1 / math.ceil(actors / gpus) if gpus else 0
