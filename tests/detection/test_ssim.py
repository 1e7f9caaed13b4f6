import pytest
import torch
from kornia.metrics import ssim as kornia_ssim
from scipy.ndimage import gaussian_filter1d

from adlight.detection.similarity import gaussian_blur, gaussian_matrix, ssim_map

SIZES = [(2, 3, 28, 28), (1, 1, 28, 28), (2, 3, 32, 48), (1, 3, 45, 17), (1, 2, 11, 64), (1, 3, 128, 128)]


def pair(*shape):
    """Two images that resemble each other, as an image and its reconstruction do."""
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.rand(shape, generator=generator)
    return x, (x + 0.2 * torch.randn(shape, generator=generator)).clamp(0, 1)


@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_map_equals_kornia(shape):
    x, y = pair(*shape)
    torch.testing.assert_close(ssim_map(x, y), kornia_ssim(x, y, 11), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 3, 28, 28), (1, 1, 40, 24)], ids=str)
def test_gradient_equals_kornias(shape):
    x, y = pair(*shape)
    ours, theirs = y.clone().requires_grad_(), y.clone().requires_grad_()
    (1 - ssim_map(x, ours)).mean().backward()
    (1 - kornia_ssim(x, theirs, 11)).mean().backward()
    assert theirs.grad.abs().max() > 1e-6
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-7)


def test_equal_images_are_1():
    x, _ = pair(1, 3, 28, 28)
    torch.testing.assert_close(ssim_map(x, x), torch.ones_like(x), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("a", "b"), [(0.0, 1.0), (0.2, 0.7), (0.5, 0.5)])
def test_flat_images_differ_in_luminance_only(a, b):
    x, y = torch.full((1, 1, 16, 16), a), torch.full((1, 1, 16, 16), b)
    wanted = (2 * a * b + 1e-4) / (a * a + b * b + 1e-4)
    torch.testing.assert_close(ssim_map(x, y), torch.full_like(x, wanted), rtol=1e-3, atol=1e-4)


def test_negative_has_negative_similarity():
    x, _ = pair(1, 1, 32, 32)
    assert ssim_map(x, 1 - x).mean() < -0.5


def test_window_is_11_wide():
    x = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    y = x.clone()
    y[0, 0, 16, 16] = 1 - y[0, 0, 16, 16]
    changed = (ssim_map(x, y) != ssim_map(x, x))[0, 0]
    rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
    assert [int(place) for line in (rows, columns) for place in (line.min(), line.max())] == [11, 21, 11, 21]


@pytest.mark.parametrize(("size", "sigma", "radius"), [(6, 1.5, 5), (28, 1.5, 5), (9, 4.0, 8), (40, 4.0, 16)])
def test_filter_matrix_equals_scipy_at_the_borders_too(size, sigma, radius):
    matrix = gaussian_matrix(size, sigma, radius, torch.device("cpu"), torch.float64)
    torch.testing.assert_close(matrix.sum(1), torch.ones(size, dtype=torch.float64))
    wanted = gaussian_filter1d(torch.eye(size, dtype=torch.float64).numpy(), sigma, 0, mode="mirror", radius=radius)
    torch.testing.assert_close(matrix, torch.from_numpy(wanted), rtol=0, atol=1e-12)


def test_image_smaller_than_the_window_is_refused():
    with pytest.raises(ValueError, match="5x40 pixels is too small"):
        gaussian_blur(torch.rand(1, 1, 5, 40), 1.5, 5)


def test_scoring_first_does_not_spoil_training():
    """Filters are kept: one made in inference mode, as Lightning validates, must serve for gradients too."""
    gaussian_matrix.cache_clear()
    x, y = pair(1, 1, 21, 23)
    with torch.inference_mode():
        ssim_map(x, y)
    ssim_map(x, y.requires_grad_()).mean().backward()
    assert y.grad.abs().sum() > 0


def test_half_precision_is_not_used_under_autocast():
    x, y = pair(1, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ssim_map(x, y), ssim_map(x, y).float())
        inside = ssim_map(x, y)
    assert torch.equal(inside, ssim_map(x, y))
