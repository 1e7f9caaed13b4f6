"""The folder that a command writes to: refused before Hydra writes there, and held as long as the command runs."""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from adlight.cli.errors import describe
from adlight.cli.job import FOLDER
from adlight.runs.checks import check_names, check_settings
from adlight.runs.files import rank
from adlight.runs.find import check_free, check_no_foreign_files
from adlight.runs.folder import RunFolder
from adlight.runs.hydra_folder import SUBFOLDER
from adlight.runs.trust import OUTPUT_DIR
from adlight.types import UserError

held = ExitStack()  # the lock on this process's folder


class Refusal(SystemExit):
    """Ends a command whose folder may not be used: of an `Exception` Hydra would make a warning."""


class FolderCallback(Callback):
    """Hydra calls this when the config is composed, and nothing has been written.

    Args:
        trains: whether the command trains, which may go on in a folder where nothing has come of it yet.
        writes: whether it writes to the folder that Hydra is told.
    """

    def __init__(self, trains: bool = False, writes: bool = True) -> None:
        self.trains, self.writes = trains, writes

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a single command's folder, or hold it; of several processes, the first does so for all."""
        if rank() != 0:
            return
        try:
            HydraConfig.instance().set_config(config)  # as Hydra does next: the folder's name may ask for it
            self._take(config)
        except Exception as error:
            raise Refusal(describe(error)) from error

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse the folder of several jobs; those of a sweep hold theirs themselves."""
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
            raise UserError("hydra.job.chdir=true would look for all paths in the run's folder: leave it out")
        run = RunFolder(str(config.hydra.run.dir))
        if not self.writes and run.path.resolve() == Path.cwd():  # where reports say that they are
            return
        if not config.get("resume"):
            if self.writes and FOLDER not in os.environ and config.hydra.output_subdir != SUBFOLDER:
                raise UserError(f"hydra.output_subdir must be {SUBFOLDER}, by which a run is known: leave it out")
            if self.trains:
                self._check_settings(config)
            if self.trains and run.has_results:
                raise UserError(f"{run} already holds a run: use resume={run} or another hydra.run.dir")
            if not (self.trains and run.is_run):  # nothing has come of an earlier command there
                check_free("hydra.run.dir", run.path)
                if self.writes:
                    check_no_foreign_files("hydra.run.dir", run.path)
        if self.writes and FOLDER not in os.environ:  # the sweep holds its job's folder
            held.enter_context(run.lock(wait=False))

    @staticmethod
    def _check_settings(config: DictConfig) -> None:
        config = config.copy()
        OmegaConf.set_readonly(config, False)
        config.run_dir = str(config.hydra.run.dir)  # Hydra makes it known when it has made it
        check_names(config)
        check_settings(config)
