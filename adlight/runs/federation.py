"""Federations: the server's folder, and the configs of the sites, whose folders are runs.

<federation>/
    .hydra/                              the composed config
    federation.json                      id, command, seed, commit, versions, machine
    rounds.csv                           one row per round: loss, val/auroc and, with test_rounds, AUROC
    checkpoints/last.ckpt, best.ckpt     averaged weights of the last round, and of the best by val/auroc
    sites/<name>/                        the sites' run folders, if all sites are on one machine
"""

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from adlight.runs.config import difference
from adlight.runs.files import read_if_exists, write_atomically, write_json
from adlight.runs.folder import RunFolder
from adlight.runs.hydra_folder import HydraFolder
from adlight.runs.tables import OBJECTIVE, to_csv
from adlight.runs.training import prepare_config
from adlight.runs.trust import check_choices, check_config, check_places
from adlight.runs.weights import verify, write_checkpoint
from adlight.types import UserError

if TYPE_CHECKING:  # torch takes seconds: not for --help
    from torch import Tensor

_NOTE, _ROUNDS, _SITES = "federation.json", "rounds.csv", "sites"
SENT = Path("the federation's config")  # used as a file name in messages
OWN_SETTINGS = ("sites", "rounds", "epochs_per_round", "test_rounds", "cpus", "gpus", "app")  # not of a training


class Averaged(NamedTuple):
    """The state after a round."""

    weights: "dict[str, Tensor]"  # averaged weights by parameter name
    rows: list[dict[str, Any]]  # values by column, for each round so far


class FederationFolder(HydraFolder):
    """A federation's folder, which need not exist yet; it prints as its path."""

    @property
    def is_federation(self) -> bool:
        """Whether a federation has begun here."""
        return (self.path / _NOTE).is_file()

    def begin(self, metadata: dict[str, Any]) -> None:
        """Write the federation's metadata, and an id by which its sites recognize it; a resumed federation keeps it."""
        identity = self.note()["id"] if self.is_federation else secrets.token_hex(8)
        write_json(self.path / _NOTE, {"id": identity, **metadata})

    def note(self) -> dict[str, Any]:
        """Read what `begin` wrote; raise a UserError if no federation has begun here."""
        if (text := read_if_exists(self.path / _NOTE)) is None:
            raise UserError(f"{self} is not a federation's folder (missing {self.path / _NOTE})")
        return json.loads(text)

    def config_text(self) -> str:
        """Return the composed config as YAML, for the sites."""
        return OmegaConf.to_yaml(self.config())

    def site(self, name: str) -> Path:
        """Return the path of a site's run folder."""
        return self.path / _SITES / name

    def keep(self, averaged: Averaged) -> None:
        """Save a round: the averaged weights, also as the best if no earlier round was better, and the table."""
        run, (*before, row) = RunFolder(self.path), averaged.rows
        content = {"state_dict": averaged.weights, "rows": averaged.rows}
        if all((row[OBJECTIVE] or 0) >= (earlier[OBJECTIVE] or 0) for earlier in before):
            write_checkpoint(run.best_checkpoint, content)
        write_checkpoint(run.last_checkpoint, content)
        columns = list(dict.fromkeys(name for row in averaged.rows for name in row))
        cells = ([row.get(name) for name in columns] for row in averaged.rows)
        write_atomically(self.path / _ROUNDS, to_csv(columns, cells))

    def averaged(self, which: str = "last") -> Averaged | None:
        """Load the `last` or `best` round; None if there is none. Raise a UserError if the file is damaged."""
        import torch

        run = RunFolder(self.path)
        path = run.best_checkpoint if which == "best" else run.last_checkpoint
        if not path.exists():
            return None
        verify(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        return Averaged(content["state_dict"], content["rows"])


def site_names(config: DictConfig) -> list[str]:
    """Name the sites by their categories, or by number if they have other settings; raise a UserError for bad sites."""
    sites: Any = OmegaConf.to_container(config).get("sites")  # type: ignore[union-attr]
    if not isinstance(sites, list) or not sites:
        raise UserError(f"sites must be a list, such as [[bottle],[screw]], got {sites!r}")
    names, categories = [], list[str]()
    for number, site in enumerate(sites):
        site = [site] if isinstance(site, str) else site
        if isinstance(site, dict) and site:
            names.append(f"site-{number}")
            continue
        if not isinstance(site, list) or not site or not all(isinstance(name, str) for name in site):
            raise UserError(f"sites: {site!r} is neither a list of categories nor a mapping of a data set's settings")
        categories += site
        name = "-".join(site)
        is_short = len(name) <= 60 and name.replace("_", "").replace("-", "").isalnum()
        names.append(name if is_short else f"site-{number}")
    if repeated := [name for name in categories if categories.count(name) > 1]:
        raise UserError(f"sites: {repeated[0]} occurs twice, but the images of a category belong to one site")
    return names


def write_site_config(
    run: RunFolder, sent: Mapping[str, Any], number: int, root: str | None, accelerator: str | None
) -> DictConfig:
    """Write the config of a site's run: the federation's adapted to the site, or that of a resumed run. -> the config.

    Args:
        run: folder of the site's run.
        sent: untrusted settings from the server: `config` as YAML, `choices` and the id of the `federation`.
        number: number of the site.
        root: folder of the site's images; None for the federation's `dataset.root`.
        accelerator: accelerator of the trainer; None for the federation's.

    Raises:
        UserError: there is no such site, the config is not trusted, or the folder holds another run.
    """
    config = OmegaConf.create(sent["config"])
    assert isinstance(config, DictConfig)
    check_config(config, SENT)
    check_choices(sent["choices"], SENT)
    if not 0 <= number < len(config.sites):
        raise UserError(f"partition-id={number}: the federation has sites 0 to {len(config.sites) - 1}")
    config = _site_config(config, number)
    config.dataset.update({} if root is None else {"root": root})
    config.trainer.update({} if accelerator is None else {"accelerator": accelerator})
    check_places(config, SENT)
    if run.is_run:
        saved = read_site_config(run, sent["federation"])
        saved.trainer.max_epochs = config.trainer.max_epochs  # the number of rounds may have been raised
        if change := difference(saved, config):
            raise UserError(f"{run} holds a run with other settings ({change}): choose another folder")
        config = saved
    else:
        config.run_dir = str(run.path)
        prepare_config(config, run)
        run.write_composed(config, sent["choices"])
    run.write_config(config)
    return config


def _site_config(config: DictConfig, number: int) -> DictConfig:
    """Turn the federation's config into a site's: set the site's data and the number of epochs of all rounds."""
    site: Any = OmegaConf.to_container(config.sites)[number]  # type: ignore[index]
    epochs = config.rounds * config.epochs_per_round
    OmegaConf.set_struct(config, False)
    config.dataset.update(site if isinstance(site, dict) else {"category": site})
    config.trainer.update({"max_epochs": epochs, "enable_progress_bar": False})
    config.ckpt, config.resume = "best", None  # the averaged weights
    for name in OWN_SETTINGS:
        del config[name]
    return config


def read_site_config(run: RunFolder, federation: str) -> DictConfig:
    """Read the config of a site's run; raise a UserError if it does not belong to the federation with this id."""
    text = run.metadata_text()
    if text is not None and json.loads(text).get("federation") != federation:
        raise UserError(f"{run} is of another federation, or a training: choose another folder")
    config = run.config()
    OmegaConf.set_struct(config, False)
    config.run_dir = str(run.path)  # in other programs an interpolation that Hydra resolves
    return config
