"""By Flower, where it is installed: its messages, its app and its simulation."""

import os
import subprocess
import sys

import pandas as pd
import pytest
import torch

os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_LOG_LEVEL": "ERROR", "RAY_USAGE_STATS_ENABLED": "0"}
pytest.importorskip("flwr")

from adlight.federated import flower
from adlight.federated.rounds import Request
from adlight.types import UserError

TWO = ["sites=[[bottle],[screw]]", "rounds=1"]


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


@pytest.fixture(scope="module")
def expected(federation):
    """The same federation without Flower."""
    return federation("plain", ["bottle", "screw"], *TWO).run().folder


def commanded(adlight):
    return [*(word for word in adlight.quick if not word.startswith("trainer.max_epochs")), *TWO]


def rows(folder):
    return pd.read_csv(folder / "rounds.csv").drop(columns="seconds")


@pytest.mark.slow
def test_the_simulation_gives_the_numbers_of_sites_without_flower(adlight, expected):
    outcome = subprocess.run(
        [sys.executable, "-m", "adlight.federate", *commanded(adlight), "hydra.run.dir=runs/simulated"],
        cwd=adlight.folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert outcome.returncode == 0, outcome.stderr
    assert "round 1/1" in outcome.stdout
    pd.testing.assert_frame_equal(rows(adlight.folder / "runs" / "simulated"), rows(expected.path))
