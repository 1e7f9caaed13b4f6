"""Data sets at a URL: copied once, updated, resumed, and refused in one line."""

import fsspec
import pytest
from makers import fake_mvtec
from readers import numbers

from adlight.data import bucket as module
from adlight.data.bucket import Bucket
from adlight.types import UserError


@pytest.fixture
def remote(tmp_path):
    """A data set in fsspec's own memory: the file system, and the URL."""
    fake_mvtec(tmp_path / "original")
    files = fsspec.filesystem("memory")
    files.put(str(tmp_path / "original"), "/bucket/parts", recursive=True)
    files.pipe("/bucket/parts/readme.txt", b"no image")
    yield files, "memory://bucket/parts"
    files.rm("/bucket", recursive=True)


@pytest.fixture
def fetched(monkeypatch):
    """What is copied, by name."""
    names, fetch = [], Bucket._fetch

    def record(bucket, path, copy):
        names.append(copy.name)
        fetch(bucket, path, copy)

    monkeypatch.setattr(Bucket, "_fetch", record)
    return names


def content(folder):
    """The images in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}


def test_the_copy_follows_the_original(tmp_path, remote, fetched):
    files, url = remote
    bucket = Bucket(url, tmp_path / "cache")
    bucket.copy()
    original = content(tmp_path / "original")
    assert content(bucket.folder) == original and len(fetched) == len(original)
    fetched.clear()
    Bucket(f"{url}/", tmp_path / "cache").copy()
    assert not fetched
    files.pipe("/bucket/parts/bottle/train/good/000.png", b"changed")
    files.rm("/bucket/parts/bottle/train/good/001.png")
    (bucket.folder / "bottle/train/good/002.png").unlink()
    Bucket(url, tmp_path / "cache").copy()
    assert sorted(fetched) == ["000.png", "002.png"]
    original["bottle/train/good/000.png"] = b"changed"
    del original["bottle/train/good/001.png"]
    assert content(bucket.folder) == original


def test_a_stopped_copy_goes_on(tmp_path, remote, fetched, monkeypatch):
    monkeypatch.setattr(module, "THREADS", 1)
    bucket, fetch = Bucket(remote[1], tmp_path / "cache"), Bucket._fetch

    def stop_after_five(*words):
        if len(fetched) == 5:
            raise KeyboardInterrupt
        fetch(*words)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Bucket, "_fetch", stop_after_five)
        bucket.copy()
    with bucket.folder.with_suffix(".jsonl").open("a") as journal:
        journal.write('\n["bottle/train/go')  # killed while it wrote
    first = set(fetched)
    bucket.copy()
    assert content(bucket.folder) == content(tmp_path / "original")
    assert len(first) <= 5 and len(fetched) == len(content(tmp_path / "original"))


def test_a_run_is_that_of_the_folder(adlight, remote, tmp_path):
    words = [word for word in adlight.quick if not word.startswith("dataset.root")]
    folder = adlight.train(*words, f"dataset.root={tmp_path / 'original'}")
    run = adlight.train(*words, f"dataset.root={remote[1]}", f"dataset.cache_dir={tmp_path / 'cache'}")
    assert numbers(run) == numbers(folder)
    outcome = adlight("doctor", "dataset=mvtec", f"dataset.root={remote[1]}", f"dataset.cache_dir={tmp_path / 'new'}")
    assert "bottle" in outcome.out


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("memory://bucket/nothing", "memory://bucket/nothing"),
        ("unheard-of://bucket", "unheard-of://bucket"),
        ("nonsense://bucket", "nonsense"),
        ("zip://*.png::memory://bucket/x.zip", "zip://"),
    ],
)
def test_bad_urls_are_one_line(adlight, remote, url, named):
    outcome = adlight("train", *adlight.quick, f"dataset.root='{url}'")
    assert outcome.code in (1, 2) and named in outcome.err and len(outcome.err.splitlines()) <= 2


def test_a_copy_needs_a_place(tmp_path, remote):
    with pytest.raises(ValueError, match="cache_dir"):
        Bucket(remote[1], None)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cache_dir"):
        Bucket(remote[1], tmp_path / "file").copy()


def test_nothing_is_written_outside_the_copy(tmp_path, remote):
    files, url = remote
    files.store["/bucket/parts/../../escaped.png"] = files.store["/bucket/parts/readme.txt"]
    Bucket(url, tmp_path / "cache").copy()
    assert content(tmp_path / "cache") and not list(tmp_path.rglob("escaped.png"))
    del files.store["/bucket/parts/../../escaped.png"]
