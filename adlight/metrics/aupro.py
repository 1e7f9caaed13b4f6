"""Defective regions: how much of each one is found (AUPRO)."""

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import pad

# A region's pixels share this many units. Integers, unlike doubles, add up to the same sum in any order and
# on any number of processes. A region of 2^20 pixels is off by 5e-7 of itself; int64 holds 8 million regions.
UNITS = 2**40
EIGHT_CONNECTED = np.stack([np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))])  # images do not touch each other


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


def aupro(false_positive: Tensor, overlap: Tensor, limit: float = 0.3) -> float:
    """Area under the per-region-overlap curve up to a false positive rate, divided by that rate.

    Bergmann et al. 2021, The MVTec Anomaly Detection Dataset, section 5.

    Args:
        false_positive: (K,) normal pixels flagged as the threshold falls; the last one is their number.
        overlap: (K,) sum of `region_weights` flagged at the same thresholds.
        limit: false positive rate up to which the curve counts; it is straight within a step.

    Returns:
        1 for a perfect map, limit / 2 for a constant one.
    """
    fpr = pad(false_positive.double() / false_positive[-1], (1, 0))  # (K + 1,) from (0, 0)
    pro = pad(overlap.double() / overlap[-1], (1, 0))
    width = fpr.diff()
    inside = ((limit - fpr[:-1]) / width.clamp(min=1e-300)).clamp(0, 1)  # share of the step below the limit
    middle = pro[:-1] + inside * pro.diff() / 2
    return ((width * inside * middle).sum() / limit).item()
