"""Residuals in units of what normal images show, at their place and in their directions."""

import pytest
import torch

from adlight.detection.maps import ReconstructionError
from adlight.mae.scorer import MultiMaskScorer
from adlight.mae.whitened import WhitenedResidual, thumbnails
from adlight.types import UserError


def normal(count, seed=0, size=(32, 48), loud=False):
    """Images of one kind and reconstructions that miss noise; in its left half ten times as much, if `loud`."""
    rng = torch.Generator().manual_seed(seed)
    image = torch.full((count, 3, *size), 0.5)
    residual = 0.01 * torch.randn(image.shape, generator=rng)
    residual[..., : size[1] // 2] *= 10 if loud else 1
    return image, image - residual


def fitted(size=(32, 48), loud=False, **settings):
    whitening = WhitenedResidual(**({"cluster_size": 99} | settings))
    whitening.fit([[normal(8, k, size, loud)] for k in range(2)], [normal(40, 9, size, loud)])
    return whitening


@pytest.mark.parametrize("window, stride", [(8, 4), (8, 8), (6, 3)])
def test_normal_residuals_have_length_one(window, stride):
    found = fitted(window=window, stride=stride)(*normal(8, seed=20))
    assert found.shape == (8, 32, 48) and float(found.square().mean()) == pytest.approx(1, abs=0.15)


def test_a_defect_counts_in_units_of_its_place():
    """One and the same residual is usual on the left and a defect on the right."""
    size = 32, 128
    whitening, (image, reconstruction) = fitted(size, loud=True), normal(2, 20, size, loud=True)
    quiet = whitening(image, reconstruction)
    assert quiet[..., :32].mean() == pytest.approx(float(quiet[..., -32:].mean()), rel=0.3)
    for columns, low, high in ((slice(16, 24), 1, 3), (slice(104, 112), 5, 100)):
        changed = image.clone()
        changed[..., 8:16, columns] += 0.1
        found = whitening(changed, reconstruction)[..., 8:16, columns].mean() / quiet[..., 8:16, columns].mean()
        assert low < found < high


def test_windows_are_centred_on_their_pixels():
    whitening, (image, reconstruction) = fitted(), normal(1, seed=20)
    image[..., 16:20, 28:32] += 0.2
    row, column = divmod(int(whitening(image, reconstruction).argmax()), 48)
    assert 16 <= row < 20 and 28 <= column < 32


@pytest.mark.parametrize("size", [(28, 28), (33, 47)])
def test_any_size_has_a_map(size):
    assert fitted()(*normal(2, size=size)).shape == (2, *size)


def test_images_are_measured_by_those_like_them():
    dark, bright = normal(8), normal(8, 1)
    bright = bright[0] + 0.4, bright[0] + 0.4 + 10 * (bright[1] - bright[0])  # ten times the residual
    whitening = WhitenedResidual(cluster_size=16)
    whitening.fit([[dark, bright]], [dark, bright])
    for pair in (dark, bright):
        assert float(whitening(*pair).mean()) == pytest.approx(1, abs=0.3)
    assert len(thumbnails(dark[0]).unique(dim=0)) == 1


def test_a_fold_is_measured_by_the_others():
    """What one fold alone shows is normal to the whole, and not to what leaves that fold out."""
    odd = normal(8, 5)
    odd = odd[0], odd[1] - 0.3 * torch.linspace(-1, 1, 48)
    whitening = WhitenedResidual(cluster_size=99)
    whitening.fit([[odd], [normal(8, 1)]], [normal(8, 2)])
    whole = whitening(*odd)
    assert whitening.folds[0](*odd).mean() > 2 * whole.mean()
    torch.testing.assert_close(whitening.folds[1](*odd), whole, rtol=0.5, atol=0.5)
    assert torch.equal(whitening(*odd), whole)


def test_it_is_one_of_the_scorer_s_maps():
    scorer = MultiMaskScorer(score="mahalanobis", reduce="max", whitening=fitted())
    pair = normal(2, seed=20)
    score, pixel = ReconstructionError("mse", "max", error=scorer.whitening)(*pair)
    assert torch.equal(scorer.error(*pair)[0], score) and torch.equal(scorer.error(*pair)[1], pixel)


def test_what_is_not_fitted_or_missing_is_one_line():
    with pytest.raises(UserError, match="mahalanobis"):
        WhitenedResidual()(*normal(1))
    with pytest.raises(ValueError, match="whitening"):
        MultiMaskScorer(score="mahalanobis")
    with pytest.raises(ValueError, match="stride 9"):
        WhitenedResidual(stride=9)
