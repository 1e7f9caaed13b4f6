"""PatchCore (Roth 2022): a coreset of training cells, and the distance to the nearest of them."""

from collections.abc import Iterator

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Generator, Tensor
from torch.nn import functional as F

from adlight.features.cells import FEW, TrainingCells, content_of, in_image, in_parts, is_padded
from adlight.features.predictor import Predictor
from adlight.settings import PositiveShare, Seed, checked

CHUNK = 2**22  # distances held at a time: 16 MiB
EXPORTED = 2**12  # bank cells at a time in an exported graph, where the number of images is not known


class PatchBank(Predictor):
    """Predicts a cell as the nearest of a bank of training cells; the bank is a greedy coreset.

    Cells are first averaged over 3 x 3 of them. An image's score is the distance of its worst cell, re-weighted by
    the density of the bank there (Roth 2022, eq. 7).

    Args:
        channels: C.
        coreset: share of the training cells that the bank keeps.
        max_cells: largest number of cells in the bank.
        sample: largest number of randomly drawn cells to choose the bank from; the time for the greedy choice is
            proportional to this number times the bank's size.
        projection: dimension of the random projection used for that choice, which roughly preserves distances
            (Johnson-Lindenstrauss); 0 = no projection.
        neighbours: number of bank cells around the nearest one that measure its density; 1 = no re-weighting.
        pooled: whether cells are averaged over 3 x 3 of them.
        seed: seed of the draws.
    """

    bank: Tensor
    whitened = False

    @checked
    def __init__(
        self,
        channels: PositiveInt,
        coreset: PositiveShare = 0.1,
        max_cells: PositiveInt = 10_000,
        sample: PositiveInt = 100_000,
        projection: NonNegativeInt = 64,
        neighbours: PositiveInt = 9,
        pooled: bool = True,
        seed: Seed = 0,
    ) -> None:
        super().__init__()
        self.coreset, self.max_cells, self.sample, self.projection = coreset, max_cells, sample, projection
        self.neighbours, self.pooled, self.seed = neighbours, pooled, seed
        self.register_buffer("bank", torch.empty(0, channels))

    def fit(self, cells: TrainingCells) -> None:
        """Choose the bank."""
        rng = Generator().manual_seed(self.seed)
        total = int(in_image(cells.features).sum())
        drawn = torch.randperm(total, generator=rng)[: self.sample].sort().values
        x, start, end = cells.mean.new_empty(len(drawn), len(cells.mean)), 0, 0  # (n, C)
        for part in cells.batches(FEW):
            flat = content_of(self.pool(part))
            inside = drawn[(drawn >= start) & (drawn < start + len(flat))] - start
            x[end : end + len(inside)] = flat[inside.to(flat.device)]
            start, end = start + len(flat), end + len(inside)
        wanted = max(1, min(self.max_cells, round(self.coreset * total), len(x)))
        seen = x
        if 0 < self.projection < x.shape[1]:
            seen = x @ torch.randn(x.shape[1], self.projection, generator=rng).to(x) / self.projection**0.5
        self.bank = x[greedy_coreset(seen, wanted, rng)]

    def pool(self, cells: Tensor) -> Tensor:
        """Average over 3 x 3 cells, fewer at the borders. (B, h, w, C) -> (B, h, w, C)."""
        if not self.pooled:
            return cells
        if not is_padded(cells):
            return F.avg_pool2d(cells.permute(0, 3, 1, 2), 3, 1, 1, count_include_pad=False).permute(0, 2, 3, 1)
        inside = in_image(cells)[..., None]  # (B, h, w, 1)
        maps = [one.permute(0, 3, 1, 2) for one in (cells.where(inside, 0), inside.to(cells.dtype))]
        total, known = (F.avg_pool2d(one, 3, 1, 1, count_include_pad=False).permute(0, 2, 3, 1) for one in maps)
        return (total / known).where(inside, torch.nan)

    def forward(self, cells: Tensor) -> Tensor:
        """Find the nearest bank cell of each pooled cell. (B, h, w, C) -> (B, h, w, C)."""
        return self.bank[self.nearest(self.pool(cells))]

    def residual(self, cells: Tensor, own: Tensor | None = None) -> Tensor:
        """Subtract the nearest bank cell from the pooled cell. (B, h, w, C) -> (B, h, w, C)."""
        if len(parts := in_parts(cells)) == 1:
            pooled = self.pool(cells)
            return pooled - self.bank[self.nearest(pooled)]
        residual = torch.empty_like(cells)
        for part, found in zip(parts, in_parts(residual), strict=True):
            found.copy_(self.residual(part))
        return residual

    def nearest(self, cells: Tensor) -> Tensor:
        """Find which bank cell is nearest. (..., C) -> (...) int64."""
        flat = cells.flatten(0, -2)
        best = flat.new_full((flat.shape[0],), torch.inf)
        place = torch.zeros(flat.shape[0], dtype=torch.long, device=cells.device)
        for start, part in _parts(self.bank, EXPORTED if torch.compiler.is_exporting() else CHUNK // max(1, len(flat))):
            distance, found = torch.addmm(part.square().sum(1), flat, part.T, alpha=-2).min(1)
            closer = distance < best
            best, place = torch.where(closer, distance, best), torch.where(closer, found + start, place)
        return place.view(cells.shape[:-1])

    def image_score(self, cells: Tensor, score: Tensor) -> Tensor:
        """Weigh the worst cell's distance by 1 - its softmax among those to its nearest bank cell's neighbours."""
        worst = score.flatten(1).nan_to_num(-torch.inf).argmax(1)  # (B,)
        pairs = zip(in_parts(cells), in_parts(worst), strict=True)
        x = torch.cat([_cells_at(place, self.pool(part)) for part, place in pairs])  # (B, C)
        nearest = self.bank[self.nearest(x)]  # (B, C)
        distance = (x - nearest).norm(dim=1)  # (B,)
        if self.neighbours == 1:
            return distance
        order = self.bank.square().sum(1) - 2 * nearest @ self.bank.T  # (B, N), of the distances to `nearest`
        around = order.topk(min(self.neighbours, len(self.bank)), largest=False).indices  # (B, b)
        to_around = (x[:, None] - self.bank[around]).norm(dim=2)  # (B, b)
        scale = x.shape[1] ** 0.5  # exponents of distances over C values would all be 0 or infinite
        share = (distance / scale - (to_around / scale).logsumexp(1)).exp()  # (B,)
        return (1 - share) * distance

    def summary(self) -> str:
        """Say what was fitted."""
        return f"distance to the nearest of {len(self.bank)} training cells"


def greedy_coreset(points: Tensor, count: int, rng: Generator) -> Tensor:
    """Choose points that cover all others within a small radius (Gonzalez 1985). (n, C) -> (count,).

    A 2-approximation of the k-centre problem: each step takes the point farthest from all those taken before.
    """
    chosen = torch.empty(count, dtype=torch.long, device=points.device)
    chosen[0] = torch.randint(len(points), (), generator=rng)
    norm = points.square().sum(1)  # (n,)
    distance = torch.full_like(norm, torch.inf)
    for i in range(1, count):
        last = points[chosen[i - 1]]
        torch.minimum(distance, torch.addmv(norm + last.square().sum(), points, last, alpha=-2), out=distance)
        chosen[i] = distance.argmax()
    return chosen


def _cells_at(place: Tensor, cells: Tensor) -> Tensor:
    """Select a cell of each image. (B,), (B, h, w, C) -> (B, C)."""
    return cells.flatten(1, 2)[torch.arange(cells.shape[0], device=cells.device), place]


def _parts(bank: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
    size = max(1, size)
    return ((start, bank[start : start + size]) for start in range(0, len(bank), size))
