"""Pixel metrics in constant memory: a histogram of scores that merges exactly over batches and processes."""

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torchmetrics import Metric

from adlight.metrics.histogram import Histogram
from adlight.metrics.image import check_finite

BINS = 2**20  # occupied bins at most, over all groups
# A region's pixels share this many units. Integers, unlike doubles, add up to the same sum in any order and
# on any number of processes. A region of 2^20 pixels is off by 5e-7 of itself; int64 holds 8 million regions.
UNITS = 2**40
EIGHT_CONNECTED = np.stack([np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))])  # images do not touch each other
ZERO = 2**31  # the key of score 0
LARGEST = 0x7F7FFFFF  # bits of the largest finite float32


def to_key(score: Tensor) -> Tensor:
    """Map float32 scores to int64 in (0, 2^32) that sort alike: the float's own bits, mirrored below zero."""
    bits = score.view(torch.int32).long()
    return torch.where(bits < 0, ZERO - (bits & 0x7FFFFFFF), ZERO + bits)


def from_key(key: Tensor) -> Tensor:
    """Map keys back to float32 scores, the first or last finite one where a bin reaches beyond."""
    bits = (key - ZERO).clamp(-LARGEST, LARGEST)
    score = bits.abs().int().view(torch.float32)
    return torch.where(bits < 0, -score, score)


def region_weights(mask: Tensor) -> Tensor:
    """Weigh each defective pixel by 1 / size of its region, in `UNITS`; 0 elsewhere.

    The mean overlap over regions is linear in these weights, so a histogram of them stands for all regions.

    Args:
        mask: (B, H, W) bool, True = defective; a region is 8-connected.

    Returns:
        (B, H, W) int64 on the mask's device.
    """
    label, _ = ndimage.label(mask.cpu().numpy(), structure=EIGHT_CONNECTED)  # (B, H, W), 0 = background
    size = torch.from_numpy(np.bincount(label.ravel()))
    share = (UNITS / size.double()).round().long()
    share[0] = 0
    return share[torch.from_numpy(label).long()].to(mask.device)


class PixelHistogram(Metric):
    """Collects pixel scores by group (category) in at most 2^20 occupied bins of 32 bytes, over all groups.

    A bin is a float32 without its last `shift` bits. Each distinct score has its own bin (`shift` 0) until
    more than 2^20 pairs of group and score have been seen; then bits are dropped until they fit. The final
    bins depend only on the set of scores, not on their order, batches or processes, so merging is exact.
    Fixed bins would fail on offsets: of 2^20 bins over all floats, 1e6 +- 0.5 fills a single one.

    Worst error of AUROC, AP, best F1, AUPRO and IoU against exact computation, on 3.2 million pixels
    (log-normal, squared, tied, bimodal, normal, uniform, Cauchy, 100 +- 0.5, 1e6 +- 0.5 with and without
    zeros): 8e-6; with 2^16 bins, as each of 16 categories has them, 7e-5. The limit: a spike narrower than
    about 2^(shift - 23) of its own offset, beside a million other distinct scores, gets one bin.

    Args:
        groups: how many groups there are; groups are numbered from 0.
        bins: occupied bins at most; twice as many rows are held between merges.
    """

    full_state_update = False
    rows: list[Tensor]  # each (R, 4) int64: group << 32 | key, normal pixels, defective pixels, region weight
    shift: Tensor

    def __init__(self, groups: int = 1, bins: int = BINS) -> None:
        super().__init__()
        self.groups, self.bins = groups, bins
        self.add_state("rows", [], dist_reduce_fx="cat")
        self.add_state("shift", torch.tensor(0), dist_reduce_fx="max")
        self.reset()

    def reset(self) -> None:
        """Forget everything; one empty block stays, as a process without data must gather with the others."""
        super().reset()
        self.rows = [torch.zeros(0, 4, dtype=torch.long, device=self.device)]

    def update(self, pixel: Tensor, mask: Tensor, group: Tensor, counted: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            pixel: (B, H, W) any finite real numbers, larger is more anomalous; counted in float32.
            mask: (B, H, W) bool, True = defective.
            group: (B,) int64 in 0...groups - 1.
            counted: (B, H, W) bool, False = padding, which the mask leaves out; None: all pixels.

        Raises:
            ValueError: a pixel is NaN or infinite in float32, or a group is not in 0...groups - 1.
        """
        pixel = pixel.detach().float()
        check_finite(pixel.abs().amax((1, 2)))  # (B,)
        if not (known := (group >= 0) & (group < self.groups)).all():
            raise ValueError(f"groups {group[~known].tolist()} are not in 0...{self.groups - 1}")
        code = (group[:, None, None] << 32 | to_key(pixel)) >> self.shift << self.shift  # (B, H, W)
        normal, count = code[~mask if counted is None else ~mask & counted].unique(return_counts=True)
        self.rows.append(torch.stack([normal, count, count * 0, count * 0], 1))
        if mask.any():
            weight = region_weights(mask)[mask]
            self.rows.append(torch.stack([code[mask], weight * 0, weight * 0 + 1, weight], 1))
        if sum(map(len, self.rows)) > 2 * self.bins:
            merged, self.shift = self._merged()
            self.rows = [merged]

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return one row per bin (K, 4) and the number of bits dropped (); every process must call it."""
        return self._merged()

    def histogram(self, group: int | None = None) -> Histogram:
        """Return the histogram of one group, or of all pixels, on the CPU.

        The first call after an update computes, and gathers under DDP: every process must make it.
        """
        rows, shift = (state.cpu() for state in self.compute())
        if group is not None:
            rows = rows[rows[:, 0] >> 32 == group]
        key, rows = _summed(rows[:, 0] & 0xFFFFFFFF, rows)
        last = key + (1 << shift) - 1
        return Histogram(from_key(key), from_key(last), rows[:, 1:3].T, rows[:, 3])

    def _merged(self) -> tuple[Tensor, Tensor]:
        """Drop as few bits as make the bins fit, and sum the rows of each bin."""
        rows = torch.cat(self.rows) if isinstance(self.rows, list) else self.rows  # synced: one tensor
        shift = self.shift.clone()
        code = (rows[:, 0] >> shift << shift).unique()
        while len(code) > self.bins:
            shift += 1
            code = (code >> shift << shift).unique_consecutive()
        return _summed(rows[:, 0] >> shift << shift, rows)[1], shift


def _summed(code: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Sum rows (R, 4) that share a code (R,): distinct codes, rising (K,), and a row for each (K, 4)."""
    code, place = code.unique(return_inverse=True)
    total = rows.new_zeros(len(code), 4).index_add_(0, place, rows)
    total[:, 0] = code
    return code, total
