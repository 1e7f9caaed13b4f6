"""The command: what it refuses before anything is computed, and how it is stopped."""

import signal
import sys
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from adlight.runs.federation import site_names
from adlight.types import UserError

TWO = ["sites=[[bottle],[screw]]"]


@pytest.mark.parametrize(
    "sites, names",
    [
        ([["bottle"], ["screw"]], ["bottle", "screw"]),
        (["bottle", ["screw", "cable"]], ["bottle", "screw-cable"]),
        ([{"root": "a"}, {"root": "b"}], ["site-0", "site-1"]),
        ([["../up"]], ["site-0"]),
    ],
)
def test_sites_are_named_by_their_categories(sites, names):
    assert site_names(OmegaConf.create({"sites": sites})) == names


@pytest.mark.parametrize("sites", [[], "bottle", [[]], [[1]], [["bottle"], ["bottle"]], [{}]])
def test_sites_that_are_none_or_share_a_category_are_refused(sites):
    with pytest.raises(UserError, match="sites"):
        site_names(OmegaConf.create({"sites": sites}))


@pytest.mark.parametrize(
    "words, named",
    [
        ([], "sites="),
        ([*TWO, "-m"], "-m"),
        ([*TWO, "sweep=seeds"], "sweep"),
        ([*TWO, "rounds=0"], "rounds"),
        ([*TWO, "epochs_per_round=1.5"], "epochs_per_round"),
        ([*TWO, "trainer.devices=2"], "trainer.devices"),
        ([*TWO, "cpus=5000"], "cpus=5000"),
        ([*TWO, "model.mask_ratio=2"], "model.mask_ratio"),
        (["sites=[[bottle],[bottle]]"], "bottle"),
        (["resume=runs/none"], "runs/none"),
    ],
)
def test_what_cannot_be_federated_is_one_line(adlight, words, named):
    outcome = adlight("federate", *adlight.quick, *words)
    assert outcome.code == 2 and named in outcome.err.splitlines()[-1] and len(outcome.err.splitlines()) == 1


def test_what_is_fitted_without_epochs_is_refused_with_what_can_be_federated(adlight):
    outcome = adlight("federate", *TWO, "model=knn", "dataset=mvtec", "dataset.root=data", "trainer=cpu")
    assert outcome.code == 2 and "feature_mae" in outcome.err


def test_without_flower_the_extra_is_named(adlight, monkeypatch):
    monkeypatch.setitem(sys.modules, "flwr.app", None)
    monkeypatch.delitem(sys.modules, "adlight.federated.flower", raising=False)
    monkeypatch.delattr("adlight.federated.flower", raising=False)  # where Flower is installed
    outcome = adlight("federate", *adlight.quick, *TWO)
    assert outcome.code == 2 and "adlight[federated]" in outcome.err


def test_sigterm_is_an_interruption_as_the_handler_of_ray_reports_it(adlight, monkeypatch):
    def simulate(*_):
        raise SystemExit(signal.SIGTERM)

    stub = SimpleNamespace(simulate=simulate)  # stands for Flower
    monkeypatch.setitem(sys.modules, "adlight.federated.flower", stub)
    monkeypatch.setattr("adlight.federated.flower", stub, raising=False)
    outcome = adlight("federate", *adlight.quick, *TWO, "hydra.run.dir=runs/terminated-federation")
    assert outcome.code == 130 and outcome.err.startswith("stopped.") and "runs/terminated-federation" in outcome.err
