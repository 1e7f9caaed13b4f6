"""PatchCore (Roth 2022): the distance of each cell to the nearest cell in a coreset of the training cells."""

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Generator, Tensor
from torch.nn import functional as F

from adlight.features.cells import FEW, TrainingCells, content_of, in_image, in_parts, is_padded
from adlight.features.predictor import Predictor
from adlight.settings import PositiveShare, Seed, checked

CHUNK = 2**22  # number of distances computed at a time: 16 MiB
EXPORTED = 2**12  # number of bank cells at a time in an exported graph, whose batch size is unknown


class PatchBank(Predictor):
    """Predicts each cell as the nearest cell in a memory bank, a greedy coreset of the training cells.

    Cells are first averaged over their 3 x 3 neighbourhoods. An image's score is the distance of its worst cell,
    re-weighted by the density of the bank there (Roth 2022, eq. 7).

    Args:
        channels: C.
        coreset: fraction of the training cells kept in the bank.
        max_cells: largest number of cells in the bank.
        sample: largest number of randomly drawn cells from which the bank is selected; the greedy selection takes time
            proportional to this number times the bank's size.
        projection: dimension of the random projection used in the selection, which roughly preserves distances
            (Johnson-Lindenstrauss); 0 for no projection.
        neighbours: number of bank cells around the nearest bank cell that measure the density; 1 for no re-weighting.
        pooled: whether cells are averaged over their 3 x 3 neighbourhoods.
        seed: seed of the random draws.
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
        """Draw training cells at random, and select the bank from them."""
        rng = Generator().manual_seed(self.seed)
        total = int(in_image(cells.features).sum())
        drawn = torch.randperm(total, generator=rng)[: self.sample].sort().values  # (n,)
        x = cells.mean.new_empty(len(drawn), len(cells.mean))  # (n, C)
        seen = filled = 0  # number of training cells read, and of rows of x filled
        for part in cells.batches(FEW):
            flat = content_of(self.pool(part))
            index = drawn[(drawn >= seen) & (drawn < seen + len(flat))] - seen
            x[filled : filled + len(index)] = flat[index.to(flat.device)]
            seen, filled = seen + len(flat), filled + len(index)
        projected = x
        if 0 < self.projection < x.shape[1]:
            projected = x @ torch.randn(x.shape[1], self.projection, generator=rng).to(x) / self.projection**0.5
        count = max(1, min(self.max_cells, round(self.coreset * total), len(x)))
        self.bank = x[greedy_coreset(projected, count, rng)]

    def pool(self, cells: Tensor) -> Tensor:
        """Average cells over 3 x 3 neighbourhoods, ignoring padding. (B, h, w, C) -> (B, h, w, C)."""
        if not self.pooled:
            return cells
        if not is_padded(cells):
            return _average_3x3(cells)
        inside = in_image(cells)[..., None]  # (B, h, w, 1)
        mean = _average_3x3(cells.where(inside, 0)) / _average_3x3(inside.to(cells.dtype))
        return mean.where(inside, torch.nan)

    def forward(self, cells: Tensor) -> Tensor:
        """Find the nearest bank cell of each pooled cell. (B, h, w, C) -> (B, h, w, C)."""
        return self.bank[self.nearest(self.pool(cells))]

    def residual(self, cells: Tensor, own: Tensor | None = None) -> Tensor:
        """Subtract the nearest bank cell from the pooled cell. (B, h, w, C) -> (B, h, w, C)."""
        if len(parts := in_parts(cells, 1)) == 1:  # more images take as long, and more memory
            pooled = self.pool(cells)
            return pooled - self.bank[self.nearest(pooled)]
        residual = torch.empty_like(cells)
        for part, target in zip(parts, in_parts(residual, 1), strict=True):
            target.copy_(self.residual(part))
        return residual

    def nearest(self, cells: Tensor) -> Tensor:
        """Find the index of the nearest bank cell. (..., C) -> (...) int64."""
        flat = cells.flatten(0, -2)
        best = flat.new_full((flat.shape[0],), torch.inf)
        index = torch.zeros(flat.shape[0], dtype=torch.long, device=cells.device)
        size = EXPORTED if torch.compiler.is_exporting() else max(1, CHUNK // max(1, len(flat)))
        for start in range(0, len(self.bank), size):
            part = self.bank[start : start + size]
            distance, found = torch.addmm(part.square().sum(1), flat, part.T, alpha=-2).min(1)
            closer = distance < best
            best, index = torch.where(closer, distance, best), torch.where(closer, found + start, index)
        return index.view(cells.shape[:-1])

    def image_score(self, cells: Tensor, score: Tensor) -> Tensor:
        """Re-weight the distance of the worst cell (Roth 2022, eq. 7). (B, h, w, C), (B, h, w) -> (B,).

        The weight is 1 - the distance's softmax over the distances to the nearest bank cell's neighbours.
        """
        worst = score.flatten(1).nan_to_num(-torch.inf).argmax(1)  # (B,)
        pairs = zip(in_parts(cells, 1), in_parts(worst, 1), strict=True)
        x = torch.cat([_select_cells(self.pool(part), index) for part, index in pairs])  # (B, C)
        nearest = self.bank[self.nearest(x)]  # (B, C)
        distance = (x - nearest).norm(dim=1)  # (B,)
        if self.neighbours == 1:
            return distance
        squared = self.bank.square().sum(1) - 2 * nearest @ self.bank.T  # (B, N), to `nearest`, without its |.|^2
        around = squared.topk(min(self.neighbours, len(self.bank)), largest=False).indices  # (B, b)
        to_around = (x[:, None] - self.bank[around]).norm(dim=2)  # (B, b)
        scale = x.shape[1] ** 0.5  # without it, exponentials of distances over C channels would be 0 or infinite
        softmax = (distance / scale - (to_around / scale).logsumexp(1)).exp()  # (B,)
        return (1 - softmax) * distance

    def summary(self) -> str:
        """Describe the bank."""
        return f"distance to the nearest of {len(self.bank)} training cells"


def greedy_coreset(points: Tensor, count: int, rng: Generator) -> Tensor:
    """Choose points that cover all others within a small radius (Gonzalez 1985). (n, C) -> (count,) indices.

    A 2-approximation of the k-centre problem: each step takes the point farthest from the points already chosen.
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


def _average_3x3(cells: Tensor) -> Tensor:
    return F.avg_pool2d(cells.permute(0, 3, 1, 2), 3, 1, 1, count_include_pad=False).permute(0, 2, 3, 1)


def _select_cells(cells: Tensor, index: Tensor) -> Tensor:
    """Select one cell of each image. (B, h, w, C), (B,) -> (B, C)."""
    return cells.flatten(1, 2)[torch.arange(cells.shape[0], device=cells.device), index]
