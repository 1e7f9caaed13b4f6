"""Masks over the L patches of an image: bool (n, L), True = hidden; drawn on the CPU from an explicit generator."""

from functools import lru_cache
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor

Ratio = Annotated[float, Field(gt=0, lt=1)]  # fraction of the patches that a view hides
Scheme = Literal["complementary", "single"]


def num_views(mask_ratio: float, num_patches: int) -> int:
    """Convert a mask ratio r for L patches to the number of masks n = 1 / (1 - r) (article, section 2, eq. 2).

    Raises:
        ValueError: n is not an integer (within 1e-6) or not in 2..L; the message names the nearest valid ratios.
    """
    if not 0.0 < mask_ratio < 1.0:
        raise ValueError(f"mask_ratio must lie between 0 and 1, got {mask_ratio}")
    exact = 1.0 / (1.0 - mask_ratio)
    n = round(exact)
    if abs(exact - n) <= 1e-6 * exact and 2 <= n <= num_patches:
        return n
    low = min(max(int(exact), 2), num_patches)
    nearest = sorted({low, min(max(low + 1, 2), num_patches)})
    ratios = " and ".join(f"{1 - 1 / k:.6g} (n = {k})" for k in nearest)
    raise ValueError(
        f"mask_ratio {mask_ratio} gives n = 1/(1 - r) = {exact:.6g} masks, which must be an integer in "
        f"2..{num_patches} (the number of patches); the nearest valid ratios are {ratios}"
    )


def partition_masks(num_patches: int, n: int, rng: Generator) -> Tensor:
    """Draw n complementary masks: every patch is visible in exactly one view (eq. 2). -> (n, L) bool.

    The numbers of visible patches differ by at most one; the larger views come first. n must lie in 2..L.
    """
    if not 2 <= n <= num_patches:
        raise ValueError(
            f"the number of complementary masks must be 2..{num_patches} for {num_patches} patches, got {n}"
        )
    view = torch.empty(num_patches, dtype=torch.long)
    view[torch.randperm(num_patches, generator=rng)] = torch.arange(num_patches) % n  # (L,)
    return view != torch.arange(n)[:, None]  # (n, L)


def random_mask(num_patches: int, mask_ratio: float, rng: Generator) -> Tensor:
    """Draw the single mask of the plain MAE, which hides round(r L) patches (He 2021). -> (1, L) bool."""
    hidden = round(mask_ratio * num_patches)
    if not 0 < hidden < num_patches:
        raise ValueError(
            f"mask_ratio {mask_ratio} hides {hidden} of {num_patches} patches: some, not all, must be hidden"
        )
    mask = torch.zeros(1, num_patches, dtype=torch.bool)
    mask[0, torch.randperm(num_patches, generator=rng)[:hidden]] = True
    return mask


def draw_masks(masks: Scheme, mask_ratio: float, num_patches: int, rng: Generator) -> Tensor:
    """Draw the masks of a scheme: `complementary` (the article's) or `single` (the plain MAE's). -> (n, L) bool."""
    if masks == "single":
        return random_mask(num_patches, mask_ratio, rng)
    return partition_masks(num_patches, num_views(mask_ratio, num_patches), rng)


@lru_cache(maxsize=32)
def fixed_masks(
    masks: Scheme, mask_ratio: float, num_patches: int, seed: int, rounds: int = 1
) -> tuple[Tensor, list[Tensor]]:
    """Draw the masks that score every image, and list their visible patches, see `split_by_size`.

    -> (n rounds, L) bool, and (g, V) each. Cached, because the trace of an exported graph cannot draw masks.
    """
    with torch.inference_mode(False):
        rng = Generator().manual_seed(seed)
        mask = torch.cat([draw_masks(masks, mask_ratio, num_patches, rng) for _ in range(rounds)])
        return mask, split_by_size(~mask)


def split_by_size(visible: Tensor) -> list[Tensor]:
    """List the visible patches of each view, in order; views of equal size share a tensor. (n, L) -> (g, V) each."""
    _, lengths = visible.sum(1).unique_consecutive(return_counts=True)
    return [group.nonzero()[:, 1].view(len(group), -1) for group in visible.split(lengths.tolist())]
