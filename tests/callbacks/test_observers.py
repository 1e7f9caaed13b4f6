"""Callbacks observe: without them, nothing else changes."""

import json

import pytest

OF_THE_RUN = {"commit", "started", "seconds", "command", "checkpoint", "time", "host"}  # not of its numbers


def results(run):
    content = json.loads((run / "metrics.json").read_text())
    return {key: value for key, value in content.items() if key not in OF_THE_RUN}


@pytest.mark.parametrize("words", [["callbacks=null", "logger=null"], ["~callbacks.panels", "~callbacks.wandb_media"]])
def test_deleting_callbacks_changes_no_number(adlight, tiny_run, words):
    run = adlight.train(*adlight.tiny, *words)
    for name in ("predictions.csv", "defects.csv"):
        assert (run / name).read_bytes() == (tiny_run[0] / name).read_bytes()
    assert results(run) == results(tiny_run[0])
    assert not (run / "panels").exists() and (run / "metrics.csv").exists() == ("logger=null" not in words)
