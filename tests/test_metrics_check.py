"""The outside's figures on the same maps; ADEval's part runs where it is installed, see experiments/metrics_check."""

import csv
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "experiments" / "metrics_check"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER.is_dir(), reason="experiments/ is not part of an installed package"),
]


@pytest.fixture(scope="module")
def check():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        import check

        yield check
        del sys.modules["check"]


@pytest.fixture(scope="module")
def differences(check):
    """The largest difference of each figure from each other computation, but of ADEval."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "find_spec", lambda name: None)
        rows = [row for name, maps in check.generated().items() for row in check.compare(name, maps)]
    return {(row[2], row[1]): max(abs(r[5]) for r in rows if r[1:3] == row[1:3]) for row in rows}


def test_equal_to_scikit_learn_and_the_definition(differences):
    figures = [f"{part}{name}" for part in ("", "pixel_") for name in ("auroc", "ap", "f1_max")]
    assert {name for other, name in differences if other == "scikit-learn"} == set(figures)
    for name in figures:
        assert differences["scikit-learn", name] <= 1e-9, name
    assert differences["definition", "aupro"] <= 1e-9
    assert differences["definition 4 neighbours", "aupro"] > 0.05  # the sets can tell the two apart


@pytest.mark.skipif(not find_spec("adeval"), reason="ADEval is not installed")
def test_near_to_the_peer_where_nothing_is_tied_or_skewed(check):
    found = dict(check.adeval(check.generated()["normal"]))
    mine = check.ours(check.generated()["normal"])
    fine, mvtec = found["ADEval 100000 bins"], found["MVTec's code all thresholds"]
    assert mine["pixel_auroc"] == pytest.approx(fine["pixel_auroc"], abs=1e-5)
    assert mine["aupro"] == pytest.approx(fine["aupro"], abs=1e-5) == pytest.approx(mvtec["aupro"], abs=1e-4)


def test_the_committed_table_is_of_these_sets(check):
    """Ours and the definition's columns come out again; the peer's are as measured."""
    with (FOLDER / "measured.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == check.COLUMNS and {row["set"] for row in rows} == set(check.generated())
    for name, maps in check.generated().items():
        mine = check.ours(maps)
        for row in rows:
            if row["set"] == name:
                assert float(row["adlight"]) == pytest.approx(mine[row["metric"]], abs=1e-6)


def test_the_maps_of_a_run(check, tiny_run, adlight, monkeypatch):
    monkeypatch.chdir(adlight.folder)
    maps = check.of_run(tiny_run[0])
    with (tiny_run[0] / "predictions.csv").open(newline="") as file:
        scores = [float(row["score"]) for row in csv.DictReader(file)]
    assert np.allclose(maps.image, scores, rtol=1e-6) and maps.pixel.shape == maps.mask.shape == (18, 32, 32)
