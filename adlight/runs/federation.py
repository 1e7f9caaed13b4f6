"""A federation's folder, which the server writes; the folders of its sites are runs.

<federation>/
    .hydra/                              the composed config
    federation.json                      id, command, seed, commit, versions, machine
    rounds.csv                           one row per round: loss, val/auroc and, with test_rounds, AUROC
    checkpoints/last.ckpt, best.ckpt     averaged weights of the last round, and of the best by val/auroc
    sites/<name>/                        the sites' run folders, if all sites are on one machine
"""

import json
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from adlight.runs.files import read_if_exists, write_atomically
from adlight.runs.folder import RunFolder
from adlight.runs.tables import to_csv
from adlight.runs.weights import verify, write_checkpoint
from adlight.types import UserError

if TYPE_CHECKING:  # torch takes seconds: not for --help
    from torch import Tensor

_NOTE, _ROUNDS, _SITES = "federation.json", "rounds.csv", "sites"
OBJECTIVE = "val/auroc"


class Averaged(NamedTuple):
    """The state after a round."""

    weights: "dict[str, Tensor]"  # by the parameter's name
    rows: list[dict[str, Any]]  # one per round so far, by column


class FederationFolder:
    """A federation's folder, which need not exist yet; it prints as its path."""

    def __init__(self, path: str | Path) -> None:
        self.path, self._run = Path(path), RunFolder(path)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def is_federation(self) -> bool:
        """Whether a federation has begun here."""
        return (self.path / _NOTE).is_file()

    def begin(self, metadata: dict[str, Any]) -> None:
        """Write what the federation is; its lasting id distinguishes its sites from those of others."""
        identity = self.note()["id"] if self.is_federation else secrets.token_hex(8)
        write_atomically(self.path / _NOTE, json.dumps({"id": identity, **metadata}, indent=2) + "\n")

    def note(self) -> dict[str, Any]:
        """Read what `begin` wrote; raise a UserError if no federation has begun here."""
        if (text := read_if_exists(self.path / _NOTE)) is None:
            raise UserError(f"{self} is not a federation's folder (missing {self.path / _NOTE})")
        return json.loads(text)

    def config(self) -> tuple[DictConfig, dict[str, Any]]:
        """Read the composed config and the choices of config groups; raise a UserError if they are not trusted."""
        return self._run.config(), self._run.choices()

    def config_text(self) -> str:
        """Return the composed config as YAML, to be sent to the sites."""
        return OmegaConf.to_yaml(self._run.config())

    def write_config(self, config: DictConfig) -> None:
        """Write the composed config."""
        self._run.write_config(config)

    def site(self, name: str) -> Path:
        """Return the path of a site's run folder."""
        return self.path / _SITES / name

    def keep(self, averaged: Averaged) -> None:
        """Keep a round: its averaged weights, as the best too if no round before was better, and the table."""
        *before, row = averaged.rows
        content = {"state_dict": averaged.weights, "rows": averaged.rows}
        if all((row[OBJECTIVE] or 0) >= (earlier[OBJECTIVE] or 0) for earlier in before):
            write_checkpoint(self._run.best_checkpoint, content)
        write_checkpoint(self._run.last_checkpoint, content)
        columns = list(dict.fromkeys(name for row in averaged.rows for name in row))
        cells = ([row.get(name) for name in columns] for row in averaged.rows)
        write_atomically(self.path / _ROUNDS, to_csv(columns, cells))

    def averaged(self, which: str = "last") -> Averaged | None:
        """Load the `last` or `best` round; None if there is none yet. Raise a UserError if the file is damaged."""
        import torch

        path = self._run.best_checkpoint if which == "best" else self._run.last_checkpoint
        if not path.exists():
            return None
        verify(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        return Averaged(content["state_dict"], content["rows"])
