"""By Flower, where it is installed: its messages, its app and its simulation."""

import os
import signal
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch

os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_LOG_LEVEL": "ERROR", "RAY_USAGE_STATS_ENABLED": "0"}
pytest.importorskip("flwr")

from adlight.federated import flower
from adlight.federated.rounds import Request
from adlight.types import UserError

TWO = ["sites=[[bottle],[screw]]", "rounds=2"]


class Told:
    """Stands for Flower's context."""

    def __init__(self, **node):
        self.node_config = node


def test_weights_and_numbers_come_back_as_they_were_sent():
    weights = {"w": torch.randn(3, 4), "scalar": torch.tensor(0.5)}
    values, found = flower._unpack(flower._pack("train", {"round": 3, "names": ["a"]}, weights))
    assert values == {"kind": "train", "settings": {"round": 3, "names": ["a"]}}
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in weights.items())
    assert flower._unpack(flower._pack("", {"site": 0}, {})) == ({"site": 0}, {})


def test_a_node_is_told_which_site_it_is_and_may_be_told_where(tmp_path):
    request = Request("begin", {"folder": str(tmp_path), "names": ["bottle", "screw"]}, {})
    assert flower._place(Told(**{"partition-id": 1}), request).folder == tmp_path / "sites" / "screw"
    own = flower._place(Told(**{"partition-id": 0, "folder": str(tmp_path / "x"), "root": "there"}), request)
    assert own == (0, tmp_path / "x", "there", None)
    with pytest.raises(UserError, match="partition-id"):
        flower._place(Told(), request)


def test_flower_takes_the_app(federation, tmp_path):
    from flwr.cli.config_utils import load_and_validate

    folder = federation("app", ["bottle", "screw"], *TWO).folder
    flower.write_app(tmp_path / "app", folder)
    config, _ = load_and_validate(tmp_path / "app" / "pyproject.toml")
    assert config["tool"]["flwr"]["app"]["config"]["folder"] == str(folder.path.absolute())


class Nodes:
    """Stands for Flower's grid of two nodes, which answer at once, and each in its turn as `answers` says."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def get_node_ids(self):
        return [7, 8]

    def push_messages(self, messages):
        return range(len(messages))

    def pull_messages(self, waiting):
        answers, self.answers = self.answers[:2], self.answers[2:]
        for number, error in enumerate(answers):
            metadata = SimpleNamespace(reply_to_message_id=number, src_node_id=8 - number)
            content = flower._pack("", {"site": number, "values": {}, "error": ""}, {})
            reason = SimpleNamespace(reason=error)
            yield SimpleNamespace(metadata=metadata, has_error=lambda e=error: bool(e), error=reason, content=content)


def test_a_site_whose_process_has_ended_is_named(monkeypatch):
    monkeypatch.setattr(flower, "Message", lambda *_, **__: None)  # Flower's only exists within a run
    ask = flower.GridExchange(Nodes("", "", "", "its worker\nwas killed"), ["bottle", "screw"])
    assert [reply.site for reply in ask(Request("begin", {}, {}))] == [0, 1]
    with pytest.raises(UserError, match=r"^screw has disconnected.*: its worker was killed$"):
        ask(Request("train", {}, {}))


def test_ctrl_c_is_not_lost_in_flower_or_ray_before_the_sites_are_ready(federation, monkeypatch):
    def lose_interruption(server, *_, **__):
        with suppress(KeyboardInterrupt):  # as Python does in callbacks, and Flower's wait for its threads
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
        with suppress(SystemExit):
            server(SimpleNamespace(get_node_ids=list), None)  # no site is ready

    monkeypatch.setattr("flwr.simulation.run_simulation", lose_interruption)
    with pytest.raises(KeyboardInterrupt):
        flower.simulate(federation("lost", ["bottle", "screw"], *TWO).folder, 1, 0)
