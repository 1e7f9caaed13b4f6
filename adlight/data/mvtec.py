"""MVTec AD and other data sets in its layout, including the synthetic data set.

    <root>/<category>/train/good/*.png
    <root>/<category>/test/{good,<defect>}/*.png
    <root>/<category>/ground_truth/<defect>/<stem>_mask.png

Bergmann et al., "MVTec AD: A Comprehensive Real-World Dataset for Unsupervised Anomaly Detection", CVPR 2019.
"""

import json
from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveInt

from adlight.data import synthetic
from adlight.data.listing import describe_folder, is_folder, list_folders, list_images, match_masks, means_normal
from adlight.data.source import Limit, Names, Sampling, Source, require_images
from adlight.settings import PathName, Seed, checked
from adlight.types import Record, UserError, unknown_name

LAYOUT = "{train/good, test/<defect>, ground_truth/<defect>}"  # of a category


class MVTecAD(Source):
    """A data set in MVTec AD's layout: one category, several, or all in the folder.

    Args:
        root: folder that holds one folder per category.
        category: a name, several names, or `all` for every category found (with `download`, the official 15).
        download: whether to fetch missing categories (CC BY-NC-SA 4.0; see `adlight.data.download`).
        train_limit, test_limit, seed: see `Sampling`; the limits hold for each category.
    """

    title = "MVTec AD layout"
    remedy = "set root to your copy, or get it with download=true"
    needs_masks = True

    @checked
    def __init__(
        self,
        root: PathName,
        *,
        category: Names = "all",
        download: bool = False,
        train_limit: Limit = None,
        test_limit: Limit = None,
        seed: Seed = 0,
    ) -> None:
        names = [str(name) for name in ([category] if isinstance(category, str | int) else category)]
        self.root, self.download = Path(root), download
        self.selected = None if names == ["all"] else list(dict.fromkeys(names))  # None: all
        self.sampling = Sampling(train_limit, test_limit, seed=seed)
        which = "all categories" if self.selected is None else ", ".join(self.selected)
        limits = self.sampling.describe()
        self.protocol = f"{self.title}, {which}: train/good is normal, the labelled test folders are tested"
        self.protocol += f"{limits} (of each category)" if limits else ""

    def prepare(self) -> None:
        """Download missing categories if `download` is set."""
        if not self.download:
            return
        from adlight.data import download  # keeps rich and urllib out of runs that download nothing

        found, official = self.found(), sorted(download.COUNTS)
        missing = [name for name in self.selected or official if name not in found]
        if unknown := [name for name in missing if name not in official]:
            raise UserError(unknown_name("MVTec AD category", unknown[0], sorted({*official, *found})))
        if missing:
            download.download(self.root, missing)

    def found(self) -> list[str]:
        """List the names of the category folders, which contain train/good, sorted."""
        return [name for name in list_folders(self.root) if is_folder(self.root / name / "train" / "good")]

    def categories(self) -> list[str]:
        """List the categories in use, in the order of the setting; raise a UserError if any is missing."""
        found = self.found()
        if not found:
            raise UserError(self._explain_empty_root())
        for name in self.selected or []:
            folder = self.root / name
            if name not in found and folder.is_dir():
                raise UserError(f"{folder} has no folder train/good: expected {folder}/{LAYOUT}")
            if name not in found:
                raise UserError(f"{unknown_name('category', name, found)} in {self.root}: {self.remedy}")
        return self.selected or found

    def folders(self) -> list[Path]:
        """List the folders of every category in use."""
        return [self.root / name / part for name in self.categories() for part in ("train", "test", "ground_truth")]

    def train(self) -> list[Record]:
        """List the images in train/good of every category in use."""
        records = []
        for name in self.categories():
            images = require_images(self.root / name / "train" / "good", "root")
            records += self.sampling.train([Record(str(image), name) for image in images])
        return records

    def test(self) -> list[Record]:
        """List the test images; images without a mask file have no mask."""
        return [record for name in self.categories() for record in self.sampling.test(self._test_records(name))]

    def _test_records(self, category: str) -> list[Record]:
        records = []
        for defect in list_folders(self.root / category / "test"):
            folder, masks = (self.root / category / part / defect for part in ("test", "ground_truth"))
            label = int(defect != "good")
            if label and means_normal(defect):
                raise UserError(f"{folder} would be tested as a defect: call the folder of normal images good")
            images = list_images(folder)
            mask_of = match_masks(images, folder, list_images(masks), masks) if label else {}
            records += [Record(str(image), category, defect, label, mask_of.get(image)) for image in images]
        return records

    def find_orphan_masks(self) -> list[str]:
        """Report each mask whose image is missing."""
        problems = []
        for category in self.categories():
            for defect in list_folders(self.root / category / "ground_truth"):
                folder, masks = (self.root / category / part / defect for part in ("test", "ground_truth"))
                stems = {path.stem for path in list_images(folder)}
                for mask in list_images(masks):
                    if not {mask.stem, mask.stem.removesuffix("_mask")} & stems:
                        problems.append(f"mask {mask} has no image in {folder}: add it, rename the mask or remove it")
        return problems

    def _explain_empty_root(self) -> str:
        root = self.root.absolute()
        if is_folder(root / "train" / "good"):
            return f"{root} looks like one category: set root={root.parent} category={root.name}"
        inner = [name for name in list_folders(root) if MVTecAD(root / name).found()]
        hint = f"did you mean root={root / inner[0]}? otherwise " if inner else ""
        found = f"expected {self.root}/<category>/{LAYOUT}, found {describe_folder(root)}"
        return f"no categories in {root}: {found}; {hint}{self.remedy}"


class Synthetic(MVTecAD):
    """Procedural textures and objects with defects and exact masks, written on first use.

    Args:
        root: folder to which all categories are written, even unused ones.
        category, train_limit, test_limit: see `MVTecAD`.
        size: height and width in pixels; below 32, threads and parts would be thinner than a pixel.
        train: number of normal training images per category.
        test: number of test images per category; two in seven are normal, the rest covers all kinds of defects evenly.
        seed: seed of the images, and of `Sampling`.
    """

    title = "synthetic images"
    remedy = "prepare() writes them there"

    @checked
    def __init__(
        self,
        root: PathName,
        *,
        category: Names = "all",
        size: Annotated[int, Field(ge=32)] = 128,
        train: PositiveInt = 60,
        test: Annotated[int, Field(ge=2)] = 35,
        train_limit: Limit = None,
        test_limit: Limit = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__(root, category=category, train_limit=train_limit, test_limit=test_limit, seed=seed)
        self.settings = {"size": size, "train": train, "test": test, "seed": seed}

    def prepare(self) -> None:
        """Write the images unless they exist; raise a UserError if the folder holds anything else."""
        if self._is_complete():
            return
        try:
            self.root.parent.mkdir(parents=True, exist_ok=True)
            synthetic.generate(self.root, **self.settings)
        except OSError as error:
            if not self._is_complete():  # another process may have been faster
                raise UserError(f"cannot write the synthetic set to {self.root}: {error}") from error

    def _is_complete(self) -> bool:
        remedy, marker = "set root to another folder, or remove this one", self.root / synthetic.MARKER
        if marker.exists():
            found, expected = json.loads(marker.read_text()), self.settings | {"version": synthetic.VERSION}
            if other := [key for key in expected if found.get(key) != expected[key]]:
                differences = ", ".join(f"{key} {found.get(key)} instead of {expected[key]}" for key in other)
                raise UserError(f"{self.root} holds a synthetic set with {differences}: {remedy}")
            return True
        if self.root.exists() and not (self.root.is_dir() and not any(self.root.iterdir())):
            raise UserError(f"{self.root} is not a synthetic set (missing {synthetic.MARKER}): {remedy}")
        return False
