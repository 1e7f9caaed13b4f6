"""MVTec AD, and every data set in its layout; the synthetic set, which is written in it.

    <root>/<category>/train/good/*.png
    <root>/<category>/test/{good,<defect>}/*.png
    <root>/<category>/ground_truth/<defect>/<stem>_mask.png

Bergmann et al., "MVTec AD: A Comprehensive Real-World Dataset for Unsupervised Anomaly Detection", CVPR 2019.
"""

from collections.abc import Sequence
from pathlib import Path

from adlight.data.images import describe_folder, list_folders, list_images
from adlight.data.source import Source, check_limits, limits_note, subsample
from adlight.types import Record, UserError, unknown_name


class MVTecAD(Source):
    """Data in MVTec AD's layout: one category, several, or all that lie in the folder.

    Args:
        root: folder that holds one folder a category.
        category: a name, several names, or `all` for every category found (with `download`: the official 15).
        download: fetch wanted categories that are missing (CC BY-NC-SA 4.0; see `adlight.data.download`).
        train_limit: at most so many training images of each category, drawn by `seed`.
        test_limit: at most so many test images of each category, normal and anomalous in their own share.
        seed: of these draws.
    """

    name = "mvtec"
    title = "MVTec AD layout"
    remedy = "set dataset.root to your copy, or get it with dataset.download=true"

    def __init__(
        self,
        root: str | Path,
        *,
        category: str | Sequence[str] = "all",
        download: bool = False,
        train_limit: int | None = None,
        test_limit: int | None = None,
        seed: int = 0,
    ) -> None:
        check_limits(train_limit=train_limit, test_limit=test_limit)
        self.root = Path(root)
        names = _names(category)
        self.wanted = None if names == ["all"] else names  # None: all
        self.download = download
        self.train_limit, self.test_limit, self.seed = train_limit, test_limit, seed
        which = "all categories" if self.wanted is None else ", ".join(self.wanted)
        each = " (of each category)" if train_limit or test_limit else ""
        self.protocol = f"{self.title}, {which}: train/good is normal, the labelled test folders are tested"
        self.protocol += limits_note(train_limit, test_limit, seed) + each

    def prepare(self) -> None:
        """Download the wanted categories that are missing, if that was asked for.

        Raises:
            UserError: the download failed; the text says what to fetch by hand.
        """
        if not self.download:
            return
        from adlight.data import download  # keeps rich and urllib out of runs that download nothing

        found = self.found()
        official = sorted(download.COUNTS)
        missing = [name for name in self.wanted or official if name not in found]
        for name in missing:
            if name not in official:
                raise UserError(unknown_name("MVTec AD category", name, sorted({*official, *found})))
        if missing:
            download.download(self.root, missing)

    def found(self) -> list[str]:
        """Names of the category folders in the root (those with a train/good), sorted."""
        return [name for name in list_folders(self.root) if _is_category(self.root / name)]

    def categories(self) -> list[str]:
        """Names of the categories in use, in the order asked for.

        Raises:
            UserError: the root holds no category, or not one that was asked for.
        """
        found = self.found()
        if not found:
            raise UserError(self._nothing_found())
        for name in self.wanted or []:
            if name not in found:
                if (self.root / name).is_dir():
                    raise UserError(f"{self.root / name} has no folder train/good: expected {self._expected(name)}")
                raise UserError(f"{unknown_name(f'category in {self.root}:', name, found)}; {self.remedy}")
        return self.wanted or found

    def train(self) -> list[Record]:
        """List the images in train/good of every category in use."""
        records = []
        for name in self.categories():
            folder = self.root / name / "train" / "good"
            images = list_images(folder)
            if not images:
                raise UserError(f"no images in {folder}: expected {self._expected(name)} (PNG, JPEG, BMP or TIFF)")
            records += subsample([Record(str(image), name) for image in images], self.train_limit, self.seed)
        return records

    def test(self) -> list[Record]:
        """List the test images; one without a mask file has mask None."""
        records = []
        for name in self.categories():
            records += subsample(_test_records(self.root / name), self.test_limit, self.seed)
        return records

    def _expected(self, category: str = "<category>") -> str:
        return f"{self.root / category}/{{train/good, test/<defect>, ground_truth/<defect>}}"

    def _nothing_found(self) -> str:
        root = self.root.absolute()
        if _is_category(root):
            use = f"dataset.root={root.parent} dataset.category={root.name}"
            return f"{root} looks like one category: use {use}"
        inner = [name for name in list_folders(root) if MVTecAD(root / name).found()]
        hint = f"did you mean dataset.root={root / inner[0]}? otherwise " if inner else ""
        found = f"expected {self._expected()}, found {describe_folder(root)}"
        return f"no categories in {root}: {found}; {hint}{self.remedy}"


class Synthetic(MVTecAD):
    """Procedural textures and objects with defects and exact masks, written on first use in that layout.

    Args:
        root: folder to write them to, always all categories, so that every choice of them finds the same set.
        category: a name, several names, or `all`.
        seed: of the images, and of the draws by the limits.
        size: height and width in pixels.
        train: normal training images of each category.
        test: test images of each category.
        train_limit: as in `MVTecAD`.
        test_limit: as in `MVTecAD`.
    """

    name = "synthetic"
    title = "synthetic images"
    remedy = "prepare() writes them there"

    def __init__(
        self,
        root: str | Path,
        *,
        category: str | Sequence[str] = "all",
        seed: int = 0,
        size: int = 128,
        train: int = 100,
        test: int = 40,
        train_limit: int | None = None,
        test_limit: int | None = None,
    ) -> None:
        super().__init__(root, category=category, train_limit=train_limit, test_limit=test_limit, seed=seed)
        self.size, self.train_count, self.test_count = size, train, test

    def prepare(self) -> None:
        """Write the images, unless they are there already."""
        from adlight.data import synthetic

        counts = {"train": self.train_count, "test": self.test_count}
        synthetic.generate(self.root, seed=self.seed, size=self.size, categories=list(synthetic.SCENES), **counts)


def _names(category: str | Sequence[str]) -> list[str]:
    names = [category] if isinstance(category, str) else [str(name) for name in category]
    if not names or not all(names):
        raise UserError("dataset.category is empty: give a name, a list of names, or all")
    return list(dict.fromkeys(names))  # a category named twice is used once


def _is_category(folder: Path) -> bool:
    return (folder / "train" / "good").is_dir()


def _test_records(category: Path) -> list[Record]:
    """Test records of one category folder, by defect and file name."""
    records = []
    for defect in list_folders(category / "test"):
        masks = {path.stem: path for path in list_images(category / "ground_truth" / defect)}
        for image in list_images(category / "test" / defect):
            # official masks are called <stem>_mask, those of some sets in the same layout <stem>
            mask = masks.get(f"{image.stem}_mask", masks.get(image.stem)) if defect != "good" else None
            records.append(
                Record(str(image), category.name, defect, int(defect != "good"), str(mask) if mask else None)
            )
    return records
