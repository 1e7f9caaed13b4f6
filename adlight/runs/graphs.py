"""What `run=` may name: the folder of a run, or a graph that was exported of one."""

from pathlib import Path

from adlight.types import UserError


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
