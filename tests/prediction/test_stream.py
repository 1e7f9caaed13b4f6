import os
import tracemalloc
from contextlib import ExitStack
from pathlib import Path

import pytest
from makers import write_image

from adlight.data import listing
from adlight.data.listing import EMPTY, list_images, walk
from adlight.prediction.stream import ImageStream
from adlight.types import UserError

NAMES = ("b.png", "a.jpg", "a.png", "a-1.png", "a.b/1.png", "a/2.BMP", "a.b.png", "sub/deep/c.tif", "sub/c.jpeg")


def test_images_come_in_the_order_of_their_paths(tmp_path):
    for name in (*NAMES, ".hidden.png", "notes.txt", "more.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    stream = ImageStream(str(tmp_path))
    assert list(stream) == list(stream) == sorted(tmp_path / name for name in NAMES) == list_images(tmp_path)
    survey = stream.survey()
    assert survey.images == len(NAMES) and "2 .txt" in survey.left_out and "more.txt" in survey.left_out
    glob = ImageStream(f"{tmp_path}/a*")
    assert [path.name for path in glob] == ["a-1.png", "a.b.png", "a.jpg", "a.png"] and glob.survey() == (4, "")
    assert list(ImageStream(f"{tmp_path}/b.png")) == [tmp_path / "b.png"]


def test_pictures_have_names_of_their_own(tmp_path):
    for name in NAMES:
        write_image(tmp_path / name if "BMP" not in name else tmp_path / "a" / "2.bmp")
    stream = ImageStream(str(tmp_path))
    names = [stream.name(path) for path in stream]
    wanted = {"b", "a.jpg", "a.png", "a-1", "a.b/1", "a/2", "a.b", "sub/deep/c", "sub/c"}
    assert set(names) == wanted and len(names) == len(NAMES)
    write_image(tmp_path / "a.png.jpg")  # without its suffix it has the name that a.png keeps
    names = [ImageStream(str(tmp_path)).name(tmp_path / name) for name in ("a.jpg", "a.png", "a.png.jpg", "a.b.png")]
    assert names == ["a.jpg", "a.png", "a.png.jpg", "a.b"]
    glob = ImageStream(f"{tmp_path}/sub/**/*")
    assert glob.name(tmp_path / "sub" / "deep" / "c.tif") == "deep/c"


def test_a_place_without_images_is_refused(tmp_path):
    (tmp_path / "x.gif").touch()
    for place, problem in {"": "no images in", "*.gif": "no images in", "nowhere": "does not exist"}.items():
        with pytest.raises(UserError, match=problem):
            ImageStream(str(tmp_path / place)).require()
    (tmp_path / "parts").mkdir()
    for place, is_hinted in {"p*": True, "parts": False, "x*": False}.items():
        with pytest.raises(UserError) as caught:
            ImageStream(str(tmp_path / place)).require()
        assert ("add /*" in str(caught.value)) == is_hinted


@pytest.mark.parametrize("most", [1, 2, 3, 100])
def test_names_sorted_in_files_come_in_the_same_order(tmp_path, monkeypatch, most):
    names = [*NAMES, "\U0001f600.png", "\uffff.png", "a\nb.png", "a .png", os.fsdecode(b"\xff.png"), "é.png", "x.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    place = ImageStream(str(tmp_path))
    wanted, named = list(walk(tmp_path)), [place.name(path) for path in place]
    assert [path for kind, path in wanted if not kind] == list(map(str, sorted(tmp_path / name for name in names[:-1])))
    assert (EMPTY, str(tmp_path / "empty")) in wanted
    monkeypatch.setattr(listing, "MOST_NAMES", most)
    place = ImageStream(str(tmp_path))
    assert list(walk(tmp_path)) == wanted and [place.name(path) for path in place] == named
    next(iter(place))  # files are closed where the rest is not wanted


def test_a_folder_of_many_names_takes_the_memory_of_some(monkeypatch):
    monkeypatch.setattr(listing, "MOST_NAMES", 1000)

    tracemalloc.start()
    with ExitStack() as files:
        found = listing.sort_many(((f"{i:x}.png"[::-1], "") for i in range(20_000)), files)
        assert sum(1 for _ in found) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000 * 30, "20 open files; a name in memory takes 60 bytes, with its kind 130"


def test_many_images_take_the_memory_of_one_folder(tmp_path):
    """Peaks of going through 20 folders of 500 images and through one of them, in bytes."""
    for i in range(20):
        folder = tmp_path / f"{i:03d}"
        folder.mkdir()
        for k in range(500):
            os.close(os.open(folder / f"image-{k:06d}.png", os.O_CREAT))

    def peak(place):
        tracemalloc.start()
        count = sum(1 for _ in ImageStream(str(place)))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return count, found

    # the least of three: threads that earlier tests have left allocate too
    (one, small), (all_of_them, large) = (min(peak(place) for _ in range(3)) for place in (tmp_path / "000", tmp_path))
    assert (one, all_of_them) == (500, 10_000)
    assert large < 1.5 * small + 20_000
    assert small < 500 * 200 + 20_000, "of a folder its names are kept, and nothing more"
    assert isinstance(next(iter(ImageStream(str(tmp_path)))), Path)
