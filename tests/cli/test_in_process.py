"""Values of Python arrive in the config as they are."""

import random
from pathlib import Path

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from adlight.cli.in_process import _keep_globals, add_settings
from adlight.cli.words import to_override, use_config_dir
from adlight.types import UserError

TEXTS = ["parts", "my parts", "a,b", "[x]", "{a: b}", "it's", 'say "so"', "back\\slash", "end\\", "1", "1e3", ".5"]
TEXTS += ["null", "True", "nan", "", "ä ö", "../up", "/abs/o.lute", "a=b", "~x", "-x", "quantile:0.9", "x(1)", "#no"]
TEXTS += ["1_000", "_1"]
VALUES = [0, -3, 1e-3, 2.5, True, False, None, [1, "a b", None], (224, 320), {"a": "1", "b": [0.5]}]


@pytest.mark.parametrize("value", [*TEXTS, *VALUES])
def test_values_arrive_as_they_are(value):
    (read,) = OverridesParser.create().parse_overrides([to_override("dataset.root", value)])
    assert read.key_or_group == "dataset.root" and not read.is_sweep_override()
    assert read.value() == (list(value) if isinstance(value, tuple) else value)
    assert type(read.value()) is type(value) or isinstance(value, tuple | str)


def test_paths_and_numpy_numbers_are_plain():
    assert to_override("x", Path("a/b")) == "x=a/b" and to_override("x", np.float32(0.5)) == "x=0.5"
    with pytest.raises(UserError, match=r"x.*ndarray"):
        to_override("x", np.zeros(3))


def test_short_names_are_completed():
    words = add_settings(["model=mae_small"], {"root": "x", "max_epochs": 3, "mask_ratio": 0.5, "seed": 1})
    assert words[1:] == ["dataset.root=x", "trainer.max_epochs=3", "model.mask_ratio=0.5", "seed=1"]
    assert add_settings(["dataset=folder"], {"normal_dir": "x"})[1] == "dataset.normal_dir=x"  # has no value yet
    assert add_settings([], {"model/depth": "e2d2", "model": "mae"}) == ["model/depth=e2d2", "model=mae"]
    with pytest.raises(UserError, match="root"):
        add_settings([], {"roott": "x"})
    with pytest.raises(UserError, match=r"model\.optimizer\.lr"):
        add_settings(["model=mae_small"], {"lr": 1e-3})


def test_a_config_folder_becomes_an_override(tmp_path):
    for words in (["--config-dir", str(tmp_path)], [f"--config-dir={tmp_path}"], ["-cd", str(tmp_path)]):
        (word, model) = use_config_dir([*words, "model=mine"])
        (read,) = OverridesParser.create().parse_overrides([word])
        assert read.key_or_group == "hydra.searchpath" and read.value() == [str(tmp_path)] and model == "model=mine"
    with pytest.raises(UserError, match="nowhere"):
        use_config_dir(["--config-dir", "nowhere"])


def test_what_an_import_draws_is_not_seen():
    """The first import of Lightning draws from Python's generator."""
    before = random.getstate()
    with _keep_globals():
        random.random()
    assert random.getstate() == before
