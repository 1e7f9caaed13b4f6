"""Which category an image is of, and so whose thresholds decide. Letters: K categories, D values of a descriptor."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adlight.metrics.thresholds import Calibration
from adlight.types import UserError, unknown_name

if TYPE_CHECKING:  # torch takes seconds, and most detectors know a category by its name
    from torch import Tensor

    from adlight.data.datamodule import AnomalyDataModule

AUTO, POOLED = "auto", "pooled"  # a category of that name comes first
SHRINKAGE = 0.01  # added to the covariance's diagonal, as a share of its mean


class CategoryClassifier:
    """Tells the categories of a data set apart by what any image shows: colours and edges of a thumbnail.

    A linear discriminant (Fisher 1936): the category whose mean is nearest by the covariance within categories. It
    needs no network, so it works alike for every detector.

    Attributes:
        names: the K categories; empty where there is nothing to tell apart, or until it is fitted.
        accuracy: share of `num_normals` held-out normal images whose category it finds.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.weight = self.bias = np.empty(0)  # (K, D), (K,) float64
        self.accuracy, self.num_normals = 0.0, 0
        self.fitted_to: AnomalyDataModule | None = None

    def fit(self, data: "AnomalyDataModule") -> None:
        """Learn the categories of a data module's training images, and count how often held-out ones are told right.

        Done once per data module; nothing is to be learned of a single category.
        """
        if self.fitted_to is data:
            return
        self.fitted_to = data
        self.names = sorted({record.category for record in data.train_records})
        if len(self.names) < 2 or data.tiling:  # tiles look alike, whatever they are of
            self.names = []
            return
        import torch

        from adlight.detection.thumbnails import describe_split

        with torch.inference_mode(False), torch.no_grad():
            data.setup("fit")  # an evaluation has not read the training images
            (x, label), (other, truth) = (
                describe_split(data.datasets[split], self.names) for split in ("train", "val")
            )
            mean = torch.stack([x[label == k].mean(0) for k in range(len(self.names))])  # (K, D)
            covariance = (x - mean[label]).T.cov(correction=0)  # (D, D)
            ridge = SHRINKAGE * covariance.diagonal().mean() + 1e-12  # all images may be alike
            weight = torch.linalg.solve(covariance + ridge * torch.eye(x.shape[1], dtype=x.dtype), mean.T).T
            self.weight, self.bias = weight.numpy(), (-(weight * mean).sum(1) / 2).numpy()
            self.accuracy = float((self._choose(other) == truth.numpy()).mean())
            self.num_normals = len(truth)

    def __call__(self, image: "Tensor", size: "Tensor | None" = None) -> list[str]:
        """Name the category of each image (B, C, H, W) in [0, 1], padded ones with heights and widths (B, 2)."""
        from adlight.detection.thumbnails import describe_images

        return [self.names[k] for k in self._choose(describe_images(image, size)).tolist()]

    def _choose(self, x: "Tensor") -> np.ndarray:
        return (x.numpy() @ self.weight.T + self.bias).argmax(1)  # (B, D) -> (B,)

    def describe(self) -> list[str]:
        """Say how often it is right, in a line if it has learned anything."""
        right = f"the category of {self.accuracy:.1%} of {self.num_normals} held-out normal images"
        return [f"category={AUTO}, by the looks of an image, finds {right}"] if self.names else []

    def state_dict(self) -> dict[str, Any]:
        """Give what was learned as plain lists and numbers, which a checkpoint can hold."""
        counted = {"accuracy": self.accuracy, "num_normals": self.num_normals}
        return {"names": self.names, "weight": self.weight.tolist(), "bias": self.bias.tolist(), **counted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what was learned from `state_dict`."""
        self.weight, self.bias = (np.array(state[name], dtype=np.float64) for name in ("weight", "bias"))
        self.names = list(state["names"])
        self.accuracy, self.num_normals = state["accuracy"], state["num_normals"]


class CategoryRule:
    """Finds the category whose thresholds an image is compared with; nothing else stands in for it.

    Args:
        asked: the category of all images; `auto`: what `classifier` finds for each; `pooled`: of all images the
            thresholds of all categories together; None: the only one, or the nearest folder of an image's path that
            has a category's name.
        calibration: the thresholds there are.
        classifier: tells the categories apart.

    Raises:
        UserError: no such category, or `auto` where nothing has been learned.
    """

    def __init__(self, asked: str | None, calibration: Calibration, classifier: CategoryClassifier) -> None:
        if asked is not None and not isinstance(asked, str):
            raise UserError(f"category must be a text, got {asked!r}")
        self.known, self.calibration, self.classifier = list(calibration.categories), calibration, classifier
        alone = len(self.known) == 1 and not classifier.names
        if asked is not None and asked not in (*self.known, AUTO, POOLED):
            raise UserError(unknown_name("category", asked, (*self.known, AUTO, POOLED)))
        self.asked = self.known[0] if alone and asked in (None, AUTO) else asked
        self.by_looks = self.asked == AUTO and AUTO not in self.known
        if self.by_looks and not classifier.names:
            raise UserError(f"category={AUTO}: this model has not learned to tell categories apart: train it anew")

    @property
    def is_decisive(self) -> bool:
        """Whether thresholds differ by category."""
        given = self.calibration.image.is_number and self.calibration.pixel.is_number
        return bool(self.calibration.by_category) and not given

    def check(self, paths: Iterable[Path]) -> None:
        """Refuse images whose category cannot be known, before any is looked at.

        Raises:
            UserError: there is one.
        """
        for path in () if self.by_looks else paths:
            self.of_path(path)

    def guess(self, path: Path | None) -> str | None:
        """Find the category of an image that is not looked at; None where it cannot be known."""
        with suppress(UserError):
            return self.of_path(path) or (self.known[0] if len(self.known) == 1 else None)
        return None

    def of_path(self, path: Path | None) -> str | None:
        """Find the category of an image that is not looked at; None: the thresholds of all together.

        Raises:
            UserError: it cannot be known.
        """
        if self.asked in self.known:
            return self.asked
        if self.asked == POOLED or not self.is_decisive:
            return None
        folders = path.absolute().parent.parts[::-1] if path else ()  # the nearest first
        for folder in folders:
            if folder in self.known:
                return folder
        auto = f", category={AUTO}" if self.classifier.names else ""
        raise UserError(
            f"{path or 'an image without a path'} is of which category ({', '.join(self.known)})? set category=<name>"
            f"{auto} or category={POOLED} (thresholds of all together), or name the image's folder after its category"
        )

    def __call__(self, paths: Sequence[Path | None], pixels: np.ndarray, size: np.ndarray | None) -> list[str | None]:
        """Find the categories of images (B, C, H, W) uint8, padded ones with heights and widths (B, 2).

        Raises:
            UserError: one cannot be known, or looks like a category that has no thresholds.
        """
        if not self.by_looks or not self.is_decisive:
            return [self.of_path(path) for path in paths]
        import torch

        found = self.classifier(
            torch.from_numpy(pixels).float() / 255, None if size is None else torch.from_numpy(size)
        )
        for path, name in zip(paths, found, strict=True):
            if name not in self.known:
                raise UserError(f"{path or 'an image'} looks like {name}, of which no normal image was validated")
        return list(found)
