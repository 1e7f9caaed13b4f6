"""What is fitted beside the network: the linear start before the training, the covariances at every validation."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from adlight.data.datamodule import AnomalyDataModule
from adlight.data.frames import group_by_size
from adlight.data.pseudo_dataset import Images
from adlight.detection.crossfitting import fetch
from adlight.detection.maps import hide_outside
from adlight.features.cache import assign_folds, images_of
from adlight.mae.linear import LinearStart
from adlight.mae.scorer import reconstruct
from adlight.mae.tokens import PixelTokenizer
from adlight.mae.whitened import Pair

if TYPE_CHECKING:
    from adlight.mae.module import MAEModule

MAX_IMAGES = 1000  # that the linear start is fitted to: their tokens are floats in memory, and their products square
BATCH = 32


def fit_linear(linear: LinearStart, tokenizer: PixelTokenizer, data: AnomalyDataModule) -> None:
    """Fit the linear start to the training images as they are, evenly spaced ones where they are many."""
    images = images_of(data, "train")
    parts = (fetch(images, index, linear.mean.device) for index in spaced(len(images), MAX_IMAGES).split(BATCH))
    linear.fit(torch.cat([tokenizer.tokenize(batch["image"], batch.get("size")) for batch in parts]))


def fit_whitening(module: "MAEModule", folds: int, training: int) -> Tensor:
    """Fit the covariances of residuals to held-out normal images and so many of the training images.

    -> (N,), the fold of each held-out image or pseudo-anomaly.
    """
    assert module.scorer.whitening is not None  # the scorer asks for it
    held_out, images = images_of(module.datamodule, "val"), images_of(module.datamodule, "train")
    normal, fold_of = assign_folds(held_out, folds)
    fold = fold_of[normal]
    context = module.trainer.precision_plugin.forward_context()
    with torch.inference_mode(False), torch.no_grad(), context:  # what is kept must not be inference tensors
        parts = [_residual_pairs(module, held_out, normal[fold == k]) for k in fold.unique()]
        more = _residual_pairs(module, images, spaced(len(images), training))
    module.scorer.whitening.fit(parts, more)
    return fold_of


def spaced(count: int, wanted: int) -> Tensor:
    """Choose at most `wanted` of so many places, evenly spaced."""
    return torch.arange(0, count, max(1, -(-count // wanted)))


def _residual_pairs(module: "MAEModule", images: Images, index: Tensor) -> list[Pair]:
    """Reconstruct images as they are scored, parts of one size."""
    mask, visible = module.scorer.drawn_masks(module.network.num_patches)
    found = []
    for part in index.split(BATCH):
        batch = fetch(images, part, module.device)
        image, size, content = batch["image"], batch.get("size"), batch.get("content")
        shown = reconstruct(module.averaged, module.tokenizer, image, mask, size, visible, module.linear).float()
        shown = hide_outside(shown, image, content)
        whole = [(slice(None), *image.shape[-2:])] if size is None else group_by_size(size)
        found += [(image[rows, :, :h, :w], shown[rows, :, :h, :w]) for rows, h, w in whole]
    return found
