"""The user's own images: folders of normal and abnormal images, or folders of labelled classes."""

import os
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from adlight.data.listing import describe_folder, list_folders, list_images, match_masks, means_normal
from adlight.data.source import Limit, Sampling, Source, require_images
from adlight.settings import PathName, Seed, Text, checked
from adlight.types import Record, UserError, unknown_name

MASK_NAMES = {"mask", "masks", "ground_truth", "groundtruth", "ground truth", "gt", "annotations", "segmentation"}
ABNORMAL_NAMES = {"abnormal", "anomalous", "anomaly", "bad", "defect", "defective", "defects", "faulty", "ng", "nok"}
GENERIC_NAMES = {"good", "normal", "ok", "train", "images"}  # folder names that do not describe the images


class Folder(Source):
    """Normal images in one folder; optionally abnormal images and their masks in others.

    The test uses the images in `abnormal_dir` and normal images that are not trained on, from `test_normal_dir` or a
    random part of `normal_dir`. A folder nested in another is not part of it: `abnormal_dir` may hold the masks. The
    category is named after `normal_dir`, or after its parent folder if its name is generic, such as `good`.

    Args:
        root: folder to which the other folders are relative.
        normal_dir: normal images, also in sub-folders.
        abnormal_dir: abnormal images; each sub-folder is a kind of defect.
        mask_dir: masks of abnormal images, called `<stem>` or `<stem>_mask`, in the same sub-folders as the images or
            all in one folder; images may lack masks.
        test_normal_dir: normal images used only for the test.
        normal_test_fraction: fraction of `normal_dir`, in [0, 1), that is tested if there is no `test_normal_dir`.
        seed: seed for drawing this fraction.

    Raises:
        ValueError: a fraction is out of range, there are masks but no abnormal images, or one folder has two roles.
    """

    @checked
    def __init__(
        self,
        root: PathName,
        *,
        normal_dir: PathName,
        abnormal_dir: PathName | None = None,
        mask_dir: PathName | None = None,
        test_normal_dir: PathName | None = None,
        normal_test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.2,
        seed: Seed = 0,
    ) -> None:
        if mask_dir is not None and abnormal_dir is None:
            raise ValueError("mask_dir needs abnormal_dir: masks belong to abnormal images")
        folders = {"normal_dir": normal_dir, "abnormal_dir": abnormal_dir}
        folders |= {"mask_dir": mask_dir, "test_normal_dir": test_normal_dir}
        self.dirs = {key: Path(os.path.abspath(Path(root) / path)) for key, path in folders.items() if path is not None}
        if len(set(map(os.path.realpath, self.dirs.values()))) < len(self.dirs):
            raise ValueError(f"two of {', '.join(self.dirs)} are the same folder")
        self.root, self.fraction, self.seed = Path(os.path.abspath(root)), normal_test_fraction, seed
        names = reversed(self.dirs["normal_dir"].parts)
        self.category = next((name for name in names if name.lower() not in GENERIC_NAMES), "images")
        tested = [str(abnormal_dir)] if abnormal_dir else []
        tested.append(str(test_normal_dir or f"{normal_test_fraction:.0%} of the normal images (seed {seed})"))
        self.protocol = f"own images, {normal_dir} is normal; tested: {', '.join(tested)}"

    def folders(self) -> list[Path]:
        """List the folders named by the settings."""
        return list(self.dirs.values())

    def train(self) -> list[Record]:
        """List the images of `normal_dir` that are not tested."""
        return self._split_normals()[0]

    def test(self) -> list[Record]:
        """List the normal test images, then the abnormal images by kind of defect and name."""
        records = self._split_normals()[1]
        if "abnormal_dir" not in self.dirs:
            return records
        folder, images = self.dirs["abnormal_dir"], self._images("abnormal_dir")
        for name in sorted({image.relative_to(folder).parts[0] for image in images if image.parent != folder}):
            if means_normal(name):
                raise UserError(f"{folder} has a sub-folder {name}: set test_normal_dir={folder / name}")
        masks = self._match_masks(images)
        for image in images:
            inside = image.relative_to(folder).parts
            defect = inside[0] if len(inside) > 1 else folder.name
            records.append(Record(str(image), self.category, defect, 1, masks.get(image)))
        return records

    def find_unused(self) -> list[str]:
        """Name the folders beside `normal_dir` that should hold defects or masks but that no setting names: a line."""
        place, named = self.dirs["normal_dir"].parent, set(self.dirs.values())
        used = named | {parent for path in named for parent in path.parents}
        found = []
        for path in sorted(place.iterdir()) if place.is_relative_to(self.root) else ():
            if path not in used and path.is_dir() and (setting := _setting_for(path.name)):
                found.append(f"{path.relative_to(self.root)} ({setting}={path.relative_to(self.root)})")
        return [f"no setting names these folders: {', '.join(found)}"] if found else []

    def _split_normals(self) -> tuple[list[Record], list[Record]]:
        images = self._images("normal_dir")
        if "test_normal_dir" in self.dirs:
            held_out = self._images("test_normal_dir")
        else:
            count = min(max(round(len(images) * self.fraction), int(self.fraction > 0)), len(images) - 1)
            drawn = set(np.random.default_rng(self.seed).permutation(len(images))[:count].tolist())
            held_out = [image for i, image in enumerate(images) if i in drawn]
            images = [image for i, image in enumerate(images) if i not in drawn]
        train, test = ([Record(str(image), self.category) for image in part] for part in (images, held_out))
        return train, test

    def _images(self, key: str) -> list[Path]:
        """List the images of a folder, without the images of other folders nested in it."""
        folder = self.dirs[key]
        others = [path for other, path in self.dirs.items() if other != key and folder in path.parents]
        images = require_images(folder, key, others)
        if key == "mask_dir":
            return images
        for image in images:
            parts = folder.name, *image.relative_to(folder).parts[:-1]
            if masks := [part for part in parts if part.strip().lower() in MASK_NAMES]:
                raise UserError(
                    f"{key}: {image} lies in a folder {masks[0]} and would be taken for a picture of a part: set "
                    "mask_dir to the folder, or move or rename it"
                )
        return images

    def _match_masks(self, images: list[Path]) -> dict[Path, str]:
        if "mask_dir" not in self.dirs:
            return {}
        masks, folder = self._images("mask_dir"), self.dirs["abnormal_dir"]
        matched = match_masks(images, folder, masks, self.dirs["mask_dir"])
        if orphans := set(map(str, masks)) - set(matched.values()):
            raise UserError(f"mask {min(orphans)} has no image in {folder}: add it, rename the mask or remove it")
        return matched


def _setting_for(name: str) -> str | None:
    """Name the setting for a folder with a telling name; None for other names, such as `runs`."""
    if name.lower() in MASK_NAMES:
        return "mask_dir"
    return "abnormal_dir" if name.lower() in ABNORMAL_NAMES else None


class LabelledFolder(Source):
    """Folders of labelled classes, `train/<class>` and `test/<class>`; one class is normal.

    Args:
        root: folder that holds `train` and `test`.
        normal: the normal class; only its training images are used.
        balanced_test, train_limit, test_limit, seed: see `Sampling`.
    """

    @checked
    def __init__(
        self,
        root: PathName,
        *,
        normal: Text | int,
        balanced_test: bool = False,
        train_limit: Limit = None,
        test_limit: Limit = None,
        seed: Seed = 0,
    ) -> None:
        self.root, self.normal = Path(root), str(normal)
        self.sampling = Sampling(train_limit, test_limit, balanced_test, seed)
        few = f"its test images and as many of the other classes (seed {seed})"
        self.protocol = f"labelled folders, {normal} normal, {few if balanced_test else 'all test images'}"
        self.protocol += self.sampling.describe()

    def folders(self) -> list[Path]:
        """List the training folder of the normal class, and the test folder."""
        return [self.root / "train" / self.normal, self.root / "test"]

    def train(self) -> list[Record]:
        """List the normal class's images in `train`; raise a UserError that lists the classes if there are none."""
        folder = self.root / "train"
        classes = list_folders(folder)
        if not classes:
            layout = f"{self.root}/{{train,test}}/<class>/*.png"
            raise UserError(f"no classes in {folder}: expected {layout}, found {describe_folder(self.root)}")
        if self.normal not in classes:
            raise UserError(f"{unknown_name('class', self.normal, classes)} in {folder}")
        images = require_images(folder / self.normal, "normal")
        return self.sampling.train([Record(str(image), self.normal) for image in images])

    def test(self) -> list[Record]:
        """List the images in `test` by class and name; the class of an anomalous image is its kind of defect."""
        records = []
        for name in list_folders(self.root / "test"):
            folder = self.root / "test" / name
            defect, label = ("good", 0) if name == self.normal else (name, 1)
            if label and name.lower() == self.normal.lower():
                raise UserError(f"{folder} would be tested as anomalies: call it {self.normal}, the normal class")
            records += [Record(str(image), self.normal, defect, label) for image in list_images(folder)]
        return self.sampling.test(records)
