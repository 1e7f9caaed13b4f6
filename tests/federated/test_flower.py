"""By Flower, where it is installed: its messages, its app and its simulation."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pandas as pd
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


@pytest.fixture(scope="module")
def expected(federation):
    """The same federation without Flower."""
    return federation("plain", ["bottle", "screw"], *TWO).run().folder


def commanded(adlight):
    return [*(word for word in adlight.quick if not word.startswith("trainer.max_epochs")), *TWO]


def rows(folder):
    return pd.read_csv(folder / "rounds.csv").drop(columns="seconds")


@pytest.fixture
def start(adlight, tmp_path):
    """Starts programs of this environment: `start("flower-superlink", words ...)`. At the end all are killed, whatever
    they have started too."""
    environment = os.environ | {"FLWR_HOME": str(tmp_path / "flower"), "FLWR_DISABLE_UPDATE_CHECK": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    programs = Path(sys.executable).parent
    environment["PATH"] = os.pathsep.join([str(programs), os.environ["PATH"]])  # Flower starts programs by their names
    started = []

    def start(name, *words):
        with (tmp_path / f"{len(started)}-{name}.log").open("w") as log:
            command = [programs / name, *map(str, words)]
            started.append(subprocess.Popen(command, cwd=adlight.folder, env=environment, stdout=log, stderr=log))
        return started[-1]

    yield start
    for pid in descendants({process.pid for process in started if process.poll() is None}):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for process in started:
        process.wait(60)


def descendants(pids):
    """Add the processes that some have started, at any depth."""
    lines = subprocess.check_output(["ps", "-A", "-o", "pid=,ppid="], text=True).splitlines()
    parents = dict(tuple(map(int, line.split())) for line in lines)
    while more := {pid for pid, parent in parents.items() if parent in pids} - pids:
        pids = pids | more
    return pids


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_for(port):
    for _ in range(600):
        with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.2)
    raise TimeoutError(f"nobody listens on port {port}")


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
    assert "round 2/2" in outcome.stdout
    pd.testing.assert_frame_equal(rows(adlight.folder / "runs" / "simulated"), rows(expected.path), check_exact=True)


@pytest.mark.slow
def test_a_superlink_and_two_supernodes_give_the_numbers_of_sites_without_flower(adlight, expected, start, tmp_path):
    link, *nodes = free_ports(3)
    (tmp_path / "flower").mkdir()
    address = f'[superlink.here]\naddress = "127.0.0.1:{link}"\ninsecure = true\n'
    (tmp_path / "flower" / "config.toml").write_text(address)
    app, folder = tmp_path / "app", adlight.folder / "runs" / "link"
    assert adlight("federate", *commanded(adlight), f"hydra.run.dir={folder}", f"app={app}").code == 0
    start("flower-superlink", "--insecure", "--port", link, "--disable-runtime-dependency-installation")
    for number, port in enumerate(nodes):
        site = f'partition-id={number} folder="{tmp_path / str(number)}" root="{adlight.folder / "data"}"'
        where = ["--superlink", f"127.0.0.1:{link}", "--port", port]
        start("flower-supernode", "--insecure", *where, "--node-config", site)
    wait_for(link)
    with suppress(subprocess.TimeoutExpired):
        start("flwr", "run", app, "here", "--stream").wait(600)
    logs = "\n".join(path.read_text()[-3000:] for path in sorted(tmp_path.glob("*.log")))
    assert (folder / "rounds.csv").exists(), logs
    pd.testing.assert_frame_equal(rows(folder), rows(expected.path), check_exact=True)
    for number, name in enumerate(["bottle", "screw"]):
        found, same = (
            json.loads((path / "metrics.json").read_text()) for path in (tmp_path / str(number), expected.site(name))
        )
        assert found["auroc"] == same["auroc"] and found["thresholds"] == same["thresholds"], logs
