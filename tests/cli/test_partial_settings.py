"""Sweeps over models of which some lack a setting: it applies where it exists, and is named where it does not."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from readers import table

from adlight.cli.arguments import mark_partial_settings
from adlight.types import UserError


def test_what_all_have_is_no_partial_setting():
    words = ["--multirun", "model=gan,knn", "seed=1,2", "dataset.batch_size=4"]
    assert mark_partial_settings(words) == words  # nothing of a swept group
    assert mark_partial_settings(["model=gan", "model.encoder_epochs=5"]) == ["model=gan", "model.encoder_epochs=5"]
    assert mark_partial_settings(["model=pca,knn", "model.scorer.topk=0.5"])[1:] == ["++model.scorer.topk=0.5"]


def test_what_some_lack_is_listed():
    words = ["model=gan,knn", "model.encoder_epochs=5,6", "model.scorer.topk=0.5", "dataset=mnist,synthetic"]
    marked = mark_partial_settings([*words, "dataset.normal=1"])
    assert marked[:4] == ["model=gan,knn", "++model.encoder_epochs=5,6", "++model.scorer.topk=0.5", words[3]]
    assert marked[4:-1] == ["++dataset.normal=1"]
    (override,) = OverridesParser.create().parse_overrides(marked[-1:])
    assert override.key_or_group == "partial_settings"
    assert override.value() == {"model.encoder_epochs": ["knn"], "dataset.normal": ["synthetic"]}


def test_what_none_has_is_an_error_before_the_first_job(adlight):
    with pytest.raises(UserError, match=r"encoder_epoch'.*encoder_epochs"):
        mark_partial_settings(["model=gan,knn", "model.encoder_epoch=5"])
    outcome = adlight("train", "-m", "model=gan,knn", "model.encoder_epoch=5", "hydra.sweep.dir=runs/none_has")
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and "encoder_epochs" in outcome.err
    assert not (adlight.folder / "runs" / "none_has").exists()


def test_a_sweep_of_two_models(adlight):
    words = [word for word in adlight.quick if not word.startswith("model")]
    settings = ["model=knn,pca", "model.network.components=3", "trainer.max_epochs=1", "hydra.sweep.dir=runs/mixed"]
    outcome = adlight("train", "-m", *words, *settings)
    assert outcome.code == 0, outcome.err
    (line,) = [line for line in outcome.out.splitlines() if "left out" in line]
    assert "model.network.components=3" in line and "model=knn" in line
    assert [row["status"] for row in table(adlight.folder / "runs" / "mixed" / "results.csv")] == ["finished"] * 2
    jobs = (adlight.folder / "runs" / "mixed").glob("model*")
    configs = {job.name: (job / ".hydra" / "config.yaml").read_text() for job in jobs}
    assert "components: 3" in configs["model-pca"] and " components:" not in configs["model-knn"]
    again = adlight("train", "-m", *words, *settings, "resume_sweep=true")
    assert again.code == 0 and again.out.count("skipped") == 2, again.err
