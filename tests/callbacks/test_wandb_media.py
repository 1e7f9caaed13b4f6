"""What a run sends to W&B: offline runs through the command line, read back from wandb's own files."""

import csv
import json
import shutil
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image
from sklearn.metrics import auc, roc_curve

from adlight.callbacks.wandb_media import roc_corners


class Sent:
    """What one of wandb's record files says: levelDB's log format around protobuf messages.

    Attributes:
        run: the message that describes the run.
        definitions: the metrics that were defined, by name.
        history: what was logged, a dict each time.
        summary: the last values.
        exit_code: how it ended; None if it did not.
    """

    def __init__(self, folder):
        self.folder, self.definitions, self.history, self.summary, self.exit_code = folder, {}, [], {}, None
        (path,) = folder.glob("run-*.wandb")
        for record in self.records(path.read_bytes()):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.run, self.config = record.run, tree(record.run.config.update)
            elif kind == "config":
                tree(record.config.update, self.config)
            elif kind == "metric":
                self.definitions[record.metric.name or record.metric.glob_name] = record.metric
            elif kind == "history":
                self.history.append(tree(record.history.item))
            elif kind == "summary":
                tree(record.summary.update, self.summary)
            elif kind == "exit":
                self.exit_code = record.exit.exit_code

    @staticmethod
    def records(content):
        from wandb.proto.wandb_internal_pb2 import Record

        assert content[:4] == b":W&B"
        place, whole = 7, b""
        while place + 7 <= len(content):
            left = 32768 - place % 32768
            if left < 7:  # the end of a block is too short for a header
                place += left
                continue
            _, length, part = struct.unpack_from("<IHB", content, place)
            piece = content[place + 7 : place + 7 + length]
            if len(piece) < length:  # not yet written
                return
            whole = piece if part in (1, 2) else whole + piece  # 1 whole, 2 first, 3 middle, 4 last
            place += 7 + length
            if part in (1, 4):
                yield Record.FromString(whole)

    def last(self, key):
        """The last thing logged under a key."""
        return next(row[key] for row in reversed(self.history) if key in row)

    def file(self, media):
        """Path of a medium's file, which must lie in the run's folder."""
        return self.folder / "files" / media["path"]

    def table(self, key):
        """Columns and rows of a table."""
        content = json.loads(self.file(self.last(key)).read_text())
        return content["columns"], content["data"]


def tree(items, into=None):
    """Nested dicts from wandb's items, whose keys are paths."""
    into = {} if into is None else into
    for item in items:
        *path, name = item.nested_key or [item.key]
        node = into
        for part in path:
            if not isinstance(node.get(part), dict):
                node[part] = {}
            node = node[part]
        node[name] = json.loads(item.value_json)
    return into


def sent(run):
    """What lies in a run folder for W&B, oldest first; `finish` may return before wandb's service has written it."""
    until = time.monotonic() + 120
    while True:
        found = [Sent(folder) for folder in sorted((run / "wandb").glob("offline-run-*"))]
        if all(one.exit_code is not None for one in found) or time.monotonic() > until:
            return found
        time.sleep(0.1)


@pytest.fixture(scope="module", autouse=True)
def no_account(tmp_path_factory):
    """A home without keys, and silence; wandb's service is shared by the tests of this file and then stopped."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "NETRC"):
            patch.delenv(name, raising=False)
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("WANDB_SILENT", "true")
        yield
        import wandb

        wandb.teardown()


@pytest.fixture(scope="module")
def outcome(adlight):
    words = ["logger=wandb", "logger.wandb.entity=team", "logger.wandb.tags=[first,second]"]
    return adlight("train", *adlight.tiny, *words, "hydra.run.dir=runs/wandb")


@pytest.fixture(scope="module")
def run(adlight, outcome):
    assert outcome.code == 0, outcome.err
    return adlight.folder / "runs" / "wandb"


@pytest.fixture(scope="module")
def first(run):
    (found,) = sent(run)
    return found


def predictions(run):
    with (run / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_it_says_that_it_is_offline_and_how_to_send_it(run, first, outcome):
    (line,) = (line for line in outcome.out.splitlines() if line.startswith("W&B: "))
    assert "offline (no account" in line
    pattern = Path(line.partition("wandb sync ")[2])
    assert list(pattern.parent.glob(pattern.name)) == [first.folder]


def test_the_run_says_what_it_is_with_its_whole_config(run, first):
    assert (first.run.project, first.run.entity, first.run.job_type) == ("adlight", "team", "train")
    assert list(first.run.tags) == ["first", "second"]
    assert first.run.display_name == "wandb" and first.run.run_group == ""
    assert first.run.run_id == json.loads((run / "wandb.json").read_text())["id"]
    assert first.exit_code == 0
    written = OmegaConf.to_container(OmegaConf.load(run / ".hydra" / "config.yaml"), resolve=False)
    assert written.keys() <= first.config.keys()
    assert first.config["model"]["network"]["encoder_width"] == 32
    assert first.config["run_dir"] == str(run) and first.config["trainer"]["default_root_dir"] == str(run)


def test_curves_against_the_epoch(run, first):
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ("train/loss", "train/ssim", "val/auroc", "val/score_normal"):
        logged = [(row["epoch"], row[name]) for row in first.history if name in row]
        assert logged == [(int(row["epoch"]), pytest.approx(float(row[name]))) for row in rows]
    for name in ("train/*", "val/*", "train/loss", "val/auroc"):
        assert first.definitions[name].step_metric == "epoch"


def test_the_summary_keeps_the_best_of_a_curve_and_the_last_test(run, first):
    assert first.definitions["val/auroc"].summary.max and first.definitions["train/loss"].summary.min
    for name, best in (("val/auroc", max), ("train/loss", min)):
        curve = [row[name] for row in first.history if name in row]
        assert first.summary[name] == {best.__name__: best(curve), "last": curve[-1]}
    found = json.loads((run / "metrics.json").read_text())
    for name in ("auroc", "fpr_calibrated", "pixel_auroc"):
        assert first.summary[f"test/{name}"] == pytest.approx(found[name])
    assert first.summary["threshold"] == found["threshold"]


def test_histograms_of_normal_and_anomalous_scores(run, first):
    for category in ("bottle", "screw"):
        normal, anomalous = (first.last(f"scores/{category}/{name}") for name in ("normal", "anomalous"))
        assert normal["_type"] == "histogram" and normal["bins"] == anomalous["bins"]
        for label, histogram in enumerate((normal, anomalous)):
            scores = [
                float(row["score"])
                for row in predictions(run)
                if row["category"] == category and row["label"] == str(label)
            ]
            assert histogram["values"] == np.histogram(scores, histogram["bins"])[0].tolist()
            assert sum(histogram["values"]) == len(scores)


def is_the_curve(x, y, score, label):
    """Whether points are corners of scikit-learn's curve, and enough of them to draw it."""
    fpr, tpr, _ = roc_curve(label, score, drop_intermediate=False)
    corners = {(round(a, 9), round(b, 9)) for a, b in zip(fpr, tpr, strict=True)}
    found = [(round(a, 9), round(b, 9)) for a, b in zip(x, y, strict=True)]
    return set(found) <= corners and found == sorted(found) and np.isclose(auc(x, y), auc(fpr, tpr), atol=1e-12)


def test_a_roc_curve_a_category(run, first):
    columns, rows = first.table("roc_table")
    assert columns == ["step", "lineKey", "lineVal"]
    for category in ("bottle", "screw"):
        mine = [row for row in predictions(run) if row["category"] == category]
        label, score = [int(row["label"]) for row in mine], [float(row["score"]) for row in mine]
        x, y = zip(*((x, y) for x, name, y in rows if name == category), strict=True)
        assert is_the_curve(x, y, score, label)
    assert first.config["_wandb"]["visualize"]["roc"]["panel_config"]["panelDefId"] == "wandb/lineseries/v0"


def test_the_corners_of_a_roc_curve():
    generator = np.random.default_rng(0)
    for levels in (2, 5, 1000):  # tied and distinct scores
        score, label = generator.integers(0, levels, 200) / levels, generator.integers(0, 2, 200)
        assert is_the_curve(*roc_corners(score, label), score, label)


def same_picture(*paths):
    one, other = (np.asarray(Image.open(path).convert("RGB")) for path in paths)
    return np.array_equal(one, other)


def test_images_with_masks_and_boxes(run, first):
    for category in ("bottle", "screw"):
        cases = first.last(f"cases/{category}")
        assert cases["_type"] == "images/separated" and cases["count"] == 9
        by_path = {row["path"]: row for row in predictions(run)}
        for i, name in enumerate(cases["filenames"]):
            caption, masks = cases["captions"][i], cases["all_masks"][i]
            defect, _, rest = caption.partition(", ")
            row = by_path[rest.partition(": ")[0]]
            assert row["category"] == category and row["defect"] == defect
            assert ("anomalous" if int(row["anomalous"]) else "normal") in caption
            assert same_picture(first.folder / "files" / name, run.parents[1] / row["path"])
            truth, found = (np.asarray(Image.open(first.file(masks[kind]))) for kind in ("ground_truth", "prediction"))
            expected = np.zeros((32, 32), np.uint8)
            expected[:8, :8] = int(row["label"])
            assert np.array_equal(truth, expected)
            assert (found == 2).mean() == pytest.approx(float(row["area"])) and set(np.unique(found)) <= {0, 2}
            boxes = json.loads(first.file(cases["all_boxes"][i]["prediction"]).read_text())["box_data"]
            drawn = [[box["position"][key] for key in ("minX", "minY", "maxX", "maxY")] for box in boxes]
            assert drawn == [[*map(int, box.split(","))] for box in row["boxes"].split()]
        (picture,) = first.last(f"panels/{category}")["filenames"]
        assert same_picture(first.folder / "files" / picture, run / "panels" / f"{category}.png")


def test_predictions_and_results_are_tables(run, first):
    columns, rows = first.table("predictions")
    written = predictions(run)
    assert columns == list(written[0]) and len(rows) == 18
    assert [[str(value) for value in row] for row in rows] == [list(row.values()) for row in written]
    columns, rows = first.table("results")
    found = json.loads((run / "metrics.json").read_text())
    table = {row[0]: dict(zip(columns, row, strict=True)) for row in rows}
    assert list(table) == ["bottle", "screw", "mean of categories", "pooled"]
    wanted = [found["categories"]["bottle"], found["categories"]["screw"], found, found["pooled"]]
    assert [row["auroc"] for row in table.values()] == [one["auroc"] for one in wanted]


def test_a_resumed_run_keeps_its_id(adlight, run, first):
    again = adlight.folder / "runs" / "wandb again"
    shutil.copytree(run, again, ignore=shutil.ignore_patterns("evaluations"))
    outcome = adlight("train", 'resume="runs/wandb again"', "trainer.max_epochs=3", "~callbacks.panels")
    assert outcome.code == 0, outcome.err
    old, new = sent(again)
    assert new.run.run_id == old.run.run_id == first.run.run_id and new.run.resume
    assert [row["epoch"] for row in new.history if "train/loss" in row] == [2]
    assert "test/auroc" in new.summary and not any(key.startswith("cases/") for key in new.summary)


def test_every_job_of_a_multirun_is_a_run_and_a_failed_one_is_marked(adlight):
    words = [*adlight.quick, "logger=wandb", "trainer.max_epochs=1", "hydra.sweep.dir=runs/two"]
    words += ["+callbacks.count._target_=trouble.Counter", "+callbacks.count.ends=badly,well"]
    outcome = adlight("train", "-m", *words)
    assert outcome.code == 2 and "(ends-badly): told to fail" in outcome.err
    (bad,), (good,) = (sent(adlight.folder / "runs" / "two" / job) for job in ("ends-badly", "ends-well"))
    assert bad.run.run_id != good.run.run_id
    assert {bad.run.run_group, good.run.run_group} == {"two"}
    assert [one.run.display_name for one in (bad, good)] == ["two/ends-badly", "two/ends-well"]
    assert (bad.exit_code, good.exit_code) == (2, 0)
    assert [one.config["callbacks"]["count"]["ends"] for one in (bad, good)] == ["badly", "well"]
    assert good.definitions["train/loss"].step_metric == "generator_steps"
    assert good.definitions["val/auroc"].step_metric == "epoch"
    (row,) = (row for row in good.history if "train/loss" in row)
    assert row["generator_steps"] == 3


def test_ctrl_c_closes_the_run(adlight):
    words = [*adlight.quick, "logger=wandb", "hydra.run.dir=runs/interrupted"]
    words += ["+callbacks.count._target_=trouble.Counter", "+callbacks.count.ends=interrupted"]
    assert adlight("train", *words).code == 130
    (found,) = sent(adlight.folder / "runs" / "interrupted")
    assert found.exit_code == 130


def test_an_evaluation_is_a_run_of_its_own(adlight, tiny_run):
    folder = adlight.evaluate(tiny_run[0], "logger=wandb", "model.scorer.reduce=max", "~callbacks.panels")
    (found,) = sent(folder)
    assert found.run.job_type == "evaluate" and found.config["model"]["scorer"]["reduce"] == "max"
    assert len(found.table("predictions")[1]) == 18
    assert not (folder / "metrics.csv").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["logger.wandb.mode=onlin"], ("onlin", "online, offline, disabled")),
        (["logger.wandb.mode=online"], ("wandb login", "WANDB_API_KEY", "mode=offline")),
        (["hydra.run.dir=runs/blocked"], ("runs/blocked", "wandb")),
    ],
    ids=["unknown mode", "no account", "no folder"],
)
def test_bad_settings_are_refused(adlight, words, said):
    (adlight.folder / "runs" / "blocked").mkdir(parents=True, exist_ok=True)
    (adlight.folder / "runs" / "blocked" / "wandb").write_text("in the way")
    refused(adlight("train", *adlight.quick, "logger=wandb", *words), *said)


def refused(outcome, *said):
    assert outcome.code == 2 and outcome.err.startswith("error: ") and outcome.err.count("\n") == 1, outcome.err
    assert all(fragment in outcome.err for fragment in said), outcome.err


def test_without_a_network(adlight, monkeypatch):
    import wandb

    def unreachable(**settings):
        raise wandb.errors.CommError("no answer\nand a long story")

    monkeypatch.setattr(wandb, "init", unreachable)
    monkeypatch.setenv("WANDB_API_KEY", "not a real one")
    refused(adlight("train", *adlight.quick, "logger=wandb"), "no answer", "mode=offline")


def test_disabled(adlight):
    words = ["logger=wandb", "logger.wandb.mode=disabled", "trainer.max_epochs=1"]
    run = adlight.train(*adlight.quick, *words)
    assert not list((run / "wandb").iterdir())
