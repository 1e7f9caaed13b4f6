"""The command: a run becomes a graph that answers as the run does, in Python and without adlight."""

import json
import pickle
import re
import runpy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from readers import table
from test_commands import DEPLOYMENT

from adlight.detector import Detector
from adlight.runs.folder import RunFolder
from adlight.runs.weights import hash_file
from adlight.types import UserError

(SCRIPT,) = re.findall(r"^```python\n(.*?)^```", DEPLOYMENT.read_text(), re.M | re.S)


@pytest.fixture(scope="module")
def exported(adlight, tiny_run):
    """The graph of a run of two categories, and what the command printed."""
    outcome = adlight("export", f"run={tiny_run[0]}", "hydra.run.dir=exported")
    assert outcome.code == 0, outcome.err
    return adlight.folder / "exported" / "detector.onnx", outcome.out


@pytest.fixture(scope="module")
def rows(tiny_run):
    return table(tiny_run[0] / "predictions.csv")


def test_the_test_split_is_compared(exported, rows):
    path, out = exported
    images, score, decisions = re.search(r"(\d+) images: .*? score (\S+), different decisions (\d+)", out).groups()
    assert int(images) == len(rows) and float(score) <= 1e-4 and int(decisions) == 0 and str(path.name) in out


def test_a_graph_predicts_as_its_run(adlight, exported, tiny_run):
    """In the graph's folder, unless another one is named; a region of interest it does not take."""
    words = ("images=data/bottle/test", "save=masks")
    outcome = adlight("predict", f"run={exported[0]}", *words)
    assert outcome.code == 0, outcome.err
    (found,) = (exported[0].parent / "predictions").iterdir()
    assert adlight("predict", f"run={tiny_run[0]}", *words, "hydra.run.dir=of_run").code == 0
    mine, wanted = table(found / "predictions.csv"), table(adlight.folder / "of_run" / "predictions.csv")
    assert [one["path"] for one in mine] == [one["path"] for one in wanted]
    for one, other in zip(mine, wanted, strict=True):
        assert float(one["score"]) == pytest.approx(float(other["score"]), rel=1e-4)
        assert one["anomalous"] == other["anomalous"]
    assert len(list((found / "masks").rglob("*.png"))) == len(mine)


@pytest.mark.parametrize(
    ("words", "said"), [(["roi=mask.png"], "graph"), (["save=panels"], "save"), (["run=nowhere.onnx"], "nowhere.onnx")]
)
def test_what_a_graph_does_not_do_is_one_line(adlight, exported, words, said):
    outcome = adlight("predict", f"run={exported[0]}", "images=data/bottle/test", "save=none", *words)
    assert outcome.code in (1, 2) and said in outcome.err and outcome.err.count("\n") == 1


def test_what_lies_beside_the_graph(exported, tiny_run):
    settings = json.loads(exported[0].with_suffix(".json").read_text())
    assert settings["checkpoint_sha256"] == hash_file(RunFolder(tiny_run[0]).best_checkpoint)
    assert (settings["image_size"], settings["channels"], settings["categories"]) == ([32, 32], 3, ["bottle", "screw"])
    thresholds = json.loads((tiny_run[0] / "metrics.json").read_text())["thresholds"]
    for name in settings["categories"]:
        assert settings["thresholds"][name]["image"] == thresholds[name]["image"]
    assert {"adlight", "torch", "onnx", "onnxruntime"} <= settings["versions"].keys()


def test_a_detector_of_the_graph_is_that_of_the_run(adlight, exported, tiny_run, rows, monkeypatch):
    monkeypatch.chdir(adlight.folder)
    paths = [row["path"] for row in rows]
    own, graph = (Detector.load(path, device="cpu") for path in (tiny_run[0], exported[0]))
    assert [one.score for one in pickle.loads(pickle.dumps(graph))(paths)] == [one.score for one in graph(paths)]
    for mine, other in zip(own(paths), graph(paths), strict=True):
        assert other.score == pytest.approx(mine.score, rel=1e-4)
        assert (other.anomalous, other.boxes, other.path) == (mine.anomalous, mine.boxes, mine.path)
        assert (other.threshold, other.pixel_threshold) == (mine.threshold, mine.pixel_threshold)
        assert other.threshold_source == mine.threshold_source and other.reconstruction is None
        assert np.array_equal(other.mask, mine.mask) and np.allclose(other.anomaly_map, mine.anomaly_map, rtol=1e-4)
    assert graph.frame.size == own.frame.size and graph.channels == 3
    with ThreadPoolExecutor(4) as pool:
        assert [one.score for one in pool.map(lambda path: graph(path)[0], paths)] == pytest.approx(
            [one.score for one in graph(paths)], rel=1e-6
        )
    looks = Detector.load(exported[0], category="auto")(paths[:2])
    assert [one.threshold_source for one in looks] == [
        one.threshold_source for one in Detector.load(tiny_run[0], device="cpu", category="auto")(paths[:2])
    ]
    graph.threshold = -1
    assert all(one.anomalous and one.boxes for one in graph(paths[:2]))
    with pytest.raises(UserError, match=r"scrw.*screw"):
        Detector.load(exported[0], category="scrw")
    with pytest.raises(UserError, match="use the run"):
        Detector.load(exported[0], overrides=["model.scorer.reduce=max"])


def test_a_graph_needs_no_torch(adlight, exported, rows):
    program = (
        "import sys; from adlight import Detector\n"
        "found = Detector.load(sys.argv[1], category='screw')(sys.argv[2])[0]\n"
        "heavy = {'torch', 'pytorch_lightning', 'hydra', 'omegaconf', 'pandas', 'matplotlib'}\n"
        "print(found.threshold_source, *(heavy & {*sys.modules}))"
    )
    words = [sys.executable, "-c", program, str(exported[0]), str(adlight.folder / rows[0]["path"])]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["screw"]


def test_the_readmes_script(adlight, exported, tiny_run, rows, monkeypatch, capsys):
    assert len(SCRIPT.splitlines()) <= 20 and "adlight" not in SCRIPT.replace("adlight export", "")
    assert set(re.findall(r"^(?:import|from) (\w+)", SCRIPT, re.M)) <= {"json", "sys", "numpy", "onnxruntime", "PIL"}
    monkeypatch.chdir(adlight.folder)
    script = exported[0].parent / "script.py"
    script.write_text(SCRIPT)
    monkeypatch.chdir(exported[0].parent)
    paths = [str(adlight.folder / row["path"]) for row in rows if row["category"] == "bottle"]
    monkeypatch.setattr(sys, "argv", ["script.py", "bottle", *paths])
    runpy.run_path(str(script), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    mine = [row for row in rows if row["category"] == "bottle"]
    for line, row in zip(lines, mine, strict=True):
        path, score, decision = line.split()[:3]
        assert path.endswith(row["path"]) and float(score) == pytest.approx(float(row["score"]), rel=1e-3)
        assert decision == ("anomalous" if int(row["anomalous"]) else "normal")


def test_other_images_and_thresholds(adlight, tiny_run, tmp_path):
    words = [f"run={tiny_run[0]}", f"hydra.run.dir={tmp_path}/out", "check=data/screw/test/hole", "ckpt=last"]
    outcome = adlight("export", *words, "threshold=0.5", "pixel_threshold=0.25")
    assert outcome.code == 0, outcome.err
    assert "3 images" in outcome.out
    settings = json.loads((tmp_path / "out" / "detector.json").read_text())
    assert settings["checkpoint"] == "last.ckpt" and settings["thresholds"]["screw"] == {"image": 0.5, "pixel": 0.25}
    detector = Detector.load(tmp_path / "out" / "detector.onnx")
    assert (detector.threshold, detector.pixel_threshold) == (0.5, 0.25)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["format=torchscript"], ["format", "onnx"]),
        (["check=nowhere"], ["nowhere"]),
        (["threshold=high"], ["threshold", "high"]),
        (["batch_size=0"], ["batch_size"]),
    ],
)
def test_bad_settings_are_one_line(adlight, tiny_run, tmp_path, words, named):
    outcome = adlight("export", f"run={tiny_run[0]}", f"hydra.run.dir={tmp_path}/out", *words)
    assert outcome.code == 2 and all(word in outcome.err for word in named)
    assert not list(tmp_path.rglob("*.onnx"))


def test_a_graph_that_is_not_equal_is_not_kept(adlight, tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr("adlight.export.TOLERANCE", -1)
    outcome = adlight("export", f"run={tiny_run[0]}", f"hydra.run.dir={tmp_path}/out", "check=data/screw/test/hole")
    assert outcome.code == 2 and "not kept" in outcome.err and not list(tmp_path.rglob("*.onnx"))


def test_two_files_of_different_exports(exported, tmp_path):
    path = tmp_path / "detector.onnx"
    path.write_bytes(exported[0].read_bytes())
    with pytest.raises(UserError, match=r"detector\.json"):
        Detector.load(path)
    settings = json.loads(exported[0].with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(settings | {"checkpoint_sha256": "0"}))
    with pytest.raises(UserError, match="different exports"):
        Detector.load(path)
    path.with_suffix(".json").write_text(json.dumps({}))
    with pytest.raises(UserError, match="damaged"):
        Detector.load(path)


def test_what_keeps_its_shape_is_refused_before_any_work(adlight, tmp_path):
    run = adlight.train(*adlight.quick, "dataset.keep_shape=true", f"hydra.run.dir={tmp_path}/run")
    outcome = adlight("export", f"run={run}")
    assert outcome.code == 2 and "keep_shape=true" in outcome.err and "keep_shape=false" in outcome.err
