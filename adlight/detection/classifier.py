"""Classification of images by category, on thumbnails. Letters: K categories, D values of a descriptor."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # importing torch takes seconds, and exported detectors do not need it
    from torch import Tensor

    from adlight.data.datamodule import AnomalyDataModule
    from adlight.data.splits import Split

AUTO = "auto"  # the value of `category` by which images are classified
SHRINKAGE = 0.01  # added to the covariance's diagonal, as a fraction of its mean
GRID = 32  # side of a thumbnail, in pixels
IMAGES = 200  # largest number of images per category that are described, evenly spaced


class CategoryClassifier:
    """Classifies images by category from the colours and edges of thumbnails.

    A linear discriminant (Fisher 1936) on descriptors: it selects the category with the nearest mean under the
    within-category covariance. It needs no network, so it is the same for every detector.

    Attributes:
        names: the K categories; empty before fitting, or if there is only one category.
        accuracy: fraction of the held-out normal images classified correctly.
        num_normals: number of held-out normal images.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.weight = self.bias = np.empty(0)  # (K, D), (K,) float64
        self.accuracy, self.num_normals = 0.0, 0
        self.fitted_to: AnomalyDataModule | None = None

    def fit(self, data: "AnomalyDataModule") -> None:
        """Fit to the training images of a data module, and measure the accuracy on its held-out normal images.

        Done only once per data module, and only if it has several categories.
        """
        if self.fitted_to is data:
            return
        self.fitted_to = data
        self.names = sorted({record.category for record in data.train_records})
        if len(self.names) < 2 or data.tiling:  # tiles of different categories look alike
            self.names = []
            return
        import torch

        with torch.inference_mode(False), torch.no_grad():
            data.setup("fit")  # evaluation has not loaded the training images
            x, label = describe_split(data.datasets["train"], self.names)  # (N, D), (N,)
            mean = torch.stack([x[label == k].mean(0) for k in range(len(self.names))])  # (K, D)
            covariance = (x - mean[label]).T.cov(correction=0)  # (D, D)
            ridge = SHRINKAGE * covariance.diagonal().mean() + 1e-12  # not 0, even if all images are equal
            weight = torch.linalg.solve(covariance + ridge * torch.eye(x.shape[1], dtype=x.dtype), mean.T).T
            self.weight, self.bias = weight.numpy(), (-(weight * mean).sum(1) / 2).numpy()
            held_out, truth = describe_split(data.datasets["val"], self.names)
            self.accuracy = float((self._classify(held_out) == truth.numpy()).mean())
            self.num_normals = len(truth)

    def __call__(self, image: "Tensor", size: "Tensor | None" = None) -> list[str]:
        """Classify images (B, C, H, W) in [0, 1]; `size` (B, 2) holds the heights and widths of padded images."""
        return [self.names[k] for k in self._classify(describe_images(image, size)).tolist()]

    def _classify(self, x: "Tensor") -> np.ndarray:
        return (x.numpy() @ self.weight.T + self.bias).argmax(1)  # (B, D) -> (B,)

    def describe(self) -> list[str]:
        """Report the accuracy in one line, or nothing before fitting."""
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
        """Restore a state from `state_dict`."""
        self.weight, self.bias = (np.array(state[name], dtype=np.float64) for name in ("weight", "bias"))
        self.names = list(state["names"])
        self.accuracy, self.num_normals = state["accuracy"], state["num_normals"]


def describe_images(image: "Tensor", size: "Tensor | None" = None) -> "Tensor":
    """Describe images by coarse maps and quantiles of their colours and edges.

    (B, C, H, W) in [0, 1], heights and widths (B, 2) of padded images -> (B, D) float64 on the CPU.
    """
    import torch
    from torch.nn import functional as F

    if size is None:
        small = F.adaptive_avg_pool2d(image, GRID)  # (B, C, 32, 32)
    else:
        crops = [padded[None, :, :h, :w] for padded, (h, w) in zip(image, size.tolist(), strict=True)]
        small = torch.cat([F.adaptive_avg_pool2d(crop, GRID) for crop in crops])
    small = small.double().cpu()
    grey = small.mean(1)  # (B, 32, 32)
    edges = [grey.diff(dim=dim).abs() for dim in (1, 2)]
    coarse = [F.adaptive_avg_pool2d(small, 8), *(F.adaptive_avg_pool2d(edge, 4) for edge in edges)]
    sorted_pixels = [values.flatten(-2).sort(-1).values for values in (small, *edges)]  # (..., N) each
    quantiles = [x[..., torch.linspace(0, x.shape[-1] - 1, 9).round().long()] for x in sorted_pixels]  # (..., 9) each
    return torch.cat([values.flatten(1) for values in (*coarse, *quantiles)], 1)


def describe_split(dataset: "Split", names: Sequence[str]) -> "tuple[Tensor, Tensor]":
    """Describe at most `IMAGES` images of each category. -> descriptors (N, D) and indices into `names` (N,)."""
    import torch

    rows = []
    for name in names:
        members = [i for i, record in enumerate(dataset.records) if record.category == name]
        rows += members[:: math.ceil(len(members) / IMAGES)] if members else []
    batches = [dataset.__getitems__(rows[start : start + 64]) for start in range(0, len(rows), 64)]
    x = torch.cat([describe_images(batch["image"].float() / 255, batch.get("size")) for batch in batches])
    return x, torch.tensor([names.index(dataset.records[i].category) for i in rows])
