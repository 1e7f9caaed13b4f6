"""Damaged checkpoints are refused, or hold what they held; a kill makes no good one unusable."""

import errno
import hashlib
import io
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import check_refused
from torch import nn

from adlight.runs import weights
from adlight.runs.weights import hash_file, load_weights, put_in_place, verify, write_checkpoint
from adlight.types import UserError


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(7, 9), nn.BatchNorm1d(9), nn.Linear(9, 3))


def write(path, seed=0):
    torch.save({"state_dict": net(seed).state_dict(), "epoch": 3}, path)
    return path


def note_of(folder):
    return folder.with_name(f"{folder.name}.sha256")


def same(one, other):
    mine, theirs = one.state_dict(), other.state_dict()
    return all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("hashed", [True, False], ids=["hash", "archive"])
@pytest.mark.parametrize("kind", ["bit", "byte", "block", "cut", "zeros", "longer"])
def test_a_corrupt_checkpoint_is_refused_or_loads_the_same(tmp_path, hashed, kind):
    whole = write(tmp_path / "whole.ckpt").read_bytes()
    path, refused = tmp_path / "x.ckpt", 0
    for seed in range(40):
        (tmp_path / "part").write_bytes(whole)
        put_in_place(tmp_path / "part", path)
        if not hashed:
            note_of(tmp_path).unlink()
        generator = np.random.default_rng(seed)
        at, content = int(generator.integers(len(whole))), bytearray(whole)
        if kind == "bit":
            content[at] ^= 1 << int(generator.integers(8))
        elif kind == "byte":
            content[at] = (content[at] + int(generator.integers(1, 256))) % 256
        elif kind == "block":
            content[at : at + 64] = generator.bytes(len(content[at : at + 64]))
        elif kind == "zeros":
            content[at : at + 64] = bytes(len(content[at : at + 64]))
        else:
            content = content[:at] if kind == "cut" else content + generator.bytes(at + 1)
        path.write_bytes(content)
        module = net(1)
        try:
            load_weights(module, path)
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            assert same(module, net(1)), "a refused checkpoint leaves the module as it was"
            refused += 1
        else:
            assert same(module, net(0)), (kind, seed)
            assert not hashed or bytes(content) == whole
    least = 0 if kind == "longer" else 5  # without a hash what stands behind the archive is not read
    assert refused >= (40 if hashed and kind != "zeros" else least)


def test_a_whole_checkpoint_passes(tmp_path):
    path = write(tmp_path / "x.ckpt")
    verify(path)
    put_in_place(write(tmp_path / "part", 1), path)
    verify(path)
    assert note_of(tmp_path).read_text() == (
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {tmp_path.name}/x.ckpt\n"
    )
    write(path, 2)  # another one in its place
    with pytest.raises(UserError, match=r"x\.ckpt is damaged.*\.sha256"):
        verify(path)
    note_of(tmp_path).write_bytes(b"\xff\xfe nothing")
    with pytest.raises(UserError, match=f"{note_of(tmp_path)} is damaged"):
        verify(path)
    note_of(tmp_path).unlink()
    verify(path)


@pytest.mark.parametrize("step", range(3))
def test_a_kill_at_any_step_makes_no_checkpoint_unusable(tmp_path, monkeypatch, step):
    path, calls = tmp_path / "x.ckpt", []
    put_in_place(write(tmp_path / "part", 0), path)

    class Killed(BaseException):
        pass

    def killed(function):
        def call(*args):
            if len(calls) == step:
                raise Killed
            calls.append(function)
            return function(*args)

        return call

    for seed in (1, 2):  # killed twice, at the same place
        calls.clear()
        part = write(tmp_path / "part", seed)
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(weights, "write_atomically", killed(weights.write_atomically))
            patch.setattr(weights.os, "replace", killed_replace(os.replace, path, killed))
            put_in_place(part, path)
        verify(path)
        load_weights(net(), path)
    put_in_place(write(tmp_path / "part", 3), path)
    verify(path)
    assert len(note_of(tmp_path).read_text().splitlines()) == 1


def killed_replace(replace, path, killed):
    """Counts the renaming to the checkpoint's name as a step, and none of its note."""
    step = killed(replace)
    return lambda source, target: step(source, target) if target == path else replace(source, target)


def test_a_checkpoint_that_a_training_replaces_meanwhile_is_whole(tmp_path, monkeypatch):
    """The training writes its next epoch after the noted hash was read and before the file is."""
    path, follow = tmp_path / "checkpoints" / "best.ckpt", hash_file
    write_checkpoint(path, {"epoch": 1})

    def hash_late(file):
        monkeypatch.setattr(weights, "hash_file", follow)
        write_checkpoint(path, {"epoch": 2})
        return follow(file)

    monkeypatch.setattr(weights, "hash_file", hash_late)
    assert verify(path) == follow(path) and torch.load(path)["epoch"] == 2


def test_each_checkpoint_has_its_own_line(tmp_path):
    for seed, name in enumerate(("best.ckpt", "last.ckpt", "best.ckpt")):
        put_in_place(write(tmp_path / "part", seed), tmp_path / name)
    assert [line.split("/")[1] for line in note_of(tmp_path).read_text().splitlines()] == ["best.ckpt", "last.ckpt"]
    for name in ("best", "last"):
        verify(tmp_path / f"{name}.ckpt")


def test_weights_of_another_type_are_refused(tmp_path):
    torch.save({"state_dict": net().double().state_dict()}, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=r"architecture: 0.bias is torch.float64 .* torch.float32"):
        load_weights(net(), tmp_path / "x.ckpt")


def test_thresholds_that_are_none(tmp_path):
    class Strict(nn.Linear):
        def get_extra_state(self):
            return {"a": 1}

        def set_extra_state(self, state):
            self.a = state["a"]

    layer = Strict(2, 2)
    torch.save({"state_dict": {**layer.state_dict(), "_extra_state": {"b": 1}}}, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=r"x\.ckpt"):
        load_weights(layer, tmp_path / "x.ckpt")


def test_a_run_s_corrupt_checkpoint_stops_everything_with_a_line(adlight, tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run[0], run, ignore=shutil.ignore_patterns("evaluations"))
    image = adlight.folder / "data" / "bottle" / "test" / "good" / "000.png"
    for name in ("best", "last"):
        path = run / "checkpoints" / f"{name}.ckpt"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 16
        path.write_bytes(content)
    for name, *words in (
        ("evaluate", f"run={run}"), ("predict", f"run={run}", f"images={image}", "save=none"),
        ("train", f"resume={run}", "trainer.max_epochs=3"), ("evaluate", f"run={run}", "ckpt=last"),
    ):  # fmt: skip
        check_refused(adlight(name, *words), f"{run}/checkpoints/", f"{run}/checkpoints.sha256")


def test_a_full_disk_is_an_error_of_the_system(tmp_path):
    path = tmp_path / "checkpoints" / "x.ckpt"
    write_checkpoint(path, {"state_dict": net().state_dict()})
    before = path.read_bytes()
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, most))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            write_checkpoint(path, {"state_dict": net(1).state_dict()})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_an_interruption_while_a_checkpoint_is_written_stays_one(tmp_path, monkeypatch):
    class Interrupted(io.FileIO):
        def write(self, content):
            if self.tell() > 500:
                raise KeyboardInterrupt
            return super().write(content)

    monkeypatch.setattr(Path, "open", lambda path, mode: Interrupted(path, mode))
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path / "x.ckpt", {"state_dict": net().state_dict()})
    assert not list(tmp_path.iterdir())
