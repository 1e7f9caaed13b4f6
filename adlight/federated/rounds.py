"""The server's part: rounds of training at the sites and averaging, by whatever carries messages to them."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from adlight.federated.weights import Weights, average
from adlight.runs.federation import OBJECTIVE, Averaged, FederationFolder, site_names
from adlight.types import UserError

Kind = Literal["begin", "train", "measure", "finish"]


class Request(NamedTuple):
    """What the server asks of every site.

    Attributes:
        kind: what to do: check its images and begin a run, train a round, measure averaged weights, or finish with
            them: calibrate and test.
        settings: plain values that JSON holds.
        weights: averaged; none to begin with.
    """

    kind: Kind
    settings: dict[str, Any]
    weights: Weights


class Place(NamedTuple):
    """What a site knows and the server does not decide.

    Attributes:
        number: number of the site.
        folder: folder of its run.
        root: folder of its images; None for the folder that the federation names.
        accelerator: accelerator of its trainer; None for that of the federation.
    """

    number: int
    folder: Path
    root: str | None = None
    accelerator: str | None = None


class Reply(NamedTuple):
    """What a site answers.

    Attributes:
        site: its number.
        values: plain values: numbers, never images.
        weights: trained; none unless it was asked to begin or to train.
        error: why it could not, in one line; empty if it could.
    """

    site: int
    values: dict[str, Any]
    weights: Weights
    error: str = ""


Exchange = Callable[[Request], list[Reply]]  # sends to all sites, and waits for all of them


class Server:
    """Leads a federation, from where it stands to its end.

    Args:
        folder: of a federation that has begun.
        exchange: carries messages.
    """

    def __init__(self, folder: FederationFolder, exchange: Exchange) -> None:
        self.folder, self.exchange = folder, exchange
        self.config, self.choices = folder.config(), folder.choices()
        self.note, self.names = folder.note(), site_names(self.config)

    def run(self) -> None:
        """Let all sites begin, train and average round by round, and let them finish with the averaged weights.

        Raises:
            UserError: a site could not do its part, or the sites do not fit together; whole rounds are kept.
        """
        begun = self._begin()
        images, known = [one.values["images"] for one in begun], self.folder.averaged()
        averaged = known or Averaged(begun[0].weights, [])
        print(f"sites: {', '.join(f'{name} ({n} images)' for name, n in zip(self.names, images, strict=True))}")
        for number in range(len(averaged.rows) + 1, self.config.rounds + 1):
            started = time.monotonic()
            trained = self._ask("train", averaged.weights, round=number)
            weights = average([one.weights for one in trained], images)
            tests = bool(self.config.test_rounds) and number % self.config.test_rounds == 0
            measured = self._ask("measure", weights, round=number, test=tests)
            row = self._row(number, images, trained, measured)
            averaged = Averaged(weights, [*averaged.rows, row | {"seconds": round(time.monotonic() - started, 1)}])
            self.folder.keep(averaged)
            print(self._line(averaged.rows[-1]), flush=True)
        chosen = self.folder.averaged(self.config.ckpt) or averaged
        number = len(chosen.rows)
        print(f"averaged weights of round {number} are calibrated and tested at each site", flush=True)
        for one in self._ask("finish", chosen.weights, round=number):
            numbers = ", ".join(f"{key} {value:.4f}" for key, value in one.values["metrics"].items())
            print(f"{self.names[one.site]}: {numbers}; run: {one.values['folder']}", flush=True)

    def _begin(self) -> list[Reply]:
        begun = self._ask("begin", {}, config=self.folder.config_text(), choices=self.choices)
        frames = {self.names[one.site]: one.values["frame"] for one in begun}
        if len(set(frames.values())) > 1:
            each = "; ".join(f"{name}: {frame}" for name, frame in frames.items())
            raise UserError(f"the sites' images have different shapes, so give all one frame, {each}")
        return begun

    def _ask(self, kind: Kind, weights: Weights, **settings: Any) -> list[Reply]:
        """Ask all sites. -> their replies, by the sites' numbers."""
        common = {"federation": self.note["id"], "command": self.note["command"]}
        common |= {"epochs": self.config.epochs_per_round}
        common |= {"folder": str(self.folder.path.absolute()), "names": self.names}  # for sites on this machine
        replies = sorted(self.exchange(Request(kind, common | settings, weights)), key=lambda one: one.site)
        for one in replies:
            if one.error:
                name = self.names[one.site] if 0 <= one.site < len(self.names) else "a site"
                raise UserError(f"{name}: {one.error}")
        if [one.site for one in replies] != list(range(len(self.names))):
            found = ", ".join(str(one.site) for one in replies)
            raise UserError(f"sites 0 to {len(self.names) - 1} are needed, each once; those that answer say: {found}")
        return replies

    def _row(self, number: int, images: list[int], trained: list[Reply], measured: list[Reply]) -> dict[str, Any]:
        """Give a round's row: the mean loss by images, and means of sites by their numbers of categories."""
        row: dict[str, Any] = {"round": number, "train/loss": _mean(trained, "loss", images)}
        counts = [one.values["categories"] for one in measured]
        row[OBJECTIVE] = _mean(measured, OBJECTIVE, counts)
        row |= {f"{OBJECTIVE}/{self.names[one.site]}": one.values[OBJECTIVE] for one in measured}
        tested = {f"auroc/{name}": value for one in measured for name, value in one.values.get("auroc", {}).items()}
        return row | ({"auroc": sum(tested.values()) / len(tested)} if tested else {}) | tested

    def _line(self, row: Mapping[str, Any]) -> str:
        shown = [f"{name} {row[name]:.4f}" for name in ("train/loss", OBJECTIVE, "auroc") if row.get(name) is not None]
        each = [(name, row[f"{OBJECTIVE}/{name}"]) for name in self.names]
        sites = ", ".join(f"{name} {value:.3f}" for name, value in each if value is not None)
        return f"round {row['round']}/{self.config.rounds}: {', '.join(shown)} ({sites}), {row['seconds']:g} s"


def _mean(replies: list[Reply], name: str, by: list[int]) -> float | None:
    """Average a value that sites tell, weighted; None where none has it."""
    known = [
        (one.values[name], weight) for one, weight in zip(replies, by, strict=True) if one.values[name] is not None
    ]
    return sum(value * weight for value, weight in known) / sum(weight for _, weight in known) if known else None
