"""Searches in the report: the history of a study that Optuna has stored, and importances."""

import sys

import pytest
from makers import fake_run

from adlight.reports.monitoring import read_searches


@pytest.fixture
def search(tmp_path):
    """A search of 12 trials, in which one setting matters and another does not."""
    optuna = pytest.importorskip("optuna")
    fake_run(tmp_path / "search" / "0")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = f"sqlite:///{tmp_path / 'search' / 'study.db'}"
    study = optuna.create_study(
        study_name="adlight", storage=storage, direction="maximize", sampler=optuna.samplers.RandomSampler(0)
    )
    study.optimize(
        lambda trial: trial.suggest_float("model.mask_ratio", 0, 1) + 1e-3 * trial.suggest_int("model.depth", 1, 4), 12
    )
    return tmp_path / "search"


def test_history_and_importances(search):
    (picture,), table, problems = read_searches([str(search)])
    assert not problems and picture.source.startswith("data:image/svg+xml") and "model.mask_ratio" in picture.note
    importance = dict(zip(table["setting", ""], table["importance", "ours"], strict=True))
    assert importance["model.mask_ratio"] > 0.8 > importance["model.depth"]
    assert read_searches([str(search.parent)])[0][0].title == "search"


def test_the_page_has_a_section(adlight, search, tmp_path):
    outcome = adlight("report", f"runs={search}", f"out={tmp_path / 'report'}")
    assert outcome.code == 0, outcome.err
    assert 'id="searches-section"' in (tmp_path / "report" / "index.html").read_text()


def test_a_damaged_study_is_told(search):
    (search / "study.db").write_text("no database")
    drawings, table, (line,) = read_searches([str(search)])
    assert not drawings and table.empty and str(search) in line


def test_without_optuna_a_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    fake_run(tmp_path / "search" / "0")
    (tmp_path / "search" / "study.db").touch()
    drawings, table, (line,) = read_searches([str(tmp_path)])
    assert not drawings and table.empty and "adlight[optuna]" in line
