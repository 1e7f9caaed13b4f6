"""The command: its settings, its addresses, and how it ends."""

import signal
import socket
import time

import httpx
import pytest
from processes import Command, check_refused

from adlight.serve import bind
from adlight.serving.middleware import is_local, make_token


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "adlight serve run="),
        (["run=nowhere"], "nowhere is not a run folder"),
        (["run=runs/tiyn"], "did you mean runs/tiny?"),
        (["run=nowhere.onnx"], "nowhere.onnx"),
        (["run={run}", "port=70000"], "port"),
        (["run={run}", "queue=0"], "queue"),
        (["run={run}", "max_megapixels=1e6"], "max_megapixels"),
        (["run={run}", "token=short"], "token"),
        (["run={run}", "host=192.0.2.1"], "host=192.0.2.1"),
        (["run={run}", "category=scrw", "port=0"], "did you mean screw"),
        (["run={run}", "threshold=high", "port=0"], "high"),
        (["run={run}", "prot=1"], "port"),
        (["run={run}", "max_labels=-1"], "max_labels"),
    ],
)
def test_bad_input_is_one_line(adlight, tiny_run, words, said):
    check_refused(adlight("serve", *(word.format(run=tiny_run[0]) for word in words)), said)


def test_a_port_in_use_is_said_before_anything_is_loaded(adlight, tiny_run):
    with socket.create_server(("127.0.0.1", 0)) as other:
        outcome = adlight("serve", f"run={tiny_run[0]}", f"port={other.getsockname()[1]}")
    assert outcome.code == 2 and "port=0" in outcome.err and outcome.err.count("\n") == 1


def test_a_missing_package_names_the_extra(adlight, tiny_run, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "uvicorn", None)
    outcome = adlight("serve", f"run={tiny_run[0]}", "port=0")
    assert outcome.code == 2 and "uvicorn" in outcome.err and "adlight[serve]" in outcome.err


def test_addresses():
    local = ("127.0.0.1", "127.8.8.8", "localhost", "::1", "[::1]")
    assert all(map(is_local, local)) and not any(map(is_local, ("0.0.0.0", "::", "10.0.0.1", "localhost.evil.example")))
    with bind("127.0.0.1", 0) as listener:
        assert listener.getsockname()[1] > 0 and listener.proto == socket.IPPROTO_TCP
    assert len({make_token() for _ in range(9)}) == 9 and len(make_token()) >= 32


def wait_for(found, process):
    end = time.monotonic() + 300
    while not (value := found()):
        assert process.is_alive() and time.monotonic() < end
        time.sleep(0.05)
    return value


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_one_line(adlight, tiny_run, number):
    elsewhere = ["host=0.0.0.0"] if number == signal.SIGTERM else []
    command = Command(adlight.folder, "serve", f"run={tiny_run[0]}", "port=0", "device=cpu", *elsewhere)
    printed = command.printed / "out"
    try:
        wait_for(lambda: printed.exists() and "Ctrl-C" in printed.read_text(), command.process)
        (page,) = [line.split()[1] for line in printed.read_text().splitlines() if line.startswith("page: ")]
        place, _, token = page.replace("0.0.0.0", "127.0.0.1").partition("#token=")
        answer = httpx.get(f"{place}detector", timeout=60)
        if elsewhere:
            assert answer.status_code == 401
            answer = httpx.get(f"{place}detector", headers={"authorization": f"Bearer {token}"}, timeout=60)
        assert answer.json()["name"] == "tiny" and bool(token) == bool(elsewhere)
        command.stop(number)
        code, _, err = command.wait()
        assert code == 130 and err == "stopped.\n"
    finally:
        command.process.kill()
