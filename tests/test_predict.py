import json
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from makers import write_image
from PIL import ExifTags, Image
from processes import call, check_refused
from readers import content, table
from test_detector import train_tiny

from adlight import predict
from adlight.detector import Detector
from adlight.predict import ResultWriter


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train_tiny(tmp_path_factory.mktemp("predict"))


@pytest.fixture
def ask(trained, tmp_path):
    """Runs the command in an empty folder; returns how it ended and the folder it wrote."""

    def run(*words):
        outcome = call(tmp_path, "predict", f"run={trained[0]}", *words, "hydra.run.dir=out", "device=cpu")
        return outcome, tmp_path / "out"

    return run


def test_writes_predictions_and_pictures(trained, ask):
    run, data = trained
    outcome, out = ask(f"images={data / 'bottle' / 'test'}", "save=masks,maps,panels", "batch_size=4")
    assert outcome.code == 0
    rows = table(out / "predictions.csv")
    predictions = Detector.load(run, device="cpu")([row["path"] for row in rows])
    columns = ["path", "score", "threshold", "anomalous", "threshold_source", "pixel_threshold", "area", "boxes"]
    assert list(rows[0]) == columns and len(rows) == 9
    assert {row["threshold_source"] for row in rows} == {"bottle"}
    for row, prediction in zip(rows, predictions, strict=True):
        assert float(row["score"]) == pytest.approx(prediction.score, rel=1e-6)
        assert (int(row["anomalous"]), float(row["threshold"])) == (prediction.anomalous, prediction.threshold)
        assert row["boxes"] == " ".join(",".join(map(str, box)) for box in prediction.boxes)
    names = {f"{kind}/{i:03d}.png" for kind in ("good", "hole", "scratch") for i in range(3)}
    for kind in predict.PICTURES:
        assert {str(path.relative_to(out / kind)) for path in (out / kind).rglob("*.png")} == names
    mask = np.asarray(Image.open(out / "masks" / "hole" / "001.png"))
    assert set(np.unique(mask)) <= {0, 255} and (mask == predictions[4].mask * 255).all()
    assert Image.open(out / "maps" / "hole" / "001.png").size == (48, 48)
    assert not (out / "predictions.part").exists()
    assert "predictions.csv" in outcome.out and "images/s" in outcome.out
    worst = max(predictions, key=lambda prediction: prediction.score)
    named = [line for line in outcome.out.splitlines() if line.startswith(("anomalous ", "normal "))]
    assert len(named) == len(predictions) and named[0].endswith(worst.path)


def test_default_folder_is_in_the_run(trained, tmp_path):
    run, data = trained
    image = data / "bottle" / "test" / "good" / "000.png"
    assert call(tmp_path, "predict", f"run={run}", f"images={image}", "save=none", "device=cpu").code == 0
    written = sorted(path.name for path in (run / "predictions").glob("*/*") if not path.name.startswith("."))
    assert written == ["predict.log", "predictions.csv", "predictions.jsonl", "regions.json"]


def test_threshold_decides(trained, ask):
    for threshold, anomalous in (("-1", "1"), ("1e9", "0")):
        outcome, out = ask(f"images={trained[1] / 'bottle/test'}", f"threshold={threshold}", "save=none")
        assert outcome.code == 0 and {row["anomalous"] for row in table(out / "predictions.csv")} == {anomalous}
    assert not (out / "masks").exists()


def test_thresholds_of_several_categories(tiny_run, adlight, tmp_path):
    """Each image is compared with the thresholds of its folder's category, or of the category named."""
    run, data = tiny_run[0], adlight.folder / "data"
    known = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]["_extra_state"]
    for category in ("bottle", "screw"):
        shutil.copytree(data / category / "test" / "hole", tmp_path / "images" / category)

    def predictions(*words):
        outcome = adlight("predict", f"run={run}", f"images={tmp_path}/images", f"hydra.run.dir={tmp_path}/out", *words)
        assert outcome.code == 0, outcome.err
        return table(tmp_path / "out" / "predictions.csv"), outcome.out

    rows, out = predictions("save=masks,maps,panels")
    assert len(rows) == 6
    for row in rows:
        of = row["path"].split("/")[-2]
        used = known["categories"][of]
        assert row["threshold_source"] == of
        assert (float(row["threshold"]), float(row["pixel_threshold"])) == (used["image"], used["pixel"])
        assert row["anomalous"] == str(int(float(row["score"]) > used["image"]))
        assert f"{used['image']:.6g}" in out and f"│ {of} " in out
    other = write_image(tmp_path / "images" / "other" / "x.png")
    words = (f"run={run}", f"images={tmp_path}/images", "save=none", f"hydra.run.dir={tmp_path}/stopped")
    check_refused(adlight("predict", *words), str(other), "category=auto", "category=pooled", "bottle, screw")
    assert not list((tmp_path / "stopped").glob("*.part"))
    for category, source in (("screw", "screw"), ("pooled", "all categories")):
        rows, _ = predictions("save=none", f"category={category}")
        assert len(rows) == 7 and {row["threshold_source"] for row in rows} == {source}
    rows, out = predictions("save=none", "category=auto")
    assert {row["threshold_source"] for row in rows} <= {"bottle", "screw"}
    assert f"{100 * content(run)['category_auto']['accuracy']:.1f}% of 2 held-out" in out
    rows, _ = predictions("save=none", "threshold=0.5", "pixel_threshold=0.5")
    assert {(row["threshold_source"], row["threshold"]) for row in rows} == {("given", "0.5")}
    outcome = adlight(
        "predict",
        f"run={run}",
        f"images={tmp_path}/images",
        "category=scrw",
        "save=none",
        f"hydra.run.dir={tmp_path}/out",
    )
    assert outcome.code == 2 and outcome.err.startswith("error: unknown category 'scrw'; did you mean screw?")


def test_globs_and_alike_names(ask, tmp_path):
    for name in ("my [images]/a.png", "my [images]/a.jpg", "my [images]/deep/b.bmp"):
        write_image(tmp_path / name)
    (tmp_path / "my [images]" / "notes.txt").write_text("no image")
    outcome, out = ask("images=my [[]images]/**/*", "save=masks")
    assert outcome.code == 0 and f"masks in {out}" in outcome.out and "colours" not in outcome.out
    assert len(table(out / "predictions.csv")) == 3
    found = {str(path.relative_to(out / "masks")) for path in (out / "masks").rglob("*.png")}
    assert found == {"a.png.png", "a.jpg.png", "deep/b.png"}
    assert ask("images=my [images]", "save=[maps]")[0].code == 0


def test_settings_without_thresholds_leave_no_folder(ask, tmp_path):
    write_image(tmp_path / "good" / "a.png")
    outcome, out = ask("images=good", "tile=16")
    check_refused(outcome, "dataset.tile")
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["images=nowhere"], "nowhere does not exist"),
        (["images=empty"], "empty: looked for files with .bmp, .jpeg, .jpg, .png, .tif, .tiff"),
        (["images=*.gif"], "no images in"),
        ([], "run=<run folder> images="),
        (["images=good", "run=empty"], "empty is not a run folder"),
        (["images=good", "threshold=quantile:0.99"], "adlight evaluate"),
        (["images=good", "threshold=high"], "'high' is not understood"),
        (["images=good", "save=movies"], "'movies'"),
        (["images=good", "batch_size=0"], "batch_size"),
        (["images=good", "on_bad_image=ignore"], "on_bad_image 'ignore'"),
        (["images=good", "ckpt=nix"], "checkpoint nix does not exist"),
        (["images=good", "treshold=1"], "treshold"),
        (["images=good", "actors=4"], "actors=4"),
        (["images=good", "ray_address=auto"], "ray_address=auto"),
        (["images=good", "tile=1"], "tile must"),
        (["images=good", "tile=16", "overlap=1"], "overlap must"),
        (["images=good", "closing=1e6"], "closing must"),
    ],
)
def test_bad_input_is_one_line(ask, tmp_path, words, message):
    (tmp_path / "empty").mkdir()
    write_image(tmp_path / "good" / "a.png")
    check_refused(ask(*words)[0], message)


def test_photos_are_turned_upright_and_other_files_are_told(ask, tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (40, 60), "red").save(tmp_path / "photos" / "a.jpg", exif=exif)
    (tmp_path / "photos" / "b.webp").write_text("")
    outcome, out = ask("images=photos", "save=masks,panels")
    assert outcome.code == 0 and "1 .webp" in outcome.out
    assert Image.open(out / "masks" / "a.png").size == (60, 40)


def test_unreadable_image(trained, ask, tmp_path):
    shutil.copytree(trained[1] / "bottle" / "test" / "good", tmp_path / "images")
    bad = tmp_path / "images" / "001.png"
    bad.write_bytes(bad.read_bytes()[:200])
    outcome, out = ask("images=images", "batch_size=1")
    assert outcome.code == 2 and "001.png" in outcome.err and "on_bad_image=skip" in outcome.err
    assert outcome.err.count("\n") == 1
    assert not (out / "predictions.csv").exists()
    outcome, out = ask("images=images", "batch_size=1", "on_bad_image=skip")
    paths = [row["path"] for row in table(out / "predictions.csv")]
    assert outcome.code == 0 and paths == ["images/000.png", "images/002.png"]
    assert "skipped: cannot read image images/001.png" in outcome.out
    ((path, error),) = [row.values() for row in table(out / "unreadable.csv")]
    assert path == "images/001.png" and path in error
    outcome, out = ask("images=images/00[02].png", "on_bad_image=skip", "hydra.run.dir=none_is_bad")
    assert outcome.code == 0 and not list(out.parent.glob("none_is_bad/*unreadable*"))


def test_json_and_regions_say_what_the_table_says(trained, ask):
    outcome, out = ask(f"images={trained[1] / 'bottle' / 'test'}", "save=masks")
    rows, lines = table(out / "predictions.csv"), (out / "predictions.jsonl").read_text().splitlines()
    assert outcome.code == 0 and len(lines) == len(rows) == 9
    for row, line in zip(rows, map(json.loads, lines), strict=True):
        boxes = " ".join(",".join(map(str, box)) for box in line["boxes"])
        assert {**row, "anomalous": row["anomalous"] == "1"} == {
            **{name: str(value) for name, value in line.items()},
            **{"boxes": boxes, "anomalous": line["anomalous"]},
        }
    coco = json.loads((out / "regions.json").read_text())
    assert [one["file_name"] for one in coco["images"]] == [row["path"] for row in rows]
    assert {(one["width"], one["height"]) for one in coco["images"]} == {(48, 48)}
    known = {one["id"]: one for one in coco["images"]}
    assert len({one["id"] for one in coco["annotations"]}) == len(coco["annotations"]) > 0
    for number, image in known.items():
        mine = [one for one in coco["annotations"] if one["image_id"] == number]
        name = "/".join(image["file_name"].split("/")[-2:])
        mask = np.asarray(Image.open(out / "masks" / name)) > 0
        assert sum(one["area"] for one in mine) == mask.sum() and bool(mine) == image["anomalous"]
    assert {one["category_id"] for one in coco["annotations"]} == {one["id"] for one in coco["categories"]}


@pytest.mark.parametrize("settings", ["threshold=-1 pixel_threshold=1e9", "threshold=1e9 pixel_threshold=-1", ""])
def test_verdict_boxes_regions_and_masks_agree(trained, ask, tmp_path, settings):
    for i, side in enumerate((9, 16, 48, 90)):  # the map has 32 pixels a side
        write_image(tmp_path / "sizes" / f"{i}.png", i, side)
    outcome, out = ask("images=sizes", "save=masks,panels", "category=bottle", *settings.split())
    assert outcome.code == 0 and (out / "predict.log").read_text()  # what it has printed
    regions = json.loads((out / "regions.json").read_text())
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    for row, line, image in zip(table(out / "predictions.csv"), lines, regions["images"], strict=True):
        mine = [one for one in regions["annotations"] if one["image_id"] == image["id"]]
        mask = np.asarray(Image.open(out / "masks" / Path(row["path"]).name))
        verdicts = [bool(int(row["anomalous"])), bool(row["boxes"]), float(row["area"]) > 0]
        verdicts += [line["anomalous"], bool(line["boxes"]), line["area"] > 0, bool(mine), bool(mask.any())]
        assert len(set(verdicts)) == 1, (row, verdicts)


def test_rules_of_regions_can_be_set(trained, ask):
    words = (f"images={trained[1] / 'bottle' / 'test'}", "save=none", "threshold=-1")
    found = {}
    for rule in ("min_area=0", "min_area=1", "closing=9"):
        outcome, out = ask(*words, rule)
        assert outcome.code == 0
        found[rule] = [len(row["boxes"].split()) for row in table(out / "predictions.csv")]
    assert set(found["min_area=1"]) == {1} and sum(found["min_area=0"]) > 9 > 0
    assert sum(found["closing=9"]) < sum(found["min_area=0"])


class Stopped(ResultWriter):
    """Ctrl-C at the sixth image."""

    count = 0

    def __call__(self, path, prediction):
        Stopped.count += 1
        if Stopped.count == 6:
            raise KeyboardInterrupt
        return super().__call__(path, prediction)


def test_an_interrupted_prediction_goes_on(trained, tmp_path, monkeypatch):
    run, data = trained
    words = (f"run={run}", f"images={data / 'bottle' / 'test'}", "device=cpu", "save=maps", "batch_size=2")
    again = partial(call, tmp_path, "predict")
    assert again(*words, f"hydra.run.dir={tmp_path}/whole").code == 0
    monkeypatch.setattr(predict, "ResultWriter", Stopped)
    stopped = again(*words, f"hydra.run.dir={tmp_path}/out")
    monkeypatch.undo()
    out = tmp_path / "out"
    assert not (out / "predictions.csv").exists() and len((out / "predictions.part").read_text().splitlines()) == 1 + 4
    assert stopped.code == 130
    assert f"4 predictions are kept. Continue with: adlight predict resume={out}" in stopped.err
    kept = sorted(path.stat().st_mtime_ns for path in (out / "maps" / "good").iterdir())
    with (out / "predictions.part").open("a") as file:
        file.write('{"path": "torn')
    outcome = again(f"resume={out}", "threshold=7")
    assert outcome.code == 2 and "threshold" in outcome.err, "other predictions would come"
    journal = (out / "predictions.part").read_text()
    (out / "predictions.part").write_text(journal.replace('"weights": "', '"weights": "0'))
    outcome = again(f"resume={out}")
    assert outcome.code == 2 and "best.ckpt has changed" in outcome.err
    (out / "predictions.part").write_text(journal)
    assert again(*words, "resume=auto", "device=cpu", f"hydra.run.dir={out}", "batch_size=3").code == 0
    assert kept == sorted(path.stat().st_mtime_ns for path in (out / "maps" / "good").iterdir())
    for name in ("predictions.csv", "predictions.jsonl", "regions.json"):
        assert close(out / name, tmp_path / "whole" / name)
    assert not list(out.glob("*.part")) and len(list((out / "maps").rglob("*.png"))) == 9
    assert again(f"resume={out}").code == 2, "nothing was interrupted"


def close(one, other):
    """Whether two files hold the same numbers, to six digits, in the same words."""
    number = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
    texts = [path.read_text() for path in (one, other)]
    numbers = [np.array(number.findall(text), float) for text in texts]
    return len({number.sub("#", text) for text in texts}) == 1 and np.allclose(*numbers, rtol=1e-6)


def test_an_interrupted_prediction_is_found(trained, tmp_path):
    run, _ = trained
    shutil.copytree(trained[1] / "bottle" / "test" / "good", tmp_path / "images")
    bad = tmp_path / "images" / "002.png"
    bad.write_bytes(bad.read_bytes()[:200])
    again = partial(call, tmp_path, "predict", f"run={run}", "images=images", "device=cpu", "save=none")
    outcome = again()
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert "002.png" in outcome.err and "2 predictions are kept" in outcome.err
    (left,) = (path.parent for path in (run / "predictions").glob("*/predictions.part"))
    assert again("resume=auto", "threshold=0.5").code == 2  # others: a new one begins, and stops there too
    assert len(list((run / "predictions").glob("*/predictions.part"))) == 2
    write_image(tmp_path / "images" / "0000.png")
    outcome = again("resume=auto")
    assert outcome.code == 2 and "images have changed" in outcome.err
    (tmp_path / "images" / "0000.png").unlink()
    assert again("resume=auto", "on_bad_image=skip").code == 0
    assert [row["path"] for row in table(left / "predictions.csv")] == ["images/000.png", "images/001.png"]
    assert (left / "unreadable.csv").exists()
