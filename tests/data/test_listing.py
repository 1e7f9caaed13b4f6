import os

import pytest
from makers import write_image

from adlight.data.listing import (
    BROKEN,
    EMPTY,
    LOOP,
    describe_folder,
    describe_left_out,
    is_folder,
    list_folders,
    list_images,
    scan,
)
from adlight.types import UserError


def test_listing_is_sorted_and_tells_of_other_files(tmp_path):
    for name in ("b.png", "a.jpg", "sub/c.BMP", ".hidden.png", ".thumbnails/d.png"):
        write_image(tmp_path / name)
    for name in ("license.txt", "e.webp", "f.webp", "README"):
        (tmp_path / name).write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "lost.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert [path.name for path in list_images(tmp_path)] == ["a.jpg", "b.png", "c.BMP"]
    found = scan(tmp_path)
    assert {kind: len(paths) for kind, paths in found.items()} == {
        **{"": 3, ".txt": 1, ".webp": 2, "without a suffix": 1},
        **{EMPTY: 1, BROKEN: 1, "neither file nor folder": 1},
    }
    line = describe_left_out({kind: (len(paths), paths[0]) for kind, paths in found.items() if kind})
    assert "2 .webp" in line and f"1 {BROKEN}" in line and str(tmp_path / "e.webp") in line and "\n" not in line
    assert describe_left_out({}) == "" and scan(tmp_path / "nope")[""] == []


def test_links_are_followed_but_not_in_circles(tmp_path):
    write_image(tmp_path / "a" / "0.png")
    write_image(tmp_path / "b" / "1.png")
    (tmp_path / "a" / "to_b").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "to_a").symlink_to(tmp_path / "a")
    (tmp_path / "b" / "self").symlink_to(tmp_path / "b" / "self")
    found = scan(tmp_path / "a")
    assert [path.relative_to(tmp_path).as_posix() for path in found[""]] == ["a/0.png", "a/to_b/1.png"]
    assert [path.name for path in found[LOOP]] == ["to_a"] and [path.name for path in found[BROKEN]] == ["self"]


def test_folders_that_may_not_be_read_are_named(tmp_path, forbid):
    write_image(tmp_path / "hole" / "0.png")
    forbid(tmp_path / "hole")
    for call in (list_images, scan, lambda folder: list_folders(folder / "hole")):
        with pytest.raises(UserError, match=rf"{tmp_path}/hole: Permission denied"):
            call(tmp_path)


def test_a_name_that_ends_in_a_space_is_shown_in_quotes(tmp_path):
    (tmp_path / "good ").mkdir()
    with pytest.raises(UserError, match=r"'.*/good '"):
        list_folders(tmp_path)


def test_folders_are_described(tmp_path):
    assert describe_folder(tmp_path) == "an empty folder" and list_folders(tmp_path / "nope") == []
    assert describe_folder(tmp_path / "nope") == "no such folder" and not is_folder(tmp_path / "nope")
    for name in "gfedcba":
        (tmp_path / name).mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "file").write_text("")
    assert describe_folder(tmp_path / "file") == "a file"
    assert describe_folder(tmp_path) == "a, b, c, d, e and 3 more"
    assert list_folders(tmp_path) == list("abcdefg")
