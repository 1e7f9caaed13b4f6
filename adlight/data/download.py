"""Download MVTec AD: resume broken downloads, verify archives before use, show the licence.

The URLs of single categories are the share links of MVTec's download page (`PAGE`), as quoted by public scripts in
2026; MVTec renews them occasionally, and old links answer 404. The SHA-256 of the whole archive is anomalib's
(open-edge-platform/anomalib, src/anomalib/data/datamodules/image/mvtecad.py). No hashes are published for single
categories: their archives must pass the checksums of xz and contain the numbers of images in the paper (Bergmann et
al., CVPR 2019, table 1). Nothing is installed before that.
"""

import hashlib
import lzma
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from rich.console import Console
from rich.progress import DownloadColumn, Progress, TaskID, TransferSpeedColumn

from adlight.data.listing import list_images
from adlight.types import UserError, first_line

LICENCE = (
    "MVTec AD: Copyright 2019 MVTec Software GmbH, licence CC BY-NC-SA 4.0 (no commercial use), "
    "http://creativecommons.org/licenses/by-nc-sa/4.0/. Cite: Bergmann et al., CVPR 2019."
)
PAGE = "https://www.mvtec.com/company/research/datasets/mvtec-ad"
SHARES = "https://www.mydrive.ch/shares"
CHUNK = 1 << 20  # bytes
ATTEMPTS = 4  # per download; each resumes where the previous one stopped
PAUSE = 3.0  # seconds between attempts
TIMEOUT = 60.0  # seconds without data


class Archive(NamedTuple):
    """A file to download."""

    url: str
    sha256: str | None = None  # None if no hash is published

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.url.rsplit("/", 1)[-1]


WHOLE = Archive(
    f"{SHARES}/150996/b52ecdcbf521176e9db9c731f2304b27/download/420938113-1629960298/mvtec_anomaly_detection.tar.xz",
    sha256="cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d",
)
# name, share, file, and the numbers of images in train/good, in test/good and in the other test folders
_TABLE = [
    ("bottle", "150452/132a93367fb17cdf968dfb5c4013f6e7", "420937370-1629958698", (209, 20, 63)),
    ("cable", "150453/10f960e07fec2838b2cd512586633a32", "420937413-1629958794", (224, 58, 92)),
    ("capsule", "150454/e0ce6dd74eb150f46c0d98131b3703f2", "420937454-1629958872", (219, 23, 109)),
    ("carpet", "150455/eac7fbce84d93a5094e13f391170eca4", "420937484-1629959013", (280, 28, 89)),
    ("grid", "150456/bb0b2e3dc804ccb8b4485e01f8e4493b", "420937487-1629959044", (264, 21, 57)),
    ("hazelnut", "150457/51d49f65e84bdc100ff8035d7dd783ea", "420937545-1629959162", (391, 40, 70)),
    ("leather", "150458/923030ce14e10a7d147e95d0f8885f6b", "420937607-1629959262", (245, 32, 92)),
    ("metal_nut", "150459/c68856a21dca589b0f8ff6d4ee0f18f4", "420937637-1629959294", (220, 22, 93)),
    ("pill", "150460/d4f1c04da67034ccc8d8b5fa3e73f244", "420938129-1629960351", (267, 26, 141)),
    ("screw", "150461/242f454cc6385e5693c4fd4b94567d1e", "420938130-1629960389", (320, 41, 119)),
    ("tile", "150462/5479f0fdc97bc6fa16eab0cb0cf0109f", "420938133-1629960456", (230, 33, 84)),
    ("toothbrush", "150463/895a1a5fb84b958f07417784b060434b", "420938134-1629960477", (60, 12, 30)),
    ("transistor", "150464/99b8ea0332438d64fcc2475ee73f9c29", "420938166-1629960554", (213, 60, 40)),
    ("wood", "150465/d5b4115b720cdb54d217e75636e6e374", "420938383-1629960649", (247, 19, 60)),
    ("zipper", "150466/bd155b557520edaf692d9bfdb915c24a", "420938385-1629960680", (240, 32, 119)),
]
CATEGORIES = {row[0]: Archive(f"{SHARES}/{row[1]}/download/{row[2]}/{row[0]}.tar.xz") for row in _TABLE}
COUNTS = {row[0]: row[3] for row in _TABLE}


def download(root: Path, categories: list[str]) -> None:
    """Download categories of MVTec AD to `root`: all 15 as one archive, fewer one by one.

    An archive that the user has put into `root` is used and kept; downloaded archives are removed.

    Raises:
        UserError: a folder of the category exists, or the download or verification failed; the message says what to
            download by hand and where to put it.
    """
    for category in categories:
        if (root / category).exists():
            raise UserError(f"{root / category} has no folder train/good: move it to download the category again")
    Console(stderr=True).print(LICENCE, soft_wrap=True)
    if len(categories) == len(COUNTS) or (root / WHOLE.name).exists():
        install(WHOLE, root, categories)
    else:
        for category in categories:
            install(CATEGORIES[category], root, [category])


def install(archive: Archive, root: Path, categories: list[str]) -> None:
    """Download, verify and unpack an archive; a category's folder appears in `root` only once it is complete."""
    path = root / archive.name
    by_hand = path.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        if not by_hand:
            fetch(archive.url, path)
        if archive.sha256:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != archive.sha256:
                raise ValueError(f"rejected, its SHA-256 is {found}, expected {archive.sha256}")
        unpack(path, root, categories)
    except (OSError, HTTPException, lzma.LZMAError, tarfile.TarError, EOFError, ValueError) as error:
        reason = first_line(error)
        if not by_hand:
            path.unlink(missing_ok=True)  # complete but wrong; incomplete downloads are in .part files
        raise UserError(
            f"{path if by_hand else archive.url}: {reason}; fetch {path.name} by hand from {PAGE} and put it into "
            f"{root.absolute()}" + ("" if by_hand else ", or run again to resume the download")
        ) from error
    if not by_hand:
        path.unlink()


def fetch(url: str, path: Path) -> None:
    """Download `url` to `path` through `<path>.part`, resuming an earlier download; raise an OSError if this fails."""
    part = path.with_name(f"{path.name}.part")
    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(path.name, total=None)
        for _ in range(ATTEMPTS):
            try:
                if _fetch_rest(url, part, progress, task):
                    part.rename(path)
                    return
            except urllib.error.URLError:  # no connection or an HTTP error: another attempt would not help
                raise
            except (ConnectionError, TimeoutError, HTTPException):
                pass
            time.sleep(PAUSE)
    raise OSError(f"the connection broke off {ATTEMPTS} times")


def _fetch_rest(url: str, part: Path, progress: Progress, task: TaskID) -> bool:
    """Append the missing bytes to `part`. -> whether it is complete."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "adlight"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # range not satisfiable
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":  # already complete
            return True
        part.unlink()  # longer than the file, so it belongs to another file
        return False
    if not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
        have = 0  # the server ignores Range and sends the whole file
    length = response.headers.get("Content-Length")
    total = have + int(length) if length else None
    progress.update(task, total=total, completed=have)
    with response, part.open("ab" if have else "wb") as file:
        while chunk := response.read(CHUNK):
            file.write(chunk)
            progress.advance(task, len(chunk))
    return total is None or part.stat().st_size == total


def unpack(path: Path, root: Path, categories: list[str]) -> None:
    """Unpack categories into `root`; each is moved there only if its number of images is correct.

    Raises:
        ValueError: a category is missing, or the number of its images differs from the paper's.
        lzma.LZMAError, EOFError, tarfile.TarError: the archive is damaged, or a member points outside of its folder.
    """
    with tempfile.TemporaryDirectory(dir=root, prefix=".unpack-") as staging:
        with tarfile.open(path, "r:xz") as archive:
            for member in archive:
                if set(PurePosixPath(member.name).parts[:2]) & set(categories):
                    archive.extract(member, staging, filter="data")
        for category in categories:
            folder = next(iter([*Path(staging).glob(category), *Path(staging).glob(f"*/{category}")]), None)
            if folder is None:
                raise ValueError(f"rejected, it holds no folder {category}")
            test = list_images(folder / "test")
            good = sum(path.parent.name == "good" for path in test)
            found = len(list_images(folder / "train" / "good")), good, len(test) - good
            if found != COUNTS[category]:
                counts = f"{found} images in train/good, test/good and defects, expected {COUNTS[category]}"
                raise ValueError(f"rejected, {category} has {counts}")
            folder.rename(root / category)
