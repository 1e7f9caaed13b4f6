"""What the image viewer is given: each image once, scores that keep their verdict, thumbnails within a budget."""

import base64
import io

import pytest
from makers import fake_run, fill_gallery
from PIL import Image

from adlight.reports import viewer
from adlight.reports.collect import collect
from adlight.runs.folder import RunFolder


def data(root, detailed=8, first=""):
    return viewer.viewer_data(collect([str(root)]), root / "report", detailed, first)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of the same 40 images, one with a gallery, and one of other images."""
    root = tmp_path_factory.mktemp("viewer")
    fake_run(root / "0")
    fill_gallery(fake_run(root / "1", draw=1), (0, 3, 25))
    fake_run(root / "2", ("zipper",), draw=2)
    return root


def test_images_are_shared_by_runs(runs):
    shown = data(runs, first="1")
    images, (first, second, third) = shown["images"], shown["runs"]
    assert len(images["path"]) == len(images["thumb"]) == 60 and shown["first"] == 1 and shown["left"] == []
    assert first["image"] == second["image"] == list(range(40)) and third["image"] == list(range(40, 60))
    assert [shown["categories"][i] for i in images["category"]] == ["bottle"] * 20 + ["screw"] * 20 + ["zipper"] * 20
    assert second["threshold"] == [2.0, 3.0, None] and third["threshold"] == [None, None, 2.0]
    assert (second["pictures"], second["masks"], second["gallery"]) == ([0, 3, 25], [3, 25], "../1/gallery")
    assert [i for i, thumb in enumerate(images["thumb"]) if thumb] == [0, 3, 25] and first["pictures"] == []
    assert data(runs, detailed=1)["left"] == ["1", "2"]


def test_verdicts_stay_the_same(runs, monkeypatch):
    found = collect([str(runs / "0")])
    found.predictions.loc[0, ["score", "threshold"]] = 2.00000001, 2.0
    (run,) = viewer.viewer_data(found, runs, 8)["runs"]
    assert run["score"][0] == 2.00000001 > run["threshold"][0] == 2.0
    assert run["score"][1:] == pytest.approx(found.predictions["score"].tolist()[1:], rel=1e-5)
    assert len(str(run["score"][5])) <= 8


def test_thumbnails_are_small_and_have_a_budget(runs, tmp_path, monkeypatch):
    thumb = data(runs)["images"]["thumb"][3].removeprefix("data:image/webp;base64,")
    with Image.open(io.BytesIO(base64.b64decode(thumb))) as image:
        assert image.format == "WEBP" and image.size == (viewer.SIDE, viewer.SIDE)
    monkeypatch.setattr(viewer, "KILOBYTES", 0.001)
    assert [i for i, one in enumerate(data(runs)["images"]["thumb"]) if one] == [0]
    fill_gallery(run := fake_run(tmp_path / "0"), (0, 1, 99))  # another test's row, and a file that is none
    RunFolder(run).gallery.image_path(0).write_text("no picture")
    shown = data(tmp_path)
    assert shown["runs"][0]["pictures"] == [0, 1] and shown["images"]["thumb"][0] is None


def test_too_many_images_are_said_and_nothing_is_no_viewer(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(viewer, "IMAGES", 20)
    assert data(runs)["left"] == ["0", "1"]
    fake_run(tmp_path / "0", finished=False)
    assert data(tmp_path) is None
