"""What `run=` may name: the folder of a run, or a graph that was exported of one."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from adlight.types import UserError, unknown_name

INPUTS = ("roi", "tile", "overlap")  # arguments of a detector that may differ from its run's


def is_exported(path: str | Path) -> bool:
    """Tell whether a path names an exported graph, and no run."""
    return Path(path).suffix == ".onnx"


def check_exists(run: str | Path) -> None:
    """Refuse what is neither a run nor an exported graph.

    Raises:
        UserError: the folder holds no run, or there is no such file.
    """
    if is_exported(run):
        if not Path(run).is_file():
            raise UserError(f"run={run}: there is no such file")
        return
    from adlight.runs.folder import RunFolder  # with OmegaConf, which a graph does not need

    RunFolder(run).config()


def folder_of(run: str | Path) -> Path:
    """Find the folder in which predictions of a detector lie: a run's own, or the one that a graph lies in."""
    return Path(run).parent if is_exported(run) else Path(run)


def check_arguments(run: Any, overrides: str | Iterable[str], inputs: Mapping[str, Any]) -> list[str]:
    """Refuse arguments of Python's interface that are none of a detector's. -> the overrides.

    Raises:
        UserError: the run or an override is no text, or there is no such argument.
    """
    if not isinstance(run, str | Path):
        raise UserError(f"a run is named by its folder or graph, got {run!r}")
    changes = [overrides] if isinstance(overrides, str) else list(overrides)
    if wrong := [one for one in changes if not isinstance(one, str)]:
        raise UserError(f"overrides are texts such as 'model.scorer.reduce=max', got {wrong[0]!r}")
    if unknown := [name for name in inputs if name not in INPUTS]:
        raise UserError(unknown_name("argument", unknown[0], INPUTS))
    if not isinstance(roi := inputs.get("roi"), str | Path | None):
        raise UserError(f"roi is a mask or a folder of masks, got {roi!r}")
    return changes
