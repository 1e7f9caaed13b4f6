"""Parts of predictions: what is written is read again, and no part stands for other images."""

from pathlib import Path

import pytest

from adlight.runs.subfolders import PartFolder
from adlight.types import UserError

pytest.importorskip("pyarrow", reason="the extra adlight[ray]")

REGION = {"bbox": [1, 2, 3, 4], "area": 5, "score": 0.1, "segmentation": {"size": [32, 40], "counts": [7, 5]}}


def entry(path, **more):
    numbers = {"score": 1 / 3, "threshold": 0.25, "pixel_threshold": 1e-9, "area": 0.0}
    words = {"path": path, "threshold_source": "bottle", "anomalous": True, "width": 40, "height": 32}
    return {**words, **numbers, "boxes": [[1, 2, 4, 6]], "regions": [REGION], **more}


@pytest.fixture
def parts(tmp_path):
    return PartFolder(tmp_path / "parts")


def test_entries_are_read_as_they_were_written_and_in_order(parts):
    written = [entry("a"), {"path": "b", "error": "cannot read b"}, entry("ü", boxes=[], regions=[], anomalous=False)]
    parts.write(1, written[2:])
    parts.write(0, written[:2])
    assert list(parts.entries()) == written and parts.count() == 3
    parts.clear()
    assert not list(parts.entries())


def test_an_error_within_a_part_leaves_no_file(parts):
    def broken():
        yield entry("a")
        raise UserError("cannot read b")

    with pytest.raises(UserError, match="cannot read b"):
        parts.write(0, broken())
    assert not parts.path.exists()


def test_parts_that_are_written_are_left_out(parts):
    paths = [Path(name) for name in "abcde"]
    assert list(parts.remaining(iter(paths), 2)) == [(0, ["a", "b"]), (1, ["c", "d"]), (2, ["e"])]
    parts.write(1, [entry("c"), {"path": "d", "error": "cannot read d"}])
    assert [number for number, _ in parts.remaining(iter(paths), 2)] == [0, 2]


@pytest.mark.parametrize("names", ["axbcde", "ab", "abc", ""])
def test_a_part_of_other_images_is_refused(parts, names):
    parts.write(1, [entry("c"), entry("d")])
    with pytest.raises(UserError, match="images have changed"):
        list(parts.remaining(map(Path, names), 2))


def test_a_name_that_parquet_cannot_hold_is_refused(parts):
    with pytest.raises(UserError, match="UTF-8"):
        list(parts.remaining(iter([Path("a"), Path("\udcff.png")]), 2))
