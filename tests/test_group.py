"""Groups of regions: known clusters, agreement with true types, and the whole command."""

import json

import numpy as np
import pytest
from makers import write_image
from processes import check_refused
from readers import table
from sklearn.metrics import adjusted_rand_score

from adlight.learning.grouping import group_features, measure_agreement
from adlight.runs.subfolders import GroupFolder
from adlight.types import UserError


def directions(sizes, width=12, noise=0.05):
    """Features around as many directions as there are sizes, each of another length."""
    rng = np.random.default_rng(0)
    true = np.repeat(np.arange(len(sizes)), sizes)
    length = rng.uniform(1, 9, (len(true), 1))
    return (np.eye(width)[true] + noise * rng.normal(size=(len(true), width))) * length, true


@pytest.mark.parametrize("method", ["kmeans", "hdbscan"])
def test_directions_are_found_whatever_their_lengths(method):
    features, true = directions([6, 14, 9])
    found = group_features(features, method)
    assert adjusted_rand_score(true, found.group) == 1 and found.silhouette > 0.7
    assert np.bincount(found.group).tolist() == [14, 9, 6]  # the largest first


def test_groups_may_be_given_and_need_regions():
    features, _ = directions([6, 14, 9])
    assert set(group_features(features, groups=5).group) == set(range(5))
    for few, groups in ((features[:2], None), (features[:4], 5)):
        with pytest.raises(UserError, match="too few"):
            group_features(few, groups=groups)


def test_noise_stands_apart():
    features, _ = directions([10, 10])
    lone = np.zeros((1, 12))
    lone[0, 11] = 3
    found = group_features(np.concatenate([features, lone]), "hdbscan")
    assert found.group[-1] == -1 and set(found.group[:-1]) == {0, 1}


def test_agreement():
    group, defect = np.array([0, 0, 0, 1, 1, -1]), ["a", "a", "b", "b", "b", "c"]
    assert measure_agreement(group, defect)["purity"] == pytest.approx(5 / 6)
    assert measure_agreement(group, defect)["adjusted_rand"] == pytest.approx(adjusted_rand_score(defect, group))


def test_the_command_groups_a_run_s_test_images(adlight, tiny_run, tmp_path):
    words = [f"run={tiny_run[0]}", "groups=3", "device=cpu", f"hydra.run.dir={tmp_path / 'groups'}"]
    outcome = adlight("group", *words)
    assert outcome.code == 0, outcome.err
    rows, summary = GroupFolder(tmp_path / "groups").read()
    tested = {row["path"]: row for row in table(tiny_run[0] / "predictions.csv")}
    assert {row["path"] for row in rows} >= {path for path, row in tested.items() if row["label"] == "1"}
    assert all(row["defect"] == tested[row["path"]]["defect"] for row in rows)
    assert summary["groups"] == 3 and summary["regions"] == len(rows) and 0 < summary["purity"] <= 1
    assert all(GroupFolder(tmp_path / "groups").sheet(i).stat().st_size > 500 for i in range(3))
    assert json.loads((tmp_path / "groups" / "groups.json").read_text()) == summary
    assert f"{summary['purity']:.3f}" in outcome.out


def test_new_images_and_mistakes(adlight, tiny_run, tmp_path):
    for i in range(4):
        write_image(tmp_path / "bottle" / f"{i}.png", i)
    run = f"run={tiny_run[0]}"
    outcome = adlight("group", run, f"images={tmp_path}", "method=hdbscan", f"hydra.run.dir={tmp_path / 'out'}")
    assert outcome.code == 0 or ("too few" in outcome.err or "anomalous" in outcome.err)
    for words, named in (
        ([], "run="),
        ([run, "images=nowhere"], "nowhere"),
        ([run, "method=dbscan"], "method"),
        ([run, "groups=1"], "groups"),
    ):
        check_refused(adlight("group", *words, f"hydra.run.dir={tmp_path / 'bad'}"), named)
