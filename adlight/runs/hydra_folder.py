"""The files that Hydra writes in every run's folder: `.hydra/config.yaml` and `hydra.yaml`."""

from collections.abc import Sequence
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from adlight.runs.config import comparable, flatten, read_yaml
from adlight.runs.files import write_atomically
from adlight.runs.overrides import apply_overrides
from adlight.runs.trust import check_choices, check_config
from adlight.types import UserError, first_line

SUBFOLDER = ".hydra"  # value of hydra.output_subdir
_PLACES = {"evaluations", "predictions", "groups", "exports"}  # of a run, for results of other commands
_NODES = {"model", "dataset", "calibration", "trainer"}  # of every run


class HydraFolder:
    """A folder with a composed config, which need not exist yet; it prints as its path.

    Attributes:
        path: the folder.
        config_path: the file with the composed config.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_path = self._hydra_file("config")

    def __str__(self) -> str:
        return str(self.path)

    @property
    def is_run(self) -> bool:
        """Whether this is a run folder, finished or not."""
        return self.config_path.is_file()

    def config(self, overrides: Sequence[str] = ()) -> DictConfig:
        """Read the composed config, check that it can be trusted, and apply overrides.

        Raises:
            UserError: this is not a run folder, or its config is not trusted.
        """
        config = self.read_config()
        check_config(config, self.config_path)
        return apply_overrides(config, self.choices(), overrides) if overrides else config

    def choices(self) -> dict[str, Any]:
        """Read the run's choice of each config group; raise a UserError if they are not trusted."""
        choices = dict(self._read_yaml("hydra").hydra.runtime.choices)
        check_choices(choices, self._hydra_file("hydra"))
        return choices

    def read_config(self) -> DictConfig:
        """Read the composed config unchecked; raise a UserError if there is none."""
        return self._read_yaml("config")

    def read_training(self) -> DictConfig:
        """Read the composed config of a training unchecked; raise a UserError for any other command's."""
        config = self.read_config()
        if "sites" in config:
            raise UserError(f"{self} is a federation: name the run of one of its sites, such as those in {self}/sites")
        if missing := [name for name in sorted(_NODES) if name not in config]:
            other = "is of a prediction, or of an unfinished evaluation: name the run"
            raise UserError(f"{self.config_path} {other if 'run' in config else 'is damaged'} (it has no {missing[0]})")
        return config

    def settings(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Read all settings by dotted key, with unresolved interpolations, and the choices of config groups.

        The settings of an evaluation are those of its run with its own changes. -> None if the config has no model.

        Raises:
            UserError: this is not a run folder, or a file is damaged.
        """
        run: HydraFolder = self
        try:
            config = self.read_config()
            if "run" in config and "images" not in config and not set(config) >= _NODES:  # not finished
                run = self.evaluated(config)
                changes = {k: value for k, value in comparable(config).items() if k != "run" and value is not None}
                config = DictConfig(OmegaConf.merge(run.read_config(), changes))
            if "model" not in config:
                return None
            has_choices = run._hydra_file("hydra").is_file()
            choices = OmegaConf.select(run._read_yaml("hydra"), "hydra.runtime.choices") if has_choices else None
            return flatten(comparable(config)), dict(choices or {})
        except OmegaConfBaseException as error:
            raise UserError(f"{self.config_path} is damaged ({first_line(error)}): train again or remove it") from error

    def evaluated(self, config: DictConfig) -> "HydraFolder":
        """Find the run of an evaluation with this config: the one that it lies in, or else the one that it names."""
        around = self.path.absolute().parents
        runs = (HydraFolder(run) for place, run in pairwise(around) if place.name in _PLACES)
        return next((run for run in runs if run.is_run), HydraFolder(str(config.run)))

    def write_config(self, config: DictConfig) -> None:
        """Write the composed config, which makes this a run folder."""
        write_atomically(self.config_path, OmegaConf.to_yaml(config))

    def write_composed(self, config: DictConfig, choices: dict[str, Any]) -> None:
        """Write a run's config and choices, instead of those that Hydra may have written for the command."""
        write_atomically(self._hydra_file("hydra"), OmegaConf.to_yaml({"hydra": {"runtime": {"choices": choices}}}))
        self.write_config(config)

    def _hydra_file(self, name: str) -> Path:
        return self.path / SUBFOLDER / f"{name}.yaml"

    def _read_yaml(self, name: str) -> DictConfig:
        path = self._hydra_file(name)
        if not path.is_file():
            if self.path.is_file():
                raise UserError(f"{self} is a file, not a run folder (predict, serve and Detector.load accept a graph)")
            others = [str(place.parent) for place in self.path.parent.glob(f"*/{SUBFOLDER}")]
            hint = "".join(f"; did you mean {name}?" for name in get_close_matches(str(self), others, 1))
            raise UserError(f"{self} is not a run folder (missing {path}){hint}")
        return read_yaml(path)
