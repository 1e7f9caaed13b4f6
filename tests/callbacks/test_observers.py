"""Callbacks observe: without them, nothing else changes."""

import json

import pytest
from omegaconf import OmegaConf

from adlight.runs.config import CONF

OF_THE_RUN = {"commit", "started", "seconds", "command", "checkpoint", "time", "run"}  # not of its numbers


def results(run):
    content = json.loads((run / "metrics.json").read_text())
    return {key: value for key, value in content.items() if key not in OF_THE_RUN}


def assert_same_numbers(one, other):
    assert results(one) == results(other)
    for name in ("predictions.csv", "defects.csv"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


OBSERVERS = OmegaConf.load(CONF / "callbacks" / "default.yaml")


@pytest.mark.parametrize("words", [["callbacks=null", "logger=null"], *([f"~callbacks.{name}"] for name in OBSERVERS)])
def test_deleting_callbacks_changes_no_number(adlight, tiny_run, words):
    run = adlight.train(*adlight.tiny, *words)
    assert_same_numbers(run, tiny_run[0])
    assert (run / "panels").exists() == (words[0] not in ("callbacks=null", "~callbacks.panels"))
    assert (run / "metrics.csv").exists() == ("logger=null" not in words)


def test_nor_in_an_evaluation(adlight, tiny_run):
    bare = adlight.evaluate(tiny_run[0], "callbacks=null", "logger=null", "model.scorer.reduce=max")
    assert_same_numbers(bare, adlight.evaluate(tiny_run[0], "model.scorer.reduce=max"))
    assert not (bare / "panels").exists()
