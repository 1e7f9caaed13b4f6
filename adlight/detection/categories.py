"""Category of an image, which determines its thresholds. Letters: K categories, D values of a descriptor."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adlight.metrics.thresholds import Calibration
from adlight.types import UserError, unknown_name

if TYPE_CHECKING:  # importing torch takes seconds, and most detectors need only the name of a category
    from torch import Tensor

    from adlight.data.datamodule import AnomalyDataModule

AUTO, POOLED = "auto", "pooled"  # a category with such a name takes precedence
SHRINKAGE = 0.01  # added to the covariance's diagonal, as a fraction of its mean


class CategoryClassifier:
    """Tells the categories of a data set apart by the colours and edges of thumbnails.

    A linear discriminant (Fisher 1936) on descriptors: it chooses the category with the nearest mean under the
    covariance within categories. It needs no network, so it is the same for every detector.

    Attributes:
        names: the K categories; empty before fitting, or if there is only one.
        accuracy: fraction of the held-out normal images whose category it finds.
        num_normals: number of held-out normal images.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.weight = self.bias = np.empty(0)  # (K, D), (K,) float64
        self.accuracy, self.num_normals = 0.0, 0
        self.fitted_to: AnomalyDataModule | None = None

    def fit(self, data: "AnomalyDataModule") -> None:
        """Learn the categories of a data module's training images, and measure the accuracy on held-out ones.

        Done once per data module; a single category needs no learning.
        """
        if self.fitted_to is data:
            return
        self.fitted_to = data
        self.names = sorted({record.category for record in data.train_records})
        if len(self.names) < 2 or data.tiling:  # tiles of different categories look alike
            self.names = []
            return
        import torch

        from adlight.detection.thumbnails import describe_split

        with torch.inference_mode(False), torch.no_grad():
            data.setup("fit")  # an evaluation has not loaded the training images
            (x, label), (other, truth) = (
                describe_split(data.datasets[split], self.names) for split in ("train", "val")
            )
            mean = torch.stack([x[label == k].mean(0) for k in range(len(self.names))])  # (K, D)
            covariance = (x - mean[label]).T.cov(correction=0)  # (D, D)
            ridge = SHRINKAGE * covariance.diagonal().mean() + 1e-12  # all images may be equal
            weight = torch.linalg.solve(covariance + ridge * torch.eye(x.shape[1], dtype=x.dtype), mean.T).T
            self.weight, self.bias = weight.numpy(), (-(weight * mean).sum(1) / 2).numpy()
            self.accuracy = float((self._choose(other) == truth.numpy()).mean())
            self.num_normals = len(truth)

    def __call__(self, image: "Tensor", size: "Tensor | None" = None) -> list[str]:
        """Classify images (B, C, H, W) in [0, 1]; `size` (B, 2) holds heights and widths of padded ones."""
        from adlight.detection.thumbnails import describe_images

        return [self.names[k] for k in self._choose(describe_images(image, size)).tolist()]

    def _choose(self, x: "Tensor") -> np.ndarray:
        return (x.numpy() @ self.weight.T + self.bias).argmax(1)  # (B, D) -> (B,)

    def describe(self) -> list[str]:
        """Report the accuracy in one line, or nothing if it has not learned anything."""
        correct = f"the category of {self.accuracy:.1%} of {self.num_normals} held-out normal images"
        return [f"category={AUTO}, by the looks of an image, finds {correct}"] if self.names else []

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain lists and numbers, for checkpoints."""
        return {
            "names": self.names,
            "weight": self.weight.tolist(),
            "bias": self.bias.tolist(),
            "accuracy": self.accuracy,
            "num_normals": self.num_normals,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state from `state_dict`."""
        self.weight, self.bias = (np.array(state[name], dtype=np.float64) for name in ("weight", "bias"))
        self.names = list(state["names"])
        self.accuracy, self.num_normals = state["accuracy"], state["num_normals"]


class CategoryRule:
    """Determines the category whose thresholds apply to an image; an unknown category is an error.

    Args:
        asked: a category for all images; `auto`: `classifier` decides for each image; `pooled`: the thresholds of all
            categories together; None: the only category, or the innermost folder in an image's path that is named
            after a category.
        calibration: the thresholds.
        classifier: tells the categories apart.

    Raises:
        UserError: the category is unknown, or `auto` is asked for but the classifier has not been fitted.
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
        """Check that the category of every image is known, before any image is read.

        Raises:
            UserError: the category of an image is unknown.
        """
        if not self.by_looks:
            for path in paths:
                self.of_path(path)

    def guess(self, path: Path | None) -> str | None:
        """Determine the category of an image by its path; None if it is unknown."""
        with suppress(UserError):
            return self.of_path(path) or (self.known[0] if len(self.known) == 1 else None)
        return None

    def of_path(self, path: Path | None) -> str | None:
        """Determine the category of an image by its path; None stands for the thresholds of all categories together.

        Raises:
            UserError: the category is unknown.
        """
        if self.asked in self.known:
            return self.asked
        if self.asked == POOLED or not self.is_decisive:
            return None
        folders = path.absolute().parent.parts if path else ()
        for folder in reversed(folders):
            if folder in self.known:
                return folder
        auto = f", category={AUTO}" if self.classifier.names else ""
        raise UserError(
            f"the category of {path or 'an image without a path'} is unknown ({', '.join(self.known)}?): set "
            f"category=<name>{auto} or category={POOLED} (thresholds of all together), or name its folder after its "
            "category"
        )

    def __call__(self, paths: Sequence[Path | None], pixels: np.ndarray, size: np.ndarray | None) -> list[str | None]:
        """Determine the categories of images.

        Args:
            paths: their files; None for images without a file.
            pixels: (B, C, H, W) uint8.
            size: (B, 2), heights and widths of padded images.

        Raises:
            UserError: a category is unknown, or has no thresholds.
        """
        if not self.by_looks or not self.is_decisive:
            return [self.of_path(path) for path in paths]
        import torch

        sizes = None if size is None else torch.from_numpy(size)
        names = self.classifier(torch.from_numpy(pixels).float() / 255, sizes)
        for path, name in zip(paths, names, strict=True):
            if name not in self.known:
                raise UserError(
                    f"{path or 'an image'} looks like {name}, which has no thresholds: no normal image was validated"
                )
        return list(names)
