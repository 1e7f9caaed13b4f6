"""MNIST and CIFAR-10 with one normal class, read and downloaded by torchvision; all other classes are anomalous."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from adlight.data.source import Limit, Sampling, Source
from adlight.settings import PathName, Seed, Text, checked
from adlight.types import Record, UserError, unknown_name


class OneVsRest(Source):
    """A torchvision data set of labelled classes; the path of a record is its index, such as `test/00012`.

    Args:
        root: folder of torchvision's data sets.
        normal: the normal class, by name or number.
        download: whether torchvision fetches missing files.
        balanced_test, train_limit, test_limit, seed: see `Sampling`.

    Raises:
        ValueError: the class is unknown.
    """

    title = ""
    noun = ""  # precedes the name of a class, such as `digit `
    files = ""  # folder of the files below the root
    classes: Sequence[str] = ()  # in the order of their numbers

    @checked
    def __init__(
        self,
        root: PathName,
        *,
        normal: int | Text,
        download: bool = False,
        balanced_test: bool = False,
        train_limit: Limit = None,
        test_limit: Limit = None,
        seed: Seed = 0,
    ) -> None:
        names = {str(number): number for number in range(len(self.classes))}
        names |= {name: number for number, name in enumerate(self.classes)}
        if str(normal) not in names:
            raise ValueError(f"normal: {unknown_name('class', str(normal), self.classes)}")
        self.root, self.normal, self.download = Path(root), names[str(normal)], download
        self.sampling = Sampling(train_limit, test_limit, balanced_test, seed)
        self.loaded: dict[str, Any] = {}  # torchvision's data sets by split
        few = f"its test images and as many of the other classes (seed {seed})"
        self.protocol = f"{self.title}, {self.noun}{self.classes[self.normal]} normal, "
        self.protocol += (few if balanced_test else "all 10,000 test images") + self.sampling.describe()

    def prepare(self) -> None:
        """Download missing files if `download` is set."""
        if not self.download:
            return
        try:
            self._torchvision("train", download=True)
        except (RuntimeError, OSError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"cannot download {self.title} ({reason}): put its files into {self.root / self.files} by hand"
            ) from error

    def train(self) -> list[Record]:
        """List the normal class's training images."""
        return self.sampling.train([record for record in self._records("train") if record.label == 0])

    def test(self) -> list[Record]:
        """List the test images in torchvision's order."""
        return self.sampling.test(self._records("test"))

    def sizes(self) -> list[tuple[int, int]]:
        """Return no sizes, because all images have the same size."""
        return []

    def read(self, record: Record) -> Image.Image:
        """Read one image: mode L (MNIST) or RGB (CIFAR-10)."""
        split, number = record.path.split("/")
        return self._load(split)[int(number)][0]

    def _records(self, split: str) -> list[Record]:
        category = self.classes[self.normal]
        records = []
        for i, number in enumerate(map(int, self._load(split).targets)):
            defect, label = ("good", 0) if number == self.normal else (self.classes[number], 1)
            records.append(Record(f"{split}/{i:05d}", category, defect, label))
        return records

    def _load(self, split: str) -> Any:
        try:
            if split not in self.loaded:
                self.loaded[split] = self._torchvision(split)
            return self.loaded[split]
        except (RuntimeError, OSError, ValueError, AssertionError, IndexError) as error:
            reason = str(error).partition(".")[0] or type(error).__name__  # without torchvision's advice
            raise UserError(
                f"{self.title}: {reason}; expected in {self.root / self.files}: set root to the folder that holds "
                f"{self.files}, or get them with download=true"
            ) from error

    def _torchvision(self, split: str, download: bool = False) -> Any:
        from torchvision import datasets  # takes seconds to import

        return getattr(datasets, type(self).__name__)(str(self.root), train=split == "train", download=download)


class MNIST(OneVsRest):
    """MNIST (thesis, 4.3.1); `root` is the folder that holds `MNIST/raw`."""

    title = "MNIST"
    noun = "digit "
    files = "MNIST/raw"
    classes = tuple("0123456789")

    def _torchvision(self, split: str, download: bool = False) -> Any:
        name = "train" if split == "train" else "t10k"
        images, labels = (self.root / self.files / f"{name}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1"))
        if not download and images.is_file() and labels.is_file():
            _check_idx(images, labels)  # torchvision reads inconsistent files without an error
        return super()._torchvision(split, download)


class CIFAR10(OneVsRest):
    """CIFAR-10 (thesis, 4.3.2); `root` is the folder that holds `cifar-10-batches-py`."""

    title = "CIFAR-10"
    files = "cifar-10-batches-py"
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def _check_idx(images: Path, labels: Path) -> None:
    """Compare the headers of two idx files with their lengths and with each other, and check the labels."""
    remedy = "remove it and get it again with download=true"
    counts = []
    for path, item in ((images, (28, 28)), (labels, ())):
        with path.open("rb") as file:
            header = file.read(8 + 4 * len(item))
        size, magic = path.stat().st_size, bytes((0, 0, 8, 1 + len(item)))
        count, *shape = np.frombuffer(header[4:], ">i4").tolist() if len(header) == 8 + 4 * len(item) else (0, None)
        if not header.startswith(magic) or tuple(shape) != item:
            raise UserError(f"{path} is not an idx file of {'28x28 images' if item else 'labels'}: {remedy}")
        if size != len(header) + count * math.prod(item):
            raise UserError(f"{path} has {size:,} bytes, which are not the {count:,} items of its header: {remedy}")
        counts.append(count)
    if counts[0] != counts[1]:
        raise UserError(f"{images} holds {counts[0]:,} images, but {labels} {counts[1]:,} labels: get both again")
    if (largest := np.fromfile(labels, np.uint8, offset=8).max(initial=0)) > 9:
        raise UserError(f"{labels} holds the label {largest}, which is not a digit: {remedy}")
