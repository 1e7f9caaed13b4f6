"""The weights that sites share, and their average: federated averaging (McMahan 2017)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from adlight.types import UserError

if TYPE_CHECKING:
    from adlight.detection.module import AnomalyModule

Weights = dict[str, Tensor]  # by the parameter's name
FEDERATED = "autoencoder, ensemble, feature_mae, mae, mae_small, mkd, vae"


def check_model(module: "AnomalyModule") -> None:
    """Refuse a detector whose training is not one optimizer's steps on a loss.

    Raises:
        UserError: it is fitted without epochs, by what would be the images themselves, or trains several networks.
    """
    if not module.automatic_optimization or module.pretraining is not None:
        raise UserError(
            f"{type(module).__name__} cannot be federated with these settings: it is fitted without epochs, or trains "
            f"several networks in turn; choose model= among {FEDERATED}"
        )


def shared_weights(module: "AnomalyModule") -> Weights:
    """Copy what is averaged: the trainable parameters, and their moving averages where the detector scores by these.

    All are float32, whatever a site trains in.

    Statistics of a site's own images, such as the mean and deviation of features, stay there (as batch statistics do
    in Li 2021, FedBN).
    """
    return {name: p.detach().to("cpu", torch.float32, copy=True) for name, p in _shared(module).items()}


def set_shared_weights(module: "AnomalyModule", weights: Mapping[str, Tensor]) -> None:
    """Put averaged weights into a detector; everything else in it stays.

    Raises:
        UserError: they are of another architecture.
    """
    mine = _shared(module)
    shapes, theirs = ({name: tuple(one.shape) for name, one in some.items()} for some in (mine, weights))
    if shapes != theirs:
        name = min(name for name in {*shapes, *theirs} if shapes.get(name) != theirs.get(name))
        raise UserError(
            f"the sites' models differ: {name} is of shape {shapes.get(name)} here and {theirs.get(name)} elsewhere; "
            "give all of them the same dataset.image_size, dataset.channels and dataset.keep_shape"
        )
    with torch.no_grad():
        for name, parameter in mine.items():
            parameter.copy_(weights[name])


def average(weights: Sequence[Mapping[str, Tensor]], images: Sequence[int]) -> Weights:
    """Average weights: w = sum over sites k of n_k / n w_k (McMahan 2017, algorithm 1), summed in float64.

    Args:
        weights: those of each site.
        images: n_k, how many images each site trains on; n is their sum.
    """
    total = sum(images)
    shares = [count / total for count in images]
    return {
        name: sum((share * one[name].double() for share, one in zip(shares, weights, strict=True)), torch.zeros(())).to(
            value.dtype
        )
        for name, value in weights[0].items()
    }


def _shared(module: "AnomalyModule") -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad or name.startswith("ema.")}
