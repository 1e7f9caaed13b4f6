"""MVTec AD, and every data set in its layout; the synthetic set, which is written in it.

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
from adlight.data.listing import describe_folder, is_folder, list_folders, list_images
from adlight.data.masks import match_masks
from adlight.data.source import Limit, Names, Sampling, Source, means_normal, require_images
from adlight.settings import PathName, Seed, checked
from adlight.types import Record, UserError, unknown_name


class MVTecAD(Source):
    """Data in MVTec AD's layout: one category, several, or all that lie in the folder.

    Args:
        root: folder that holds one folder per category.
        category: a name, several names, or `all` for every category found (with `download`: the official 15).
        download: fetch wanted categories that are missing (CC BY-NC-SA 4.0; see `adlight.data.download`).
        train_limit: largest number of training images of each category, see `Sampling`.
        test_limit: largest number of test images of each category.
        seed: of these draws.

    Raises:
        ValueError: a setting out of range.
    """

    title = "MVTec AD layout"
    remedy = "set root to your copy, or get it with download=true"

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
        self.wanted = None if names == ["all"] else list(dict.fromkeys(names))  # None: all
        self.sampling = Sampling(train_limit, test_limit, seed=seed)
        which = "all categories" if self.wanted is None else ", ".join(self.wanted)
        limits = self.sampling.describe()
        self.protocol = f"{self.title}, {which}: train/good is normal, the labelled test folders are tested"
        self.protocol += f"{limits} (of each category)" if limits else ""

    def prepare(self) -> None:
        """Download the wanted categories that are missing, if that was asked for.

        Raises:
            UserError: the download failed; the message says what to fetch by hand.
        """
        if not self.download:
            return
        from adlight.data import download  # keeps rich and urllib out of runs that download nothing

        found, official = self.found(), sorted(download.COUNTS)
        missing = [name for name in self.wanted or official if name not in found]
        for name in (one for one in missing if one not in official):
            raise UserError(unknown_name("MVTec AD category", name, sorted({*official, *found})))
        if missing:
            download.download(self.root, missing)

    def found(self) -> list[str]:
        """List the names of the category folders in the root (those with a train/good), sorted."""
        return [name for name in list_folders(self.root) if is_folder(self.root / name / "train" / "good")]

    def categories(self) -> list[str]:
        """List the names of the categories in use, in the order asked for.

        Raises:
            UserError: the root holds no category, or not one that was asked for.
        """
        found = self.found()
        if not found:
            raise UserError(self._explain_empty_root())
        for name in self.wanted or []:
            if name not in found:
                if (self.root / name).is_dir():
                    raise UserError(f"{self.root / name} has no folder train/good: expected {self._layout(name)}")
                raise UserError(f"{unknown_name('category', name, found)} in {self.root}: {self.remedy}")
        return self.wanted or found

    def folders(self) -> list[Path]:
        """List the three folders of every category in use."""
        return [self.root / name / part for name in self.categories() for part in ("train", "test", "ground_truth")]

    def train(self) -> list[Record]:
        """List the images in train/good of every category in use."""
        records = []
        for name in self.categories():
            images = require_images(self.root / name / "train" / "good", "root")
            records += self.sampling.train([Record(str(image), name) for image in images])
        return records

    def test(self) -> list[Record]:
        """List the test images; one without a mask file has mask None."""
        records = []
        for name in self.categories():
            records += self.sampling.test(_test_records(self.root / name))
        return records

    def _layout(self, category: str = "<category>") -> str:
        return f"{self.root / category}/{{train/good, test/<defect>, ground_truth/<defect>}}"

    def _explain_empty_root(self) -> str:
        root = self.root.absolute()
        if is_folder(root / "train" / "good"):
            return f"{root} looks like one category: set root={root.parent} category={root.name}"
        inner = [name for name in list_folders(root) if MVTecAD(root / name).found()]
        hint = f"did you mean root={root / inner[0]}? otherwise " if inner else ""
        found = f"expected {self._layout()}, found {describe_folder(root)}"
        return f"no categories in {root}: {found}; {hint}{self.remedy}"


class Synthetic(MVTecAD):
    """Procedural textures and objects with defects and exact masks, written on first use in that layout.

    Args:
        root: folder to write them to, always all categories, so that every choice of them finds the same set.
        category: a name, several names, or `all`.
        size: height and width in pixels, at least 32: threads and parts would be thinner than a pixel.
        train: normal training images per category.
        test: test images per category; two in seven are good, the others spread evenly over the kinds of defect.
        train_limit, test_limit: as in `MVTecAD`.
        seed: of the images, and of the draws by the limits.
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
        """Write the images, unless they are there already.

        Raises:
            UserError: a number is too small, or the folder holds something else, such as a set of another version.
        """
        if self._is_complete():
            return
        try:
            self.root.parent.mkdir(parents=True, exist_ok=True)
            synthetic.generate(self.root, **self.settings)
        except OSError as error:
            if not self._is_complete():  # another process may have been faster
                raise UserError(f"cannot write the synthetic set to {self.root}: {error}") from error

    def _is_complete(self) -> bool:
        remedy, marker = "set root to another folder or remove that one", self.root / synthetic.MARKER
        if not marker.exists():
            if self.root.exists() and not (self.root.is_dir() and not any(self.root.iterdir())):
                raise UserError(f"{self.root} is not a synthetic set (missing {synthetic.MARKER}): {remedy}")
            return False
        found, wanted = json.loads(marker.read_text()), self.settings | {"version": synthetic.VERSION}
        if other := [key for key in wanted if found.get(key) != wanted[key]]:
            differences = ", ".join(f"{key} {found.get(key)} instead of {wanted[key]}" for key in other)
            raise UserError(f"{self.root} holds a synthetic set with {differences}: {remedy}")
        return True


def _test_records(category: Path) -> list[Record]:
    records = []
    for defect in list_folders(category / "test"):
        label, folder, masks = int(defect != "good"), category / "test" / defect, category / "ground_truth" / defect
        if label and means_normal(defect):
            raise UserError(f"{folder} would be tested as a defect: call the folder of normal images good")
        images = list_images(folder)
        mask_of = match_masks(images, folder, list_images(masks), masks) if label else {}
        records += [Record(str(image), category.name, defect, label, mask_of.get(image)) for image in images]
    return records
