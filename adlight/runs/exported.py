"""Exported detectors: a graph and its settings, which can be used instead of a run in `run=`.

detector.onnx     pixels in; score, map, mask and decision out
detector.json     sizes, channels, categories, thresholds, versions, hash of the checkpoint
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adlight.runs.files import write_json
from adlight.types import UserError, unknown_name

if TYPE_CHECKING:  # NumPy takes time to import: not for --help
    from adlight.detection.classifier import CategoryClassifier
    from adlight.detection.session import GraphDetector
    from adlight.metrics.thresholds import Calibration

_GRAPH, _SETTINGS = "detector.onnx", ".json"
_FRAME = ("image_size", "resize", "channels")
INPUTS = ("roi", "tile", "overlap")  # arguments of `Detector.load` that replace the run's settings
HASH = "checkpoint_sha256"  # stored in both files, to detect files of different exports


def is_exported(path: str | Path) -> bool:
    """Return whether a path names an exported graph rather than a run."""
    return Path(path).suffix == ".onnx"


def check_exists(run: str | Path) -> None:
    """Raise a UserError if the run or exported graph does not exist, or if the run's detector is not trusted."""
    if is_exported(run):
        if not Path(run).is_file():
            raise UserError(f"run={run}: there is no such file")
        return
    from adlight.runs.folder import RunFolder  # imports OmegaConf, which graphs do not need
    from adlight.runs.restore import read_detector

    read_detector(RunFolder(run))  # not the whole config, whose check imports Lightning


def folder_of(run: str | Path) -> Path:
    """Return the folder that predictions are written below: the run, or the folder of the graph."""
    return Path(run).parent if is_exported(run) else Path(run)


def name_of(run: str | Path) -> str:
    """Name a detector by its folder and, if that is a result of a run, by the run too: `<run>/evaluations/<time>`."""
    from adlight.runs.hydra_folder import HydraFolder  # imports OmegaConf, which graphs do not need

    folder = outermost = folder_of(run).resolve()
    while len(outermost.parents) > 1 and HydraFolder(outermost.parents[1]).is_run:
        outermost = outermost.parents[1]
    return folder.relative_to(outermost.parent).as_posix()


def weights_of(run: str | Path, ckpt: str | Path | None) -> Path:
    """Find the file that identifies a detector's weights: a run's checkpoint, an evaluation's changes, or the graph."""
    if is_exported(run):
        return Path(run)
    from adlight.runs.folder import RunFolder  # imports OmegaConf, which graphs do not need
    from adlight.runs.restore import find_weights

    folder = RunFolder(run)
    path, changes = find_weights(folder, str(ckpt or folder.read_config().ckpt))
    return changes or path


def check_arguments(run: Any, overrides: str | Iterable[str], inputs: Mapping[str, Any]) -> list[str]:
    """Raise a UserError for bad arguments of `Detector.load`. -> the overrides."""
    if not isinstance(run, str | Path):
        raise UserError(f"a run is named by its folder or graph, got {run!r}")
    changes = [overrides] if isinstance(overrides, str) else list(overrides)
    if wrong := [word for word in changes if not isinstance(word, str)]:
        raise UserError(f"overrides are texts such as 'model.scorer.reduce=max', got {wrong[0]!r}")
    if unknown := [name for name in inputs if name not in INPUTS]:
        raise UserError(unknown_name("argument", unknown[0], INPUTS))
    if not isinstance(roi := inputs.get("roi"), str | Path | None):
        raise UserError(f"roi is a mask or a folder of masks, got {roi!r}")
    return changes


def graph_path(folder: Path) -> Path:
    """Return the path of the graph in the folder of an export."""
    return folder / _GRAPH


def write_export_settings(graph: Path, settings: dict[str, Any]) -> None:
    """Write the settings of a graph beside it."""
    write_json(graph.with_suffix(_SETTINGS), settings)


def describe_calibration(calibration: "Calibration", classifier: "CategoryClassifier") -> dict[str, Any]:
    """Return categories and thresholds in the order of the graph's inputs, and the state that a `Detector` needs."""
    names = list(calibration.categories)
    thresholds = {name or "all categories together": calibration.of(name) for name in (*names, None)}
    methods = {"image": calibration.image.text, "pixel": calibration.pixel.text, "per": calibration.per}
    return {
        "categories": names,
        "thresholds": {name: {"image": t.image, "pixel": t.pixel} for name, t in thresholds.items()},
        "calibration": methods
        | {"min_area": calibration.min_area, "closing": calibration.closing, "state": calibration.state_dict()},
        "classifier": classifier.state_dict(),
    }


def load_exported(path: str | Path, device: str) -> tuple["GraphDetector", dict[str, Any]]:
    """Load a graph; raise a UserError if a file is missing or damaged. -> detector, and settings of its frame."""
    from adlight.detection.classifier import CategoryClassifier
    from adlight.detection.session import GraphDetector
    from adlight.metrics.thresholds import Calibration

    path = Path(path)
    settings_path = path.with_suffix(_SETTINGS)
    for file in (path, settings_path):
        if not file.is_file():
            raise UserError(f"{file} does not exist: adlight export run=<run> writes it")
    try:
        settings = json.loads(settings_path.read_text())
        saved, classifier = settings["calibration"], CategoryClassifier()
        calibration = Calibration(saved["image"], saved["pixel"], saved["per"], saved["min_area"], saved["closing"])
        calibration.load_state_dict(saved["state"])
        classifier.load_state_dict(settings["classifier"])
        frame, expected = {name: settings[name] for name in _FRAME}, settings[HASH]
    except (OSError, ValueError, LookupError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{settings_path} is damaged ({reason}): export the run again") from error
    graph = GraphDetector(path, calibration, classifier, device)
    if graph.metadata.get(HASH) != expected:
        raise UserError(f"{path} and {settings_path} come from different exports: export the run again")
    return graph, frame
