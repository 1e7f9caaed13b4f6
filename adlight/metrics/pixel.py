"""Pixel metrics in constant memory: a histogram of scores that merges exactly over batches and processes."""

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torchmetrics import Metric

from adlight.metrics.histogram import Histogram
from adlight.metrics.image import check_finite

BINS = 2**20  # occupied bins at most, over all groups
CHUNK = 2**20  # pixels counted at once, so that a batch of any size takes little memory
# A region's pixels share this many units. Integers, unlike doubles, add up to the same sum in any order and
# on any number of processes. A region of 2^20 pixels is off by 5e-7 of itself; int64 holds 8 million regions.
UNITS = 2**40
EIGHT_CONNECTED = np.stack([np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))])  # images do not touch each other
ZERO = 2**31  # the key of score 0
NEGATIVE_ZERO = -(2**31)  # the bits of -0.0, as an int32
LARGEST = 0x7F7FFFFF  # bits of the largest finite float32
DEFECTIVE = 2**62  # added to the code of a defective pixel


def to_key(score: Tensor) -> Tensor:
    """Map float32 scores to int64 in (0, 2^32) that sort alike: the float's own bits, mirrored below zero."""
    bits = score.view(torch.int32)
    return torch.where(bits < 0, NEGATIVE_ZERO - bits, bits).long().add_(ZERO)


def from_key(key: Tensor) -> Tensor:
    """Map keys back to float32 scores, the first or last finite one where a bin reaches beyond."""
    bits = (key - ZERO).clamp(-LARGEST, LARGEST).int()
    return torch.where(bits < 0, NEGATIVE_ZERO - bits, bits).view(torch.float32)


def region_weights(mask: Tensor) -> Tensor:
    """Weigh each defective pixel by 1 / size of its region, in `UNITS`.

    The mean overlap over regions is linear in these weights, so a histogram of them stands for all regions.

    Args:
        mask: (B, H, W) bool, True = defective; a region is 8-connected.

    Returns:
        (D,) int64 on the mask's device, in the order of `mask.nonzero()`.
    """
    found = mask.cpu().numpy()
    label = ndimage.label(found, structure=EIGHT_CONNECTED)[0][found]  # (D,) from 1
    share = (UNITS / torch.from_numpy(np.bincount(label)).double()).round().long()  # its first is that of no pixel
    return share[torch.from_numpy(label).long()].to(mask.device)


class PixelHistogram(Metric):
    """Collects pixel scores by group (category) in at most 2^20 occupied bins of 24 bytes, over all groups.

    A bin holds the normal or the defective pixels of a float32 without its last `shift` bits. Each distinct score has
    bins of its own (`shift` 0) until more than 2^20 are occupied; then bits are dropped until they fit. The final
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
    rows: list[Tensor]  # each (R, 3) int64: DEFECTIVE + (group << 32) + key, pixels, region weight
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
        self.rows = [torch.zeros(0, 3, dtype=torch.long, device=self.device)]

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
        low, high = pixel.flatten(1).aminmax(dim=1)  # (B,) each
        check_finite(torch.maximum(high, -low))
        if not (known := (group >= 0) & (group < self.groups)).all():
            raise ValueError(f"groups {group[~known].tolist()} are not in 0...{self.groups - 1}")
        step = max(1, CHUNK // max(1, pixel[:1].numel()))
        for start in range(0, len(pixel), step):
            part = slice(start, start + step)
            among = None if counted is None else counted[part]
            self.rows.append(self._count(pixel[part], mask[part], group[part], among))
            if sum(map(len, self.rows)) > 2 * self.bins:
                self._merge()

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return one row per bin (K, 3) and the number of bits dropped (); every process must call it."""
        return self._merged()

    def histogram(self, group: int | None = None) -> Histogram:
        """Return the histogram of one group, or of all pixels, on the CPU.

        The first call after an update computes, and gathers under DDP: every process must make it.
        """
        self._merge()
        rows, shift = (state.cpu() for state in self.compute())
        if group is not None:
            rows = rows[rows[:, 0] % DEFECTIVE >> 32 == group]
        key = rows[:, 0] & 0xFFFFFFFF
        lower = _sorted(key.clone()).unique_consecutive()  # (K,)
        place = _find(lower, key)
        pixels, overlap = lower.new_zeros(2, len(lower)), torch.zeros_like(lower)
        overlap.index_add_(0, place, rows[:, 2])
        pixels.view(-1).index_add_(0, place.add_((rows[:, 0] >= DEFECTIVE) * len(lower)), rows[:, 1])
        return Histogram(from_key(lower), from_key(lower + (1 << shift) - 1), pixels, overlap)

    def _count(self, pixel: Tensor, mask: Tensor, group: Tensor, counted: Tensor | None) -> Tensor:
        """Count some images (b, H, W) of a batch. -> rows (R, 3)."""
        code = to_key(pixel).add_((group << 32)[:, None, None]).add_(mask, alpha=DEFECTIVE)  # (b, H, W)
        code &= -(1 << self.shift)
        flawed = mask.flatten(1).any(1)  # (b,)
        defective = code[flawed][mask[flawed]]  # (D,)
        code = code.flatten() if counted is None else code[mask | counted]
        code, count = _sorted(code).unique_consecutive(return_counts=True)  # (R,) each
        weight = torch.zeros_like(count)
        weight.index_add_(0, _find(code, defective), region_weights(mask[flawed]))
        return torch.stack([code, count, weight], 1)

    def _merge(self) -> None:
        """Hold one row per bin."""
        if len(self.rows) > 1:
            merged, self.shift = self._merged()
            self.rows = [merged]

    def _merged(self) -> tuple[Tensor, Tensor]:
        """Drop as few bits as make the bins fit, and sum the rows of each bin."""
        blocks = self.rows if isinstance(self.rows, list) else [self.rows]  # synced: one tensor
        shift = self.shift.clone()
        code = _sorted(torch.cat([block[:, 0] & -(1 << shift) for block in blocks])).unique_consecutive()
        while len(code) > self.bins:
            shift += 1
            code = (code & -(1 << shift)).unique_consecutive()
        count, weight = torch.zeros_like(code), torch.zeros_like(code)
        for block in blocks:
            place = _find(code, block[:, 0] & -(1 << shift))
            count.index_add_(0, place, block[:, 1])
            weight.index_add_(0, place, block[:, 2])
        return torch.stack([code, count, weight], 1), shift


def _sorted(code: Tensor) -> Tensor:
    """Sort, on a CPU in place."""
    if code.device.type != "cpu":
        return code.sort().values
    code.numpy().sort()  # by vector instructions: 7 times as fast as torch's
    return code


def _find(distinct: Tensor, code: Tensor) -> Tensor:
    """Find the place of each code among the distinct ones, which rise."""
    if code.device.type != "cpu":
        return torch.searchsorted(distinct, code)
    return torch.from_numpy(np.searchsorted(distinct.numpy(), code.numpy()))  # twice as fast where codes rise too
