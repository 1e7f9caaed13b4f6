"""The server's part of a federation: rounds of training and averaging, whatever `Exchange` carries the messages."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from adlight.federated.weights import Weights, average
from adlight.runs.federation import Averaged, FederationFolder, site_names
from adlight.runs.tables import OBJECTIVE
from adlight.types import UserError

Kind = Literal["begin", "train", "measure", "finish"]


class Request(NamedTuple):
    """A request of the server to every site.

    By kind, a site checks its images and begins a run (`begin`), trains for a round (`train`), validates averaged
    weights (`measure`), or calibrates and tests them (`finish`).
    """

    kind: Kind
    settings: dict[str, Any]  # JSON values
    weights: Weights  # averaged weights; empty for `begin`


class Place(NamedTuple):
    """The settings of a site that the server does not decide."""

    number: int
    folder: Path  # of the site's run
    root: str | None = None  # folder of the images; None for the federation's `dataset.root`
    accelerator: str | None = None  # None for the federation's `trainer.accelerator`


class Reply(NamedTuple):
    """A site's reply to a request."""

    site: int  # number of the site
    values: dict[str, Any]  # JSON values: numbers, never images
    weights: Weights  # trained weights; empty except for `begin` and `train`
    error: str = ""  # why the site failed, in one line; empty if it did not


Exchange = Callable[[Request], list[Reply]]  # sends a request to all sites, and waits for all replies


class Server:
    """Runs a federation, whose folder exists, from its current round to its end."""

    def __init__(self, folder: FederationFolder, exchange: Exchange) -> None:
        self.folder, self.exchange = folder, exchange
        self.config, self.choices = folder.config(), folder.choices()
        self.note, self.names = folder.note(), site_names(self.config)

    def run(self) -> None:
        """Train and average round by round; at the end, all sites calibrate and test the averaged weights.

        Raises:
            UserError: a site has failed, or the sites do not fit together; completed rounds are kept.
        """
        begun = self._begin()
        images, known = [reply.values["images"] for reply in begun], self.folder.averaged()
        averaged = known or Averaged(begun[0].weights, [])
        print(f"sites: {', '.join(f'{name} ({n} images)' for name, n in zip(self.names, images, strict=True))}")
        for number in range(len(averaged.rows) + 1, self.config.rounds + 1):
            started = time.monotonic()
            trained = self._ask("train", averaged.weights, round=number)
            weights = average([reply.weights for reply in trained], images)
            tests = bool(self.config.test_rounds) and number % self.config.test_rounds == 0
            measured = self._ask("measure", weights, round=number, test=tests)
            row = self._row(number, images, trained, measured)
            averaged = Averaged(weights, [*averaged.rows, row | {"seconds": round(time.monotonic() - started, 1)}])
            self.folder.keep(averaged)
            print(self._line(averaged.rows[-1]), flush=True)
        chosen = self.folder.averaged(self.config.ckpt) or averaged
        number = len(chosen.rows)
        print(f"averaged weights of round {number} are calibrated and tested at each site", flush=True)
        for reply in self._ask("finish", chosen.weights, round=number):
            numbers = ", ".join(f"{key} {value:.4f}" for key, value in reply.values["metrics"].items())
            print(f"{self.names[reply.site]}: {numbers}; run: {reply.values['folder']}", flush=True)

    def _begin(self) -> list[Reply]:
        begun = self._ask("begin", {}, config=self.folder.config_text(), choices=self.choices)
        frames = {self.names[reply.site]: reply.values["frame"] for reply in begun}
        if len(set(frames.values())) > 1:
            each = "; ".join(f"{name}: {frame}" for name, frame in frames.items())
            raise UserError(f"the sites' images have different shapes: set the same frame for all of them, {each}")
        return begun

    def _ask(self, kind: Kind, weights: Weights, **settings: Any) -> list[Reply]:
        """Send a request to all sites. -> the replies, in the order of the sites."""
        common = {"federation": self.note["id"], "command": self.note["command"]}
        common |= {"epochs": self.config.epochs_per_round}
        common |= {"folder": str(self.folder.path.absolute()), "names": self.names}  # for sites on this machine
        replies = sorted(self.exchange(Request(kind, common | settings, weights)), key=lambda reply: reply.site)
        for reply in replies:
            if reply.error:
                name = self.names[reply.site] if 0 <= reply.site < len(self.names) else "a site"
                raise UserError(f"{name}: {reply.error}")
        numbers = [reply.site for reply in replies]
        if numbers != list(range(len(self.names))):
            found = ", ".join(map(str, numbers))
            raise UserError(f"sites 0 to {len(self.names) - 1} are needed, each once; the answers came from: {found}")
        return replies

    def _row(self, number: int, images: list[int], trained: list[Reply], measured: list[Reply]) -> dict[str, Any]:
        """Make a round's row: the loss averaged by images, and metrics averaged by numbers of categories."""
        row: dict[str, Any] = {"round": number, "train/loss": _mean(trained, "loss", images)}
        row[OBJECTIVE] = _mean(measured, OBJECTIVE, [reply.values["categories"] for reply in measured])
        row |= {f"{OBJECTIVE}/{self.names[reply.site]}": reply.values[OBJECTIVE] for reply in measured}
        by_category = (pair for reply in measured for pair in reply.values.get("auroc", {}).items())
        tested = {f"auroc/{name}": value for name, value in by_category}
        return row | ({"auroc": sum(tested.values()) / len(tested)} if tested else {}) | tested

    def _line(self, row: Mapping[str, Any]) -> str:
        shown = [f"{name} {row[name]:.4f}" for name in ("train/loss", OBJECTIVE, "auroc") if row.get(name) is not None]
        each = [(name, row[f"{OBJECTIVE}/{name}"]) for name in self.names]
        sites = ", ".join(f"{name} {value:.3f}" for name, value in each if value is not None)
        return f"round {row['round']}/{self.config.rounds}: {', '.join(shown)} ({sites}), {row['seconds']:g} s"


def _mean(replies: list[Reply], name: str, by: list[int]) -> float | None:
    """Average a value over the sites that have it, with the weights `by`; None if no site has it."""
    values = zip((reply.values[name] for reply in replies), by, strict=True)
    known = [(value, weight) for value, weight in values if value is not None]
    return sum(value * weight for value, weight in known) / sum(weight for _, weight in known) if known else None
