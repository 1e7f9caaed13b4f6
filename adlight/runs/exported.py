"""Exported detectors: a graph and, beside it, what has to be known to use it.

detector.onnx     pixels in; score, map, mask and decision out
detector.json     sizes, channels, categories, thresholds, versions, hash of the checkpoint
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adlight.detection.categories import CategoryClassifier
from adlight.detection.session import GraphDetector
from adlight.metrics.thresholds import Calibration
from adlight.runs.files import write_atomically
from adlight.runs.graphs import is_exported
from adlight.types import UserError

_GRAPH, _SETTINGS = "detector.onnx", ".json"
_FRAME = ("image_size", "resize", "channels")
HASH = "checkpoint_sha256"  # also in the graph, so that two files of different exports are not taken for a pair


def weights_of(run: str | Path, ckpt: str | Path | None) -> Path:
    """Find the file that holds a detector's weights: a run's checkpoint, or the graph itself."""
    if is_exported(run):
        return Path(run)
    from adlight.runs.folder import RunFolder  # with OmegaConf, which a graph does not need

    folder = RunFolder(run)
    return folder.checkpoint(str(ckpt or folder.read_config().ckpt))


@dataclass(frozen=True)
class ExportFolder:
    """The folder that an export writes to."""

    path: Path

    @property
    def graph(self) -> Path:
        """The graph."""
        return self.path / _GRAPH

    def write_settings(self, settings: dict[str, Any]) -> Path:
        """Write what has to be known of the graph. -> the file."""
        return write_atomically(self.graph.with_suffix(_SETTINGS), json.dumps(settings, indent=2) + "\n")


def describe_calibration(calibration: Calibration, classifier: CategoryClassifier) -> dict[str, Any]:
    """Give categories and thresholds by position in the graph's inputs, and the state that a `Detector` works with."""
    names = list(calibration.categories)
    used = {name or "all categories together": calibration.of(name) for name in (*names, None)}
    methods = {"image": calibration.image.text, "pixel": calibration.pixel.text, "per": calibration.per}
    return {
        "categories": names,
        "thresholds": {name: {"image": one.image, "pixel": one.pixel} for name, one in used.items()},
        "calibration": methods
        | {"min_area": calibration.min_area, "closing": calibration.closing, "state": calibration.state_dict()},
        "classifier": classifier.state_dict(),
    }


def load_exported(path: str | Path, device: str) -> tuple[GraphDetector, dict[str, Any]]:
    """Load a graph. -> it, and the settings that an image needs on its way to it.

    Raises:
        UserError: a file is missing or damaged, or the two are of different exports.
    """
    path = Path(path)
    beside = path.with_suffix(_SETTINGS)
    for one in (path, beside):
        if not one.is_file():
            raise UserError(f"{one} does not exist: python -m adlight.export run=<run> writes it")
    try:
        settings = json.loads(beside.read_text())
        found, classifier = settings["calibration"], CategoryClassifier()
        calibration = Calibration(found["image"], found["pixel"], found["per"], found["min_area"], found["closing"])
        calibration.load_state_dict(found["state"])
        classifier.load_state_dict(settings["classifier"])
        frame, expected = {name: settings[name] for name in _FRAME}, settings[HASH]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{beside} is damaged ({type(error).__name__}: {error}): export the run again") from error
    graph = GraphDetector(path, calibration, classifier, device)
    if graph.metadata.get(HASH) != expected:
        raise UserError(f"{path} and {beside} are of different exports: export the run again")
    return graph, frame
