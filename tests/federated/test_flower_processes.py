"""By processes of Flower, where it is installed: its simulation, stopped and resumed, and its SuperLink."""

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

pytest.importorskip("flwr")
pytestmark = pytest.mark.slow

TWO = ["sites=[[bottle],[screw]]", "rounds=2"]
SILENT = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_LOG_LEVEL": "ERROR", "RAY_USAGE_STATS_ENABLED": "0"}
PATIENT = {"RAY_raylet_start_wait_time_s": "300", "RAY_agent_register_timeout_ms": "300000"}  # on a busy machine


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
    environment = os.environ | SILENT | PATIENT | {"FLWR_HOME": str(tmp_path / "flower")}
    environment |= {"FLWR_DISABLE_UPDATE_CHECK": "1"}
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


def wait_until(is_so):
    for _ in range(4500):
        if is_so():
            return
        time.sleep(0.2)
    raise TimeoutError("it has not happened in fifteen minutes")


def listens(port):
    with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


def test_the_simulation_gives_the_numbers_of_sites_without_flower(adlight, expected):
    outcome = subprocess.run(
        [sys.executable, "-m", "adlight.federate", *commanded(adlight), "hydra.run.dir=runs/simulated"],
        cwd=adlight.folder,
        env=os.environ | SILENT | PATIENT | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert outcome.returncode == 0, outcome.stderr
    assert "round 2/2" in outcome.stdout
    pd.testing.assert_frame_equal(rows(adlight.folder / "runs" / "simulated"), rows(expected.path), check_exact=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_federation_that_is_stopped_is_resumed(adlight, expected, start, tmp_path, number):
    folder = adlight.folder / "runs" / f"stopped-by-{number}"
    words = [*commanded(adlight), f"hydra.run.dir={folder}"]
    process, log = start("adlight", "federate", *words), tmp_path / "0-adlight.log"
    wait_until(lambda: "round 1/2" in log.read_text() or process.poll() is not None)
    process.send_signal(number)
    assert process.wait(300) in (130, -signal.SIGINT)  # the latter if Python was compiling text in that moment
    command = f"adlight federate resume={folder}"
    assert log.read_text().splitlines()[-1] == f"stopped. 1 round is kept. Continue with: {command}"
    assert (
        adlight("federate", *words).err
        == f"error: {folder} already holds a run: use resume={folder} or another hydra.run.dir\n"
    )
    assert start(*command.split()).wait(600) == 0
    assert "round 1/2" not in (tmp_path / "1-adlight.log").read_text()
    found, same = (rows(path).drop(columns="train/loss") for path in (folder, expected.path))
    pd.testing.assert_frame_equal(found, same, check_exact=True)  # a site that had finished round 2 reports no loss


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
    wait_until(lambda: listens(link))
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
