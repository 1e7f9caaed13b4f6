"""Where a site's run lies, and its config: what the server sent, with what the server does not decide."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from adlight.runs.checks import check_settings
from adlight.runs.config import difference
from adlight.runs.federation import site_config
from adlight.runs.folder import RunFolder
from adlight.runs.frame import settle_frame
from adlight.runs.trust import check_choices, check_config, check_places
from adlight.types import UserError

SENT = Path("the federation's config")  # by the server, and checked like that of a stranger's run


class Place(NamedTuple):
    """What a site knows and the server does not decide.

    Attributes:
        number: the site's.
        folder: of its run.
        root: where its images lie; None: where the federation says.
        accelerator: of its trainer; None: likewise.
    """

    number: int
    folder: Path
    root: str | None = None
    accelerator: str | None = None


def take_config(run: RunFolder, place: Place, settings: Mapping[str, Any]) -> DictConfig:
    """Make a run's config of what the server sent, or take that of a run that goes on, and write it.

    Args:
        run: the site's.
        place: likewise.
        settings: of a request to begin.

    Raises:
        UserError: there is no such site, the config is not to be trusted, or the folder holds something else.
    """
    sent = OmegaConf.create(settings["config"])
    assert isinstance(sent, DictConfig)
    check_config(sent, SENT)
    check_choices(settings["choices"], SENT)
    if not 0 <= place.number < len(sent.sites):
        raise UserError(f"partition-id={place.number}: the federation has sites 0 to {len(sent.sites) - 1}")
    config = site_config(sent, place.number)
    if place.root is not None:
        config.dataset.root = place.root
    if place.accelerator is not None:
        config.trainer.accelerator = place.accelerator
    check_places(config, SENT)
    if run.is_run:
        check_federation(run, settings["federation"])
        saved = run.config()
        saved.trainer.max_epochs = config.trainer.max_epochs  # there may be more rounds than before
        if change := difference(saved, config):
            raise UserError(f"{run} holds a run with other settings ({change}): choose another folder")
        config = with_run_dir(saved, run)
    else:
        check_settings(config := with_run_dir(config, run))
        settle_frame(config, run)
        run.write_composed(config, settings["choices"])
    run.write_config(config)
    return config


def check_federation(run: RunFolder, federation: str) -> None:
    """Refuse a folder that is not a federation's.

    Raises:
        UserError: it is another's, or a training's.
    """
    text = run.metadata_text()
    if text is not None and json.loads(text).get("federation") != federation:
        raise UserError(f"{run} is of another federation, or a training: choose another folder")


def with_run_dir(config: DictConfig, run: RunFolder) -> DictConfig:
    """Name the run's folder in a config: Hydra, which names it elsewhere, did not start this process."""
    config = config.copy()
    OmegaConf.set_struct(config, False)
    config.run_dir = str(run.path)
    return config
