"""What Hydra leaves in every folder that it runs in: `.hydra/config.yaml`, `hydra.yaml` and `overrides.yaml`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from adlight.runs.config import apply_overrides, comparable, flatten, read_yaml
from adlight.runs.files import write_atomically
from adlight.types import UserError

_HYDRA = ".hydra"
_TARGETS_OF_0_1 = "adlight.modules."


class HydraFolder:
    """A folder with a composed config, which need not exist yet; it prints as its path."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def is_run(self) -> bool:
        """Whether the folder is a run's, finished or not."""
        return self._hydra_file("config").is_file()

    def config(self, overrides: Sequence[str] = ()) -> DictConfig:
        """Read the composed config, and lay overrides over it.

        Raises:
            UserError: the folder holds no run, or one of adlight 0.1.
        """
        config = self._read_yaml("config")
        if str(OmegaConf.select(config, "model._target_")).startswith(_TARGETS_OF_0_1):
            raise UserError(f"{self} is a run of adlight 0.1: evaluate it with that version (0.1.0), or train it again")
        if not overrides:
            return config
        return apply_overrides(config, self._read_yaml("hydra").hydra.runtime.choices, overrides)

    def write_config(self, config: DictConfig) -> None:
        """Write the composed config anew."""
        write_atomically(self._hydra_file("config"), OmegaConf.to_yaml(config))

    def write_hydra_files(self, config: DictConfig) -> None:
        """Write all files that Hydra leaves in a run, the one that marks it as one last."""
        write_atomically(self._hydra_file("hydra"), OmegaConf.to_yaml(HydraConfig.instance().cfg))
        write_atomically(self._hydra_file("overrides"), OmegaConf.to_yaml(HydraConfig.get().overrides.task))
        self.write_config(config)

    def settings(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Give the config as values by dotted key (interpolations as written), and the groups it was composed of.

        Of an evaluation: those of its run with the evaluation's changes. None for anything else that Hydra left.

        Raises:
            UserError: the folder holds none of these, or a file is damaged.
        """
        run: HydraFolder = self
        config = self.config()
        if "run" in config and "images" not in config:
            parents = map(HydraFolder, self.path.parents)
            run = next((folder for folder in parents if folder.is_run), HydraFolder(str(config.run)))
            changes = {key: value for key, value in comparable(config).items() if key != "run" and value is not None}
            config = DictConfig(OmegaConf.merge(run.config(), changes))
        if "model" not in config:
            return None
        has_choices = run._hydra_file("hydra").is_file()
        choices = OmegaConf.select(run._read_yaml("hydra"), "hydra.runtime.choices") if has_choices else None
        return flatten(config), dict(choices or {})

    def _hydra_file(self, name: str) -> Path:
        return self.path / _HYDRA / f"{name}.yaml"

    def _read_yaml(self, name: str) -> DictConfig:
        path = self._hydra_file(name)
        if not path.is_file():
            raise UserError(f"{self} is not a run folder (missing {path})")
        return read_yaml(path)
