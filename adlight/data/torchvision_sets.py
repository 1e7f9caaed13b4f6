"""MNIST and CIFAR-10 with one class normal and all others anomalous; torchvision reads and downloads them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from adlight.data.source import Source, balanced, check_limits, limits_note, subsample
from adlight.types import Record, UserError, unknown_name


class OneVsRest(Source):
    """Base of the two; a record's path is its place in torchvision's set.

    Args:
        root: the folder that torchvision takes.
        normal: the normal class, by name or number.
        download: let torchvision fetch the files if they are missing.
        balanced_test: of the other classes test only as many images as of the normal one, drawn by `seed`.
        train_limit: at most so many training images, drawn by `seed`.
        test_limit: at most so many test images, normal and anomalous in their own share, drawn by `seed`.
        seed: of these draws.
    """

    title = ""
    noun = ""  # what a class is called
    files = ""  # where torchvision looks, below the root
    classes: Sequence[str] = ()  # in the order of their numbers

    def __init__(
        self,
        root: str | Path,
        *,
        normal: int | str,
        download: bool,
        balanced_test: bool,
        train_limit: int | None,
        test_limit: int | None,
        seed: int,
    ) -> None:
        check_limits(train_limit=train_limit, test_limit=test_limit)
        self.root, self.normal = Path(root), self._number(normal)
        self.download, self.balanced_test = download, balanced_test
        self.train_limit, self.test_limit, self.seed = train_limit, test_limit, seed
        self.opened: dict[str, Any] = {}  # torchvision sets by split; one reading of the files serves a whole run
        few = f"its 1,000 test images and 1,000 of the other classes (seed {seed})"
        self.protocol = f"{self.title}, {self.noun}{self.classes[self.normal]} normal, "
        self.protocol += few if balanced_test else "all 10,000 test images"
        self.protocol += limits_note(train_limit, test_limit, seed)

    def prepare(self) -> None:
        """Let torchvision download what is missing, if that was asked for.

        Raises:
            UserError: the download failed; the text says where to put the files by hand.
        """
        if not self.download:
            return
        try:
            self._torchvision("train", download=True)
        except (RuntimeError, OSError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"no download of {self.title} ({reason}): put its files into {self.root / self.files} by hand"
            ) from error

    def train(self) -> list[Record]:
        """List the normal class's training images."""
        records = [record for record in self._records("train") if record.label == 0]
        return subsample(records, self.train_limit, self.seed)

    def test(self) -> list[Record]:
        """List the test images in torchvision's order."""
        records = self._records("test")
        if self.balanced_test:
            records = balanced(records, self.seed)
        return subsample(records, self.test_limit, self.seed)

    def read(self, record: Record) -> Image.Image:
        """Read one image: mode L (MNIST) or RGB (CIFAR-10)."""
        split, number = record.path.split("/")
        return self._open(split)[int(number)][0]

    def _records(self, split: str) -> list[Record]:
        category = self.classes[self.normal]
        records = []
        for i, number in enumerate(map(int, self._open(split).targets)):
            kind = ("good", 0) if number == self.normal else (self.classes[number], 1)
            records.append(Record(f"{split}/{i:05d}", category, *kind))
        return records

    def _open(self, split: str) -> Any:
        """The torchvision set of a split.

        Raises:
            UserError: its files are missing or damaged.
        """
        try:
            if split not in self.opened:
                self.opened[split] = self._torchvision(split)
            return self.opened[split]
        except (RuntimeError, OSError, ValueError, AssertionError, IndexError) as error:
            reason = " ".join(str(error).split()).split(". You can")[0] or type(error).__name__
            raise UserError(
                f"{self.title}: {reason}; expected in {self.root / self.files}: set dataset.root to "
                f"the folder that holds {self.files}, or get them with dataset.download=true"
            ) from error

    def _torchvision(self, split: str, download: bool = False) -> Any:
        from torchvision import datasets  # takes seconds; only those who use these sets pay

        return getattr(datasets, type(self).__name__)(str(self.root), train=split == "train", download=download)

    def _number(self, normal: int | str) -> int:
        """Number of a class given by number or name.

        Raises:
            UserError: there is no such class; the text lists them.
        """
        names = [str(number) for number in range(len(self.classes))]
        for choices in (self.classes, names):
            if str(normal) in choices:
                return list(choices).index(str(normal))
        raise UserError(
            f"dataset.normal, a name or 0 to 9: {unknown_name(f'{self.title} class', str(normal), self.classes)}"
        )


class MNIST(OneVsRest):
    """MNIST: one digit is normal, tested on all 10,000 test images (thesis, 4.3.1).

    `root` is the folder that holds `MNIST/raw`; the other arguments are `OneVsRest`'s.
    """

    name = "mnist"
    title = "MNIST"
    noun = "digit "
    files = "MNIST/raw"
    classes = tuple("0123456789")

    def __init__(
        self,
        root: str | Path,
        *,
        normal: int | str = 0,
        download: bool = False,
        train_limit: int | None = None,
        test_limit: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            root,
            normal=normal,
            download=download,
            balanced_test=False,
            train_limit=train_limit,
            test_limit=test_limit,
            seed=seed,
        )


class CIFAR10(OneVsRest):
    """CIFAR-10: one class is normal, tested on its 1,000 test images and 1,000 others (thesis, 4.3.2).

    `root` is the folder that holds `cifar-10-batches-py`; the other arguments are `OneVsRest`'s.
    """

    name = "cifar10"
    title = "CIFAR-10"
    files = "cifar-10-batches-py"
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

    def __init__(
        self,
        root: str | Path,
        *,
        normal: int | str = "automobile",
        download: bool = False,
        balanced_test: bool = True,
        train_limit: int | None = None,
        test_limit: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            root,
            normal=normal,
            download=download,
            balanced_test=balanced_test,
            train_limit=train_limit,
            test_limit=test_limit,
            seed=seed,
        )
