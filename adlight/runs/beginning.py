"""How a run begins: a new one at once; a resumed one only when there is something new to keep."""

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from adlight.runs.config import SPLIT_KEYS
from adlight.runs.files import rank
from adlight.runs.folder import RunFolder
from adlight.runs.trust import check_places
from adlight.types import UserError


class Beginning:
    """Writes what a run is, once: with the first call, before anything else in its folder changes.

    A resumed run calls it before its first new checkpoint or, where no epoch is left, before its results are written:
    whatever fails earlier, a mistyped setting or missing data, leaves the folder as it was.

    Args:
        run: the run's folder.
        metadata: the content of `run.json`.
        config: written anew, as a resumed run's overrides are part of it from then on; None where it stays.
    """

    def __init__(self, run: RunFolder, metadata: dict[str, Any], config: DictConfig | None = None) -> None:
        self.run, self.metadata, self.config = run, dict(metadata), config
        self.has_begun = False
        if rank() == 0:
            print(f"run folder: {run}", flush=True)

    def __call__(self) -> None:
        """Begin, unless the run has."""
        if self.has_begun or rank() != 0:
            return
        self.has_begun = True
        self.run.begin(self.metadata)
        if self.config is not None:
            self.run.write_config(self.config)


def resumed_config(run: RunFolder, overrides: Sequence[str]) -> DictConfig:
    """Read the config of a run that is resumed, and lay overrides over it.

    Raises:
        UserError: the config is not to be trusted, or an override changes the split or a seed.
    """
    config, saved = run.config(overrides), run.read_config()
    check_places(config, run.config_path, overrides)
    keys = [(config, saved, "", "seed")]
    if isinstance(config.get("dataset"), DictConfig):
        keys += [(config.dataset, saved.dataset, "dataset.", key) for key in SPLIT_KEYS]
    for now, before, prefix, key in keys:
        if now.get(key) != before.get(key):
            raise UserError(
                f"{prefix}{key} is {before.get(key)} in {run} and cannot change to {now.get(key)} on resume, as images "
                "held out so far would be trained on: leave it out, or train a new run"
            )
    return config
