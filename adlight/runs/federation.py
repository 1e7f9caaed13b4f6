"""A federation's folder, which the server writes; its sites are run folders.

<federation>/
    .hydra/                              the composed config
    federation.json                      id, command, seed, commit, versions, machine
    rounds.csv                           one row per round: loss, val/auroc and, with test_rounds, AUROC
    checkpoints/last.ckpt, best.ckpt     averaged weights of the last round, and of the best by val/auroc
    sites/<name>/                        the sites' run folders, where one machine has all of them
"""

import json
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from adlight.runs.files import read_if_exists, write_atomically
from adlight.runs.folder import RunFolder
from adlight.runs.tables import to_csv
from adlight.runs.verification import put_in_place, verify
from adlight.types import UserError

if TYPE_CHECKING:  # torch takes seconds: not for --help
    from torch import Tensor

_NOTE, _ROUNDS, _SITES = "federation.json", "rounds.csv", "sites"
OBJECTIVE = "val/auroc"
OWN = ("sites", "rounds", "epochs_per_round", "test_rounds", "cpus", "gpus", "app")  # settings that no training has


class Averaged(NamedTuple):
    """What is known after a round.

    Attributes:
        weights: averaged, by the parameter's name.
        rows: one per round so far, by column.
    """

    weights: "dict[str, Tensor]"
    rows: list[dict[str, Any]]


class FederationFolder:
    """A federation's folder, which need not exist yet; it prints as its path."""

    def __init__(self, path: str | Path) -> None:
        self.path, self._run = Path(path), RunFolder(path)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def is_federation(self) -> bool:
        """Whether a federation began here."""
        return (self.path / _NOTE).is_file()

    def begin(self, metadata: dict[str, Any]) -> None:
        """Write what the federation is; its id, which stays, tells its sites from another's."""
        identity = self.note()["id"] if self.is_federation else secrets.token_hex(8)
        write_atomically(self.path / _NOTE, json.dumps({"id": identity, **metadata}, indent=2) + "\n")

    def note(self) -> dict[str, Any]:
        """Read what `begin` wrote.

        Raises:
            UserError: no federation began here.
        """
        if (text := read_if_exists(self.path / _NOTE)) is None:
            raise UserError(f"{self} is no federation's folder (missing {self.path / _NOTE})")
        return json.loads(text)

    def config(self) -> tuple[DictConfig, dict[str, Any]]:
        """Read the composed config, which is not trusted, and the groups it was composed of.

        Raises:
            UserError: as `RunFolder.config`.
        """
        return self._run.config(), self._run.choices()

    def write_config(self, config: DictConfig) -> None:
        """Write the composed config anew."""
        self._run.write_config(config)

    def site(self, name: str) -> Path:
        """Name a site's run folder."""
        return self.path / _SITES / name

    def keep(self, averaged: Averaged) -> None:
        """Keep a round: its averaged weights, those of the best round so far, and the table."""
        *before, row = averaged.rows
        if all((row[OBJECTIVE] or 0) >= (one[OBJECTIVE] or 0) for one in before):  # the later one wins a tie
            self._save(self._run.best_checkpoint, averaged)
        self._save(self._run.last_checkpoint, averaged)
        names = list(dict.fromkeys(name for one in averaged.rows for name in one))
        write_atomically(
            self.path / _ROUNDS, to_csv(names, ([one.get(name) for name in names] for one in averaged.rows))
        )

    def averaged(self, which: str = "last") -> Averaged | None:
        """Load the `last` or `best` round; None where none is done.

        Raises:
            UserError: the file is damaged.
        """
        import torch

        path = self._run.best_checkpoint if which == "best" else self._run.last_checkpoint
        if not path.exists():
            return None
        verify(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
        return Averaged(found["state_dict"], found["rows"])

    def _save(self, path: Path, averaged: Averaged) -> None:
        import torch

        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part")
        torch.save({"state_dict": averaged.weights, "rows": averaged.rows}, partial)
        put_in_place(partial, path)


def site_names(config: DictConfig) -> list[str]:
    """Name the sites by their categories, or by their number where they have other settings.

    Raises:
        UserError: there is none, one is neither categories nor settings, or two have a category in common.
    """
    sites: Any = OmegaConf.to_container(config).get("sites")  # type: ignore[union-attr]
    if not isinstance(sites, list) or not sites:
        raise UserError(f"sites must be a list, such as [[bottle],[screw]], got {sites!r}")
    names, seen = [], list[str]()
    for number, site in enumerate(sites):
        site = [site] if isinstance(site, str) else site
        if isinstance(site, dict) and site:
            names.append(f"site-{number}")
            continue
        if not isinstance(site, list) or not site or not all(isinstance(one, str) for one in site):
            raise UserError(f"sites: {site!r} is neither a list of categories nor a mapping of a data set's settings")
        seen += site
        name = "-".join(site)
        names.append(name if len(name) <= 60 and name.replace("_", "").replace("-", "").isalnum() else f"site-{number}")
    if twice := [one for one in seen if seen.count(one) > 1]:
        raise UserError(f"sites: {twice[0]} is given twice, and a category's images lie at one site")
    return names


def site_config(config: DictConfig, number: int) -> DictConfig:
    """Make the config of a site's own run of the federation's: its data, and the length of all rounds together."""
    site: Any = OmegaConf.to_container(config.sites)[number]  # type: ignore[index]
    length = config.rounds * config.epochs_per_round
    own = config.copy()
    OmegaConf.set_struct(own, False)
    own.dataset.update(site if isinstance(site, dict) else {"category": site})
    own.trainer.update({"max_epochs": length, "enable_progress_bar": False})
    own.ckpt, own.resume = "best", None  # of the averaged weights
    for name in OWN:
        del own[name]
    return own
