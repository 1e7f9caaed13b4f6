"""The user's own images: folders of normal and abnormal ones, or folders of labelled classes."""

import os
from collections import defaultdict
from pathlib import Path

import numpy as np

from adlight.data.images import describe_folder, list_folders, list_images
from adlight.data.source import Source, balanced, check_limits, limits_note, subsample
from adlight.types import Record, UserError, unknown_name

NO_CATEGORY = {
    "good",
    "normal",
    "ok",
    "train",
    "images",
}  # folder names that say nothing of what is in the images


class Folder(Source):
    """Normal images in one folder; optionally abnormal ones, and their masks, in others.

    Tested are the images of `abnormal_dir` and normal ones that are not trained on: `test_normal_dir`'s, or
    else a seeded part of `normal_dir`'s. Without `abnormal_dir` only those normal ones are tested.
    A folder that lies in another one is no part of it: `abnormal_dir` may hold the masks.
    The category is called after `normal_dir`, or after the folder around it if that is called `good` or so.

    Args:
        root: folder that the others are relative to (absolute ones are taken as they are).
        normal_dir: normal images, also in sub-folders.
        abnormal_dir: abnormal images; a sub-folder is a kind of defect.
        mask_dir: masks of abnormal images, called `<stem>` or `<stem>_mask`, in the same sub-folders as the
            images or all in one folder; an image may have none.
        test_normal_dir: normal images for the test only.
        normal_test_fraction: part of `normal_dir`, in [0, 1), held out where `test_normal_dir` is None.
        seed: of that draw.
    """

    name = "folder"

    def __init__(
        self,
        root: str | Path,
        *,
        normal_dir: str | Path,
        abnormal_dir: str | Path | None = None,
        mask_dir: str | Path | None = None,
        test_normal_dir: str | Path | None = None,
        normal_test_fraction: float = 0.2,
        seed: int = 0,
    ) -> None:
        if not 0 <= normal_test_fraction < 1:
            raise UserError(f"dataset.normal_test_fraction={normal_test_fraction}: must be in [0, 1)")
        if mask_dir is not None and abnormal_dir is None:
            raise UserError("dataset.mask_dir needs dataset.abnormal_dir: masks belong to abnormal images")
        self.root = Path(root)
        asked = {"normal_dir": normal_dir, "abnormal_dir": abnormal_dir}
        asked |= {"mask_dir": mask_dir, "test_normal_dir": test_normal_dir}
        self.dirs = {key: Path(os.path.abspath(self.root / value)) for key, value in asked.items() if value is not None}
        if len(set(self.dirs.values())) < len(self.dirs):
            raise UserError(f"two of {', '.join(f'dataset.{key}' for key in self.dirs)} are the same folder")
        self.fraction, self.seed = normal_test_fraction, seed
        parts = reversed(self.dirs["normal_dir"].parts)
        self.category = next((name for name in parts if name.lower() not in NO_CATEGORY), "images")
        tested = [str(abnormal_dir)] if abnormal_dir else []
        tested.append(str(test_normal_dir or f"{normal_test_fraction:.0%} of the normal images (seed {seed})"))
        self.protocol = f"own images, {normal_dir} is normal; tested: {', '.join(tested)}"

    def train(self) -> list[Record]:
        """List the images of `normal_dir` that are not held out for the test."""
        return self._normals()[0]

    def test(self) -> list[Record]:
        """List the held-out normal images, then the abnormal ones by kind of defect and name."""
        records = self._normals()[1]
        if "abnormal_dir" not in self.dirs:
            return records
        folder, images = self.dirs["abnormal_dir"], self._images("abnormal_dir")
        if any(image.relative_to(folder).parts[0] == "good" for image in images):
            raise UserError(f"{folder} has a sub-folder good: name it as dataset.test_normal_dir={folder / 'good'}")
        masks = self._masks(images)
        for image in images:
            inside = image.relative_to(folder).parts
            defect = inside[0] if len(inside) > 1 else folder.name
            records.append(Record(str(image), self.category, defect, 1, masks.get(image)))
        return records

    def _normals(self) -> tuple[list[Record], list[Record]]:
        """Normal records to train on and to test."""
        images = self._images("normal_dir")
        if "test_normal_dir" in self.dirs:
            held_out = self._images("test_normal_dir")
        else:
            count = min(max(round(len(images) * self.fraction), int(self.fraction > 0)), len(images) - 1)
            drawn = set(np.random.default_rng(self.seed).permutation(len(images))[:count].tolist())
            held_out = [image for i, image in enumerate(images) if i in drawn]
            images = [image for i, image in enumerate(images) if i not in drawn]
        return self._records(images), self._records(held_out)

    def _records(self, images: list[Path]) -> list[Record]:
        return [Record(str(image), self.category) for image in images]

    def _images(self, key: str) -> list[Path]:
        """Images of one of the folders, without those of the others that lie in it."""
        folder = self.dirs[key]
        if not folder.is_dir():
            raise UserError(f"dataset.{key}: no folder {folder} (in its place: {describe_folder(folder.parent)})")
        others = [path for other, path in self.dirs.items() if other != key and folder in path.parents]
        images = [image for image in list_images(folder) if not any(path in image.parents for path in others)]
        if not images:
            raise UserError(f"dataset.{key}: no PNG, JPEG, BMP or TIFF in {folder}, found: {describe_folder(folder)}")
        return images

    def _masks(self, images: list[Path]) -> dict[Path, str]:
        """Match masks to abnormal images, in the image's own sub-folder before the folder of all.

        Raises:
            UserError: two masks for one image, one mask for two images, or a mask without an image.
        """
        if "mask_dir" not in self.dirs:
            return {}
        by_name = defaultdict(list)
        for mask in self._images("mask_dir"):
            by_name[mask.relative_to(self.dirs["mask_dir"]).with_suffix("")].append(mask)
        owner: dict[Path, Path] = {}
        for image in images:
            name = image.relative_to(self.dirs["abnormal_dir"]).with_suffix("")
            found = _named(by_name, name) or _named(by_name, Path(name.name))
            if len(found) > 1:
                raise UserError(f"two masks for {image}: {found[0]} and {found[1]}")
            if found and found[0] in owner:
                raise UserError(f"mask {found[0]} belongs to two images: {owner[found[0]]} and {image}")
            owner |= {mask: image for mask in found}
        rest = [mask for masks in by_name.values() for mask in masks if mask not in owner]
        if rest:
            more = f" ({len(rest)} such masks)" if len(rest) > 1 else ""
            raise UserError(f"mask {rest[0]} has no image of its name in {self.dirs['abnormal_dir']}{more}")
        return {image: str(mask) for mask, image in owner.items()}


def _named(by_name: dict[Path, list[Path]], name: Path) -> list[Path]:
    return by_name.get(name, []) + by_name.get(name.with_name(f"{name.name}_mask"), [])


class LabelledFolder(Source):
    """Folders of labelled classes, `train/<class>` and `test/<class>`: one class is normal.

    Args:
        root: folder that holds `train` and `test`.
        normal: the normal class; only its training images are used.
        balanced_test: of the other classes test only as many images as of the normal one, drawn by `seed`.
        train_limit: at most so many training images, drawn by `seed`.
        test_limit: at most so many test images, normal and anomalous in their own share, drawn by `seed`.
        seed: of these draws.
    """

    name = "labelled_folder"

    def __init__(
        self,
        root: str | Path,
        *,
        normal: str | int,
        balanced_test: bool = False,
        train_limit: int | None = None,
        test_limit: int | None = None,
        seed: int = 0,
    ) -> None:
        check_limits(train_limit=train_limit, test_limit=test_limit)
        self.root, self.normal, self.balanced_test = Path(root), str(normal), balanced_test
        self.train_limit, self.test_limit, self.seed = train_limit, test_limit, seed
        few = f"its test images and as many of the other classes (seed {seed})"
        self.protocol = f"labelled folders, {normal} normal, {few if balanced_test else 'all test images'}"
        self.protocol += limits_note(train_limit, test_limit, seed)

    def train(self) -> list[Record]:
        """List the normal class's images in `train`.

        Raises:
            UserError: no such folder or class, or no images in it; the text lists the classes that exist.
        """
        classes = list_folders(self.root / "train")
        if not classes:
            expected = f"{self.root}/{{train,test}}/<class>/*.png"
            raise UserError(
                f"no classes in {self.root / 'train'}: expected {expected}, found {describe_folder(self.root)}"
            )
        if self.normal not in classes:
            raise UserError(unknown_name(f"class in {self.root / 'train'}:", self.normal, classes))
        images = list_images(self.root / "train" / self.normal)
        if not images:
            raise UserError(f"no PNG, JPEG, BMP or TIFF in {self.root / 'train' / self.normal}")
        return subsample([Record(str(image), self.normal) for image in images], self.train_limit, self.seed)

    def test(self) -> list[Record]:
        """List the images in `test` by class and name; the defect of an anomalous image is its class."""
        records = []
        for name in list_folders(self.root / "test"):
            kind = ("good", 0) if name == self.normal else (name, 1)
            images = list_images(self.root / "test" / name)
            records += [Record(str(image), self.normal, *kind) for image in images]
        if self.balanced_test:
            records = balanced(records, self.seed)
        return subsample(records, self.test_limit, self.seed)
