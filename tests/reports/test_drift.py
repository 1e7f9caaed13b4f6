"""Drift: Holm's correction, days that are told apart from calibration, and the report over a run in use."""

import csv

import numpy as np
import pandas as pd
import pytest
from makers import fake_run
from PIL import Image

from adlight.reports import drift
from adlight.runs.predictions import prediction_tables
from adlight.runs.subfolders import GroupFolder
from adlight.runs.tables import read_calibration
from adlight.types import UserError


def predict(run, day, scores, threshold=2.0, source="bottle", time="101500-000001"):
    folder = run / "predictions" / f"{day}-{time}"
    folder.mkdir(parents=True)
    with (folder / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "score", "threshold", "anomalous", "threshold_source"))
        writer.writerows(
            (f"{i}.png", score, threshold, int(score > threshold), source) for i, score in enumerate(scores)
        )


@pytest.fixture
def used(tmp_path):
    """A run with predictions of four days; the scores of the last one are shifted."""
    run, rng = fake_run(tmp_path / "run"), np.random.default_rng(0)
    with (run / "calibration.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("category", "score"), *(("bottle", one) for one in rng.normal(1, 0.5, 60))])
    for i in range(3):
        predict(run, f"2026110{i + 1}", rng.normal(1, 0.5, 40))
    predict(run, "20261104", rng.normal(1.8, 0.5, 40))
    return run


def test_holm_s_correction():
    p = np.array([0.01, np.nan, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(drift.holm(p), [0.03, np.nan, 0.06, 0.06, 0.02])
    assert drift.holm(np.array([np.nan])).shape == (1,) and drift.holm(np.array([0.9, 0.8])).max() == 1


def test_the_day_that_drifts_is_found(used):
    history = drift.read_history(used)
    tested = drift.compare_days(history, read_calibration(used))
    assert tested["drifts"].tolist() == [False, False, False, True] and tested["images"].tolist() == [40] * 4
    last = history[history["day"] == history["day"].max()]
    assert tested["above"].iloc[3] == pytest.approx((last["score"] > 2).mean())
    (line,) = drift.describe_drift("run", tested)
    assert "2026-11-04" in line and "bottle" in line


def test_nothing_drifts_where_nothing_does():
    """Of 200 runs without drift, a hundredth has a line, as promised."""
    rng, alarms = np.random.default_rng(1), 0
    for _ in range(200):
        scores = rng.normal(size=(6, 25))
        history = pd.DataFrame({"day": np.repeat(np.arange(5), 25), "category": "a", "score": scores[1:].ravel()})
        tested = drift.compare_days(history.assign(above=False), {"a": scores[0]}, alpha=0.05)
        alarms += tested["drifts"].any()
    assert alarms / 200 < 0.1


@pytest.mark.parametrize("category", ["01", "NA", "1e3"])
def test_a_category_may_look_like_a_number(tmp_path, category):
    predict(tmp_path, "20261101", [1.5, 2.5], source=category)
    (found,) = drift.compare_days(drift.read_history(tmp_path), {category: [1.0, 2.0], "b": [9.0] * 9}).itertuples()
    assert (found.category, found.images, found.ks) == (category, 2, 0.5)


def test_thresholds_of_all_are_compared_with_all():
    scores = {"a": [1.0, 2.0], "b": [3.0]}
    assert (
        drift.select_calibration("a", scores).tolist()
        == drift.select_calibration("labels of a", scores).tolist()
        == [1, 2]
    )
    assert drift.select_calibration("all categories", scores).tolist() == [1, 2, 3] and not len(
        drift.select_calibration("a", {})
    )


def test_days_come_from_folders_or_their_age(used):
    predict(used, "shift", [1.0], time="late")
    days = [str(day) for day, _ in prediction_tables(used)]
    assert days[:4] == [f"2026-11-0{i}" for i in range(1, 5)] and len(days) == 5


def test_a_damaged_table_is_named(used):
    (used / "predictions" / "20261101-101500-000001" / "predictions.csv").write_text("path,score\na,b\n")
    with pytest.raises(UserError, match="20261101"):
        drift.read_history(used)


def test_the_report_shows_drift_and_groups(adlight, used, tmp_path):
    rows = [(f"{i}.png", "bottle", "hole" if i < 4 else "scratch", "0,0,4,4", i % 2) for i in range(6)]
    sheets = {i: Image.new("RGB", (64, 32)) for i in range(2)}
    summary = {"method": "kmeans", "groups": 2, "regions": 6, "silhouette": 0.25, "adjusted_rand": 0.5, "purity": 0.75}
    grouped = GroupFolder(used / "groups" / "20261105-000000-000000")
    grouped.path.mkdir(parents=True)
    grouped.write(rows, sheets, summary)
    outcome = adlight("report", f"runs={used / 'predictions'}", f"out={tmp_path / 'report'}")
    assert outcome.code == 0, outcome.err
    assert "drift: run, 2026-11-04" in outcome.out and "2026-11-03" not in outcome.out
    page = (tmp_path / "report" / "index.html").read_text()
    assert 'id="drift-section"' in page and "2026-11-04: 40 scores of bottle" in page
    assert 'id="groups-section"' in page and "groups/20261105-000000-000000/group-1.png" in page
    assert "hole 2, scratch 1" in page


def test_what_is_damaged_is_told(adlight, used, tmp_path):
    grouped = used / "groups" / "20261105-000000-000000"
    grouped.mkdir(parents=True)
    for name, text in (("groups.json", "{}"), ("groups.csv", "path,group\na,x\n")):
        (grouped / name).write_text(text)
    broken = used / "calibration.csv"
    for text, named in ((broken.read_text(), "groups"), ("category,score\na,b\n", "calibration.csv")):
        broken.write_text(text)
        outcome = adlight("report", f"runs={used}", f"out={tmp_path / 'report'}")
        assert outcome.code == 0 and "damaged" in outcome.out and named in outcome.out


def test_a_run_keeps_what_it_was_calibrated_on(tiny_run):
    scores = read_calibration(tiny_run[0])
    assert {name: len(of) for name, of in scores.items()} == {"bottle": 1, "screw": 1}
