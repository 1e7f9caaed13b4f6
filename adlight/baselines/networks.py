"""Baselines: nearest neighbours and principal components of pixels, which any detector has to beat.

They are fitted to all training images at once, without gradients. For images (B, C, H, W) in [0, 1] they return the
closest image that they can produce, (B, C, H, W), and its distance, (B,). If only some pixels count (`content`,
(B, H, W) bool), the distance is measured on these pixels and scaled to the number of pixels in an image.
"""

import math

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from adlight.data.frames import Size, parse_size
from adlight.settings import checked
from adlight.types import UserError

CHUNK = 2**26  # number of values of the bank converted to floats at a time: 256 MiB
SPARE = 8  # candidates beyond k, whose distances are then computed exactly: the search may round (TF32)


class NearestNeighbours(nn.Module):
    """Mean Euclidean distance to the k nearest training images; the closest image is the nearest training image.

    A training image is black outside its content.

    Args:
        image_size: side of the images in pixels, or height and width.
        channels: C.
        k: number of neighbours.
        memory_gb: largest memory for the training images, in GB.
    """

    bank: Tensor

    @checked
    def __init__(
        self, image_size: Size, channels: PositiveInt = 3, k: PositiveInt = 3, memory_gb: PositiveFloat = 8.0
    ) -> None:
        super().__init__()
        self.k, self.memory_gb = k, memory_gb
        self.register_buffer("bank", torch.empty(0, channels, *parse_size(image_size), dtype=torch.uint8))

    def check(self, count: int) -> None:
        """Raise a UserError if there are fewer training images than neighbours, or too many for the memory."""
        check_count(count, "k", self.k)
        check_memory(count * self.bytes_per_image, self.memory_gb)

    @property
    def bytes_per_image(self) -> int:
        """Largest number of bytes of a training image, which is collected, joined and sorted."""
        return 3 * self.bank.shape[1:].numel()

    def fit(self, image: Tensor, content: Tensor | None = None) -> None:
        """Store the training images (N, C, H, W), uint8."""
        self.check(len(image))
        self.bank = image if content is None else image * content[:, None]

    def describe(self) -> str:
        """Describe the fitted model."""
        return f"mean distance to the {self.k} nearest of {len(self.bank)} training images"

    @torch.no_grad()
    def forward(self, image: Tensor, content: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Find the nearest training image and the mean distance to k, in units of one pixel's range."""
        weight = None if content is None else _content_weight(content, image)  # (B, D)
        query = image.flatten(1) if weight is None else image.flatten(1) * weight  # (B, D)
        parts = self.bank.flatten(1).split(max(1, CHUNK // query.shape[1]))
        # |q - b|^2 without |q|^2, which does not change the order; matrix products are fast but lose digits
        order = torch.cat([_norm(y, weight) - 2 * query @ y.T for y in map(to_unit, parts)], 1)  # (B, N)
        found = order.topk(min(self.k + SPARE, len(self.bank)), largest=False).indices  # (B, k + SPARE)
        differences = (image.flatten(1) - to_unit(self.bank[i]).flatten(1) for i in found.T)  # (B, D) each
        scale = 1 if weight is None else weight.sqrt()
        distance = torch.stack([(difference * scale).norm(dim=1) for difference in differences], 1)  # (B, k + SPARE)
        return self.nearest(found, distance)

    def nearest(self, found: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nearest of n found training images by distance, (B, n) each, and the mean distance to k."""
        nearest = found.gather(1, distance.argmin(1, keepdim=True))[:, 0]  # (B,)
        return to_unit(self.bank[nearest]), distance.topk(self.k, largest=False).values.mean(1)


class PCA(nn.Module):
    """Distance to the span of the first principal components (eigenfaces, Turk & Pentland 1991).

    Args:
        image_size, channels: see `NearestNeighbours`.
        components: number of components, at most the number of values of an image.
        memory_gb: largest memory for the decomposition of the training images, in GB.
    """

    mean: Tensor
    components: Tensor

    @checked
    def __init__(
        self, image_size: Size, channels: PositiveInt = 3, components: PositiveInt = 40, memory_gb: PositiveFloat = 8.0
    ) -> None:
        super().__init__()
        size = parse_size(image_size)
        values = channels * math.prod(size)
        if components > values:
            raise ValueError(f"components must lie in 1..{values}, the values of an image, got {components}")
        self.memory_gb = memory_gb
        self.register_buffer("mean", torch.zeros(channels, *size))
        self.register_buffer("components", torch.zeros(components, values))  # orthonormal rows

    def check(self, count: int) -> None:
        """Raise a UserError if there are fewer training images than components, or too many for the memory."""
        check_count(count, "components", len(self.components))
        check_memory(16 * count * self.mean.numel(), self.memory_gb)  # LAPACK copies its input; the result is as large

    def fit(self, image: Tensor, content: Tensor | None = None) -> None:
        """Compute mean and components of the training images (N, C, H, W), uint8; pixels outside get the mean."""
        self.check(len(image))
        x = to_unit(image)
        if content is None:
            self.mean = x.mean(0)
        else:
            inside = content[:, None]  # (N, 1, H, W)
            self.mean = (x * inside).sum(0) / inside.sum(0).clamp(min=1)
            x = x.where(inside, self.mean)
        x = x.sub_(self.mean).flatten(1)  # (N, D)
        self.components = torch.linalg.svd(x, full_matrices=False).Vh[: len(self.components)].contiguous()

    def describe(self) -> str:
        """Describe the fitted model."""
        return f"distance to the span of {len(self.components)} principal components"

    @torch.no_grad()
    def forward(self, image: Tensor, content: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Project onto the components, and measure the distance to the projection, in units of one pixel's range."""
        x = (image - self.mean).flatten(1)  # (B, D)
        weight = None if content is None else _content_weight(content, image).sqrt()  # (B, D)
        x = x if weight is None else x * (weight > 0)
        projection = x @ self.components.T @ self.components  # (B, D)
        residual = x - projection if weight is None else (x - projection) * weight
        return projection.view_as(image) + self.mean, residual.norm(dim=1)


def to_unit(image: Tensor) -> Tensor:
    """Convert bytes to floats in [0, 1]."""
    return image.float().div_(255)


def _content_weight(content: Tensor, image: Tensor) -> Tensor:
    """Weight the values of images: 0 for pixels that do not count, and 1 on average. (B, H, W) -> (B, D)."""
    weight = content[:, None].expand_as(image).flatten(1)  # (B, D)
    return weight * (weight.shape[1] / weight.sum(1, keepdim=True))


def _norm(x: Tensor, weight: Tensor | None) -> Tensor:
    return x.square().sum(1) if weight is None else weight @ x.square().T


def check_count(count: int, setting: str, least: int) -> None:
    """Raise a UserError if there are fewer training images than a setting requires."""
    if count < least:
        raise UserError(f"{setting}={least} needs as many images, got {count} training images: lower {setting}")


def check_memory(needed: float, limit_gb: float) -> None:
    """Raise a UserError if training images need more bytes than the limit."""
    if needed > limit_gb * 1e9:
        raise UserError(
            f"the training images need about {needed / 1e9:.1f} GB, more than memory_gb={limit_gb:g}: lower image_size "
            "or train_limit, or raise memory_gb"
        )
