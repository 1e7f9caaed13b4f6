"""Retrieval: each cell is predicted from the cells at the same place in the nearest training images."""

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from adlight.features.cells import TrainingCells, in_image, in_one_part, is_padded
from adlight.features.predictor import Predictor
from adlight.settings import checked
from adlight.types import UserError

CELLS = 20  # cells of an image per pass, so that their candidates stay in a CPU's cache
VALUES = 2**14  # values of each image per pass when images are compared, for the same reason


class Retrieval(Predictor):
    """Predicts each cell as a softmax-weighted mean of the cells at the same place in the nearest training images.

    The nearest images have the smallest squared distance over all cells. They can be of any category, and rotated
    copies count as images. A cell x is predicted from the cells y_1 ... y_k at its place in these images, with the
    weights softmax_i(-temperature * mean_c (x - y_i)^2).

    Args:
        channels: C.
        neighbours: largest number of nearest images.
        temperature: 0 gives the plain mean; a large value, the most similar cell alone.
    """

    takes_copies = True
    bank: Tensor
    norm: Tensor
    index: Tensor

    @checked
    def __init__(
        self, channels: PositiveInt, neighbours: PositiveInt = 128, temperature: NonNegativeFloat = 8.0
    ) -> None:
        super().__init__()
        self.neighbours, self.temperature = neighbours, temperature
        self.register_buffer("bank", torch.empty(0, channels, dtype=torch.float16))  # (N h w, C)
        self.register_buffer("norm", torch.empty(0))  # (N,), squared lengths of the images
        self.register_buffer("index", torch.empty(0, dtype=torch.long))  # (N,), training image of each bank image

    def check(self, count: int) -> None:
        """Refuse a single training image, which has no others to be compared with."""
        if count < 2:
            raise UserError(f"retrieval compares training images with each other: it needs at least 2, not {count}")

    def fit(self, cells: TrainingCells) -> None:
        """Store the cells of all training images and their copies; padding is stored as the mean cell."""
        self.check(len(cells))
        count = len(cells) + (0 if cells.copies is None else len(cells.copies.source))
        bank = self.bank.new_empty(count, *cells.features.shape[1:])  # (N, h, w, C), filled in place to save memory
        indices, filled = list[Tensor](), 0
        for part, index in cells.batches_with_copies():
            bank[filled : filled + len(part)] = part.half().nan_to_num(0)
            indices, filled = [*indices, index], filled + len(part)
        self.bank = bank.flatten(0, 2)
        self.norm = torch.cat([part.float().square().sum((1, 2, 3)) for part in bank.split(64)])
        self.index = torch.cat(indices).to(self.bank.device)

    def forward(self, cells: Tensor, own: Tensor | None = None) -> Tensor:
        """Predict cells from the nearest images, excluding `own`. (B, h, w, C) -> (B, h, w, C)."""
        bank = self.bank.view(-1, *cells.shape[1:])  # (N, h, w, C)
        distance = self._distances(cells, bank, own)  # (B, N)
        others = len(bank) if own is None else int(distance.isfinite().sum(1).min())
        nearest = distance.topk(min(self.neighbours, others), largest=False).indices  # (B, k)
        known, flat = bank.flatten(1, 2), cells.flatten(1, 2)  # (N, h w, C), (B, h w, C)
        if torch.compiler.is_exporting():  # otherwise one image after the other: less memory
            parts = zip(flat.split(CELLS, 1), known.split(CELLS, 1), strict=True)
            return torch.cat([self._blend(x, y[nearest].float()) for x, y in parts], 1).view_as(cells)
        step = flat.shape[1] if in_one_part(cells) else CELLS
        found = [
            self._blend(x, y.index_select(0, i).float())
            for image, i in zip(flat, nearest, strict=True)
            for x, y in zip(image.split(step), known.split(step, 1), strict=True)
        ]
        return torch.cat(found).view_as(cells)

    def residual(self, cells: Tensor, own: Tensor | None = None) -> Tensor:
        """Subtract the prediction from other images. (B, h, w, C) -> (B, h, w, C)."""
        return cells - self(cells, own)

    def count_angles(self) -> int:
        """Count the angles at which the most often rotated training image is stored."""
        return int(self.index.bincount().max())

    def summary(self) -> str:
        """Describe the prediction."""
        return f"weighted mean of the cells of the {min(self.neighbours, len(self.norm))} nearest training images"

    def _distances(self, cells: Tensor, bank: Tensor, own: Tensor | None) -> Tensor:
        """Compute squared distances less |x|^2, which leaves their order. (B, h, w, C), (N, h, w, C) -> (B, N)."""
        inside = in_image(cells)[..., None].expand_as(cells)  # distances ignore padding
        query, known = cells.where(inside, 0).flatten(1), bank.flatten(1)  # (B, h w C), (N, h w C)
        found = -2 * _multiply(query, known)  # (B, N)
        if not is_padded(cells):
            found += self.norm
        else:
            found += _multiply(inside.flatten(1).float(), known, squared=True)
        if own is not None:
            found[self.index == own[:, None]] = torch.inf
        return found

    def _blend(self, x: Tensor, candidates: Tensor) -> Tensor:
        """Average a place's candidates, weighted by similarity. (..., n, C), (..., k, n, C) -> (..., n, C).

        |x|^2 is the same for all candidates, so that the softmax does not need it.
        """
        known = candidates.transpose(-3, -2)  # (..., n, k, C)
        product = (known @ x[..., None])[..., 0]  # (..., n, k)
        distance = known.norm(dim=-1).square() - 2 * product  # (..., n, k)
        weight = (-self.temperature / x.shape[-1] * distance).softmax(-1)  # (..., n, k)
        return (weight[..., None, :] @ known)[..., 0, :]


def _multiply(query: Tensor, known: Tensor, squared: bool = False) -> Tensor:
    """Compute the products of queries and stored images, or of their squares. (B, L), (N, L) -> (B, N)."""
    step = query.shape[1] if in_one_part(query) else VALUES
    read = (lambda y: y.float().square()) if squared else Tensor.float
    images = (zip(query.split(step, 1), y.split(step, 1), strict=True) for y in known.split(64))
    return torch.cat([sum(read(y) @ x.T for x, y in pairs) for pairs in images]).T  # faster than x @ y.T on a CPU
