"""A linear prediction of hidden tokens, which the autoencoder corrects.

Training images are modelled by probabilistic principal components (Tipping & Bishop 1999), x = mean + c W + noise. The
visible tokens v of a view determine the coefficients c = (x_v - mean_v) W_v^T (W_v W_v^T + s I)^-1, which predict the
hidden tokens: ridge regression of hidden on visible tokens within the components' span, in closed form for any mask.

Letters: N images, B images of a batch, L tokens of P values, n views, K components.
"""

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from adlight.settings import checked


class LinearStart(nn.Module):
    """Predicts hidden tokens by principal components of the training images; fitted once, not trained by gradient.

    Args:
        num_patches: L.
        token_dim: P.
        components: K; only as many are used as a fifth of the number of training images, as more would fit noise.
            0 predicts the mean at each position.

    Attributes:
        mean: (L, P), mean of the training images.
        components: (L, K, P), each scaled to the standard deviation of its coefficient; unused components are 0.
        noise: s, mean variance outside the components' span.
    """

    mean: Tensor
    components: Tensor
    noise: Tensor

    @checked
    def __init__(self, num_patches: PositiveInt, token_dim: PositiveInt, components: NonNegativeInt = 40) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_patches, token_dim))
        self.register_buffer("components", torch.zeros(num_patches, components, token_dim))
        self.register_buffer("noise", torch.ones(()))
        self.gram: Tensor | None = None
        self.solved: tuple[Tensor, Tensor] | None = None  # the mask last used for scoring, and its inverses
        self.register_load_state_dict_post_hook(_forget)  # a lambda could not be pickled

    def forget(self) -> None:
        """Drop everything computed from the components."""
        self.gram, self.solved = None, None

    @torch.no_grad()
    def fit(self, tokens: Tensor) -> None:
        """Compute the mean and the largest principal components of training images (N, L, P)."""
        self.mean.copy_(tokens.mean(0))
        x = (tokens - self.mean).flatten(1)  # (N, L P)
        gram = (x @ x.T).double() / len(x)  # (N, N): there are fewer images than values
        variance, basis = (part.flip(-1) for part in torch.linalg.eigh(gram))  # (N,), (N, N), largest first
        count = min(self.components.shape[1], len(x) // 5)
        found = basis[:, :count].T.to(x.dtype) @ x / len(x) ** 0.5  # (k, L P)
        self.components.zero_()
        self.components[:, :count] = found.unflatten(1, self.mean.shape).transpose(0, 1)
        self.noise.copy_((variance[count:].sum() / x.shape[1]).clamp(min=1e-6))
        self.forget()

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Average the predictions of each token over the views that hide it. (B, L, P), (n, L) bool -> (B, L, P).

        A token that no view hides gets the mean at its position. Computed in float64, because rounding errors depend
        on the batch size, and an image's score must not.
        """
        with torch.autocast(tokens.device.type, enabled=False):
            x, hidden = (tokens - self.mean).double(), mask.to(tokens.device, torch.float64)  # (B, L, P), (n, L)
            components = self.components.double()  # (L, K, P)
            products = torch.einsum("blp,lkp->blk", x, components)  # (B, L, K)
            visible = torch.einsum("nl,blk->nbk", 1 - hidden, products)  # (n, B, K), (x_v - mean_v) W_v^T
            weight = hidden / hidden.sum(0).clamp(min=1)  # (n, L)
            coefficients = torch.einsum("nl,nbk->blk", weight, visible @ self.inverses(mask))  # (B, L, K)
            return self.mean + torch.einsum("blk,lkp->blp", coefficients, components).float()  # (B, L, P)

    @torch.no_grad()
    def inverses(self, mask: Tensor) -> Tensor:
        """Invert W_v W_v^T + s I of each view. (n, L) -> (n, K, K).

        Scoring uses fixed masks, whose inverses are cached, because an exported graph cannot invert matrices.
        """
        if self.solved is not None and self.solved[0] is mask and self.solved[1].device == self.mean.device:
            return self.solved[1]
        with torch.inference_mode(False):
            if self.gram is None or self.gram.device != self.mean.device:
                w = self.components.double()
                self.gram = w @ w.transpose(1, 2)  # (L, K, K)
            total = torch.einsum("nl,lkj->nkj", (~mask).to(self.gram), self.gram)  # (n, K, K)
            eye = torch.eye(total.shape[-1], dtype=total.dtype, device=total.device)
            found = torch.linalg.inv_ex(total + self.noise * eye).inverse
        if not self.training:
            self.solved = mask, found
        return found


def _forget(module: LinearStart, incompatible: object) -> None:
    module.forget()
