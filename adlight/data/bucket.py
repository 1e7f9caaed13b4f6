"""Data sets in a bucket or on a server: images are copied once, and every run reads the copy."""

import json
import logging
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from adlight.data.listing import IMAGE_SUFFIXES
from adlight.locks import hold_lock
from adlight.progress import track
from adlight.types import UserError, first_line

URL = re.compile(r"[a-z][a-z0-9+]*://[^:]+")  # without fsspec's chains, such as zip://...::s3://...
VERSION = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "created")
THREADS = 16  # number of simultaneous copies


def is_url(place: Any) -> bool:
    """Return whether this is a URL rather than a path."""
    return isinstance(place, str) and "://" in place


class Bucket:
    """A folder at a URL that fsspec can read (s3://, gs://, az://, sftp://, ...), and `folder`, its local copy.

    Raises:
        ValueError: the URL is malformed, or there is no folder for the copy.
    """

    def __init__(self, url: str, cache_dir: str | Path | None) -> None:
        if not URL.fullmatch(url):
            raise ValueError(f"root={url} is not a folder's URL such as s3://bucket/folder")
        if cache_dir is None:
            raise ValueError(f"the images of root={url} are copied: set cache_dir to a folder")
        self.url = url.rstrip("/")
        self.folder = Path(cache_dir).expanduser() / "buckets" / re.sub(r"[^\w.-]+", "-", self.url)

    def copy(self) -> None:
        """Copy new and changed images, and remove copies whose originals are gone; interrupted copying can resume.

        Raises:
            UserError: the URL cannot be read or holds no images, or the copy cannot be written.
        """
        found = self._find()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with hold_lock(self.folder.with_suffix(".locked")):
                self._update(found)
        except OSError as error:
            raise UserError(
                f"{self.url} cannot be copied to {self.folder} ({error}): set cache_dir, or root"
            ) from error

    def _find(self) -> dict[str, tuple[str, str]]:
        """List the images. -> for each path in the copy, the path and the version of the original."""
        for name in ("botocore", "aiobotocore"):
            logging.getLogger(name).setLevel(logging.WARNING)  # they log where they found credentials
        try:
            self.files, base = fsspec.url_to_fs(self.url)
            found = self.files.find(base, detail=True)
        except (ImportError, ValueError) as error:  # no such protocol, or its package is not installed
            raise UserError(f"root={self.url} cannot be read: {first_line(error)}") from error
        except Exception as error:  # each file system raises its own types
            raise UserError(f"root={self.url} cannot be read: {type(error).__name__}: {first_line(error)}") from error
        images = {}
        for path, details in found.items():
            inside = PurePosixPath(path.removeprefix(base).lstrip("/"))
            if inside.suffix.lower() in IMAGE_SUFFIXES and ".." not in inside.parts:
                images[str(inside)] = path, str([details.get(key) for key in ("size", *VERSION)])
        if not images:
            raise UserError(f"root={self.url} holds no images: expected PNG, JPEG, BMP or TIFF files")
        return images

    def _update(self, found: dict[str, tuple[str, str]]) -> None:
        journal = self.folder.with_suffix(".jsonl")  # a line per copy, with path and version; the last line counts
        lines = journal.read_text().splitlines() if journal.exists() else []
        copied = dict(json.loads(line) for line in lines if line.endswith("]"))  # an interruption may truncate a line
        for name in copied.keys() - found.keys():
            (self.folder / name).unlink(missing_ok=True)
        outdated = [
            name for name, (_, version) in found.items()
            if copied.get(name) != version or not (self.folder / name).is_file()
        ]  # fmt: skip
        with journal.open("a") as file, ThreadPoolExecutor(THREADS) as pool:
            done = pool.map(lambda name: self._fetch(found[name][0], self.folder / name), outdated)
            copies = zip(outdated, done, strict=True)
            for name, _ in track(copies, f"copying {self.url}", len(outdated)):
                file.write("\n" + json.dumps([name, found[name][1]]))
                file.flush()

    def _fetch(self, remote: str, copy: Path) -> None:
        copy.parent.mkdir(parents=True, exist_ok=True)
        part = copy.with_name(f"{copy.name}.part")
        self.files.get_file(remote, str(part))
        os.replace(part, copy)
