"""The folder that a command writes to: checked before Hydra writes there, and locked while the command runs."""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from adlight.cli.errors import describe
from adlight.cli.job import FOLDER_VARIABLE
from adlight.runs.files import is_numbered, rank
from adlight.runs.find import check_free, check_no_foreign_files
from adlight.runs.folder import RunFolder
from adlight.runs.hydra_folder import SUBFOLDER
from adlight.runs.trust import OUTPUT_DIR
from adlight.types import UserError

held = ExitStack()  # the lock on this process's folder
new: list[RunFolder] = []  # this process's folder, if it did not exist before
earlier: list[tuple[RunFolder, str | None, dict[Path, bytes | None]]] = []  # or else `run.json` and the attempt in it


def remove_unused() -> None:
    """Undo what a command wrote to its folder if it failed before it began: no report shows it as a run."""
    for run in new:
        run.remove_unused()
    for run, begun, files in earlier:
        for path, content in files.items() if run.metadata_text() == begun else ():
            if content is None:
                path.unlink(missing_ok=True)
            else:
                path.write_bytes(content)


class Refusal(SystemExit):
    """Ends a command whose folder cannot be used; for an `Exception` Hydra would only print a warning."""


class FolderCallback(Callback):
    """Hydra calls this after composing the config and before writing anything.

    Args:
        trains: whether the command trains; if so, it may reuse the folder of a training that has left no results.
        writes: whether the command writes to Hydra's output folder.
    """

    def __init__(self, trains: bool = False, writes: bool = True) -> None:
        self.trains, self.writes = trains, writes

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check and lock the folder of a single command; the first process of a run does this for all of them."""
        if rank() != 0:
            return
        try:
            HydraConfig.instance().set_config(config)  # Hydra does so next; the folder's name may depend on it
            self._take(config)
        except Exception as error:
            raise Refusal(describe(error)) from error

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the folder of a sweep; its jobs lock their own folders."""
        try:
            if self.writes:
                place = Path(str(config.hydra.sweep.dir))
                check_free("hydra.sweep.dir", place, below=not self.trains)
                check_no_foreign_files("hydra.sweep.dir", place)
        except Exception as error:
            raise Refusal(describe(error)) from error

    def _take(self, config: DictConfig) -> None:
        run_dir: Any = OmegaConf.to_container(config).get("run_dir", OUTPUT_DIR)  # type: ignore[union-attr]
        if run_dir != OUTPUT_DIR:
            raise UserError(f"run_dir={run_dir} follows from hydra.run.dir: set hydra.run.dir={run_dir} instead")
        if config.hydra.job.chdir:
            raise UserError("hydra.job.chdir=true would make all paths relative to the run's folder: leave it out")
        run, has_own_folder = RunFolder(str(config.hydra.run.dir)), FOLDER_VARIABLE not in os.environ
        if not self.writes and run.path.resolve() == Path.cwd():  # as conf/report.yaml says
            return
        if not config.get("resume"):
            if self.writes and has_own_folder and config.hydra.output_subdir != SUBFOLDER:
                raise UserError(f"hydra.output_subdir must be {SUBFOLDER}, which marks a run: leave it out")
            if self.trains and run.has_results:
                raise UserError(f"{run} already holds a run: use resume={run} or another hydra.run.dir")
            if not (self.trains and run.is_run):  # a training without results may be repeated
                check_free("hydra.run.dir", run.path)
                if run.calibrated_checkpoint.exists() and config.hydra.job.config_name != "evaluate":
                    raise UserError(f"hydra.run.dir={run} is an evaluation, which would be overwritten: choose another")
                if self.writes:
                    check_no_foreign_files("hydra.run.dir", run.path)
        if self.writes and has_own_folder:  # otherwise the sweep has locked its job's folder
            held.callback(new.clear)
            held.callback(earlier.clear)
            is_new = not run.path.exists() and not is_numbered()  # processes of a numbered run may still write there
            held.enter_context(run.lock(wait=False))
            if is_new:  # and locked, so that it is no other process's
                new.append(run)
            elif self.trains and not config.get("resume"):
                earlier.append((run, run.metadata_text(), run.read_attempt()))
