"""The weights that sites share, and federated averaging of them (FedAvg, McMahan 2017)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from adlight.types import UserError

if TYPE_CHECKING:
    from adlight.detection.module import AnomalyModule

Weights = dict[str, Tensor]  # by parameter name
FEDERATED = "autoencoder, ensemble, feature_mae, mae, mae_small, mkd, vae"


def check_model(module: "AnomalyModule") -> None:
    """Raise a UserError if a detector is not trained by one optimizer on one loss."""
    if not module.automatic_optimization or module.pretraining is not None:
        raise UserError(
            f"{type(module).__name__} cannot be federated with these settings: it is fitted without epochs, or trains "
            f"several networks in turn; use one of model={FEDERATED}"
        )


def shared_weights(module: "AnomalyModule") -> Weights:
    """Copy the parameters that are averaged, as float32 whatever precision a site trains in.

    These are the trainable parameters and, if the detector scores with them, their moving averages. Statistics of a
    site's images, such as the mean and standard deviation of features, stay at the site, like the batch statistics in
    FedBN (Li 2021).
    """
    return {name: p.detach().to("cpu", torch.float32, copy=True) for name, p in _shared(module).items()}


def set_shared_weights(module: "AnomalyModule", weights: Mapping[str, Tensor]) -> None:
    """Load averaged weights into a detector; all other parameters and buffers are kept.

    Raises:
        UserError: The weights belong to another architecture.
    """
    parameters = _shared(module)
    own, given = ({name: tuple(value.shape) for name, value in each.items()} for each in (parameters, weights))
    if own != given:
        name = min(name for name in {*own, *given} if own.get(name) != given.get(name))
        raise UserError(
            f"the sites' models differ: {name} has shape {own.get(name)} here and {given.get(name)} elsewhere; "
            "set the same dataset.image_size, dataset.channels and dataset.keep_shape for all of them"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])


def average(weights: Sequence[Mapping[str, Tensor]], images: Sequence[int]) -> Weights:
    """Average the weights w_k of sites with n_k images: sum of n_k / n w_k (McMahan 2017, algorithm 1), in float64."""
    total = sum(images)
    averaged = {}
    for name, first in weights[0].items():
        terms = (count / total * site[name].double() for count, site in zip(images, weights, strict=True))
        averaged[name] = sum(terms, torch.zeros(())).to(first.dtype)
    return averaged


def _shared(module: "AnomalyModule") -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad or name.startswith("ema.")}
