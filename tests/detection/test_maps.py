import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from adlight.detection.maps import (
    MAPS,
    ReconstructionError,
    gradient_magnitude,
    l1_map,
    mse_map,
    msgms_map,
    reduce_map,
    smooth,
    ssim_distance_map,
)
from adlight.detection.similarity import ssim_map


def random(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_mse_and_l1_by_hand():
    x = torch.tensor([[[[1.0, 0.0]], [[0.5, 0.0]]]])  # (1, 2, 1, 2)
    y = torch.tensor([[[[0.0, 0.0]], [[1.0, 0.2]]]])
    torch.testing.assert_close(mse_map(x, y), torch.tensor([[[(1 + 0.25) / 2, 0.02]]]))
    torch.testing.assert_close(l1_map(x, y), torch.tensor([[[0.75, 0.1]]]))


def test_ssim_distance_is_one_minus_the_mean_over_channels():
    x, y = random(2, 3, 20, 24), random(2, 3, 20, 24, seed=1)
    torch.testing.assert_close(ssim_distance_map(x, y), 1 - ssim_map(x, y).mean(1))


@pytest.mark.parametrize("name", MAPS)
def test_equal_images_have_a_map_of_zeros(name):
    x = random(2, 3, 32, 40)
    found = MAPS[name](x, x)
    assert found.shape == (2, 32, 40) and found.abs().max() < 1e-4


@pytest.mark.parametrize("name", MAPS)
def test_maps_are_symmetric_and_tell_defects_from_the_rest(name):
    x = random(1, 3, 64, 64)
    y = x.clone()
    y[:, :, 40:48, 8:16] = 1 - y[:, :, 40:48, 8:16]
    found = MAPS[name](x, y)
    torch.testing.assert_close(found, MAPS[name](y, x))
    assert found[0, 40:48, 8:16].mean() > 10 * found[0, :24, 32:].abs().mean()


def naive_magnitude(image, row, column):
    """Prewitt at one pixel, borders repeated."""
    h, w = image.shape

    def at(r, c):
        return float(image[min(max(r, 0), h - 1), min(max(c, 0), w - 1)])

    steps = (-1, 0, 1)
    across = sum(at(row + k, column - 1) - at(row + k, column + 1) for k in steps) / 3
    down = sum(at(row - 1, column + k) - at(row + 1, column + k) for k in steps) / 3
    return (across**2 + down**2) ** 0.5


def test_one_scale_of_msgms_pixel_by_pixel():
    x, y = random(1, 3, 9, 12), random(1, 3, 9, 12, seed=1)
    found = msgms_map(x, y, scales=1)
    for row in range(9):
        for column in range(12):
            gx, gy = (naive_magnitude(image[0].mean(0), row, column) for image in (x, y))
            wanted = 1 - (2 * gx * gy + 0.0026) / (gx**2 + gy**2 + 0.0026)
            assert float(found[0, row, column]) == pytest.approx(wanted, abs=1e-5)


def test_gradient_of_a_ramp_is_its_slope():
    ramp = torch.arange(10.0).expand(1, 1, 8, 10) * 0.3
    found = gradient_magnitude(ramp)
    torch.testing.assert_close(found[:, :, 1:-1], torch.full((1, 8, 8), 0.6))  # over two pixels
    torch.testing.assert_close(gradient_magnitude(ramp.transpose(2, 3)), found.transpose(1, 2))


def test_msgms_sees_an_edge_and_not_a_shift_of_brightness():
    flat, edge = torch.full((1, 1, 32, 32), 0.5), torch.full((1, 1, 32, 32), 0.5)
    edge[..., 16:] = 1.0
    assert msgms_map(flat, flat + 0.3).abs().max() < 1e-5
    found = msgms_map(flat, edge)[0]
    assert found[:, 15:17].min() > 0.5 > found[:, :4].max()
    torch.testing.assert_close(found, found.flip(1))  # the edge lies in the middle


def test_msgms_is_the_mean_over_halvings():
    x, y = random(1, 3, 32, 32), random(1, 3, 32, 32, seed=1)
    total = torch.zeros(1, 32, 32)
    for _ in range(3):  # 32, 16, 8: a fourth would be too small
        one = msgms_map(x, y, scales=1)
        total += torch.nn.functional.interpolate(one[:, None], (32, 32), mode="bilinear", align_corners=False)[:, 0]
        x, y = (torch.nn.functional.avg_pool2d(image, 2) for image in (x, y))
    torch.testing.assert_close(msgms_map(random(1, 3, 32, 32), random(1, 3, 32, 32, seed=1)), total / 3)


@pytest.mark.parametrize(("sigma", "shape"), [(4.0, (2, 48, 64)), (1.0, (1, 28, 28)), (2.5, (1, 31, 50))])
def test_smoothing_equals_scipy(sigma, shape):
    pixel = random(*shape)
    wanted = np.stack([gaussian_filter(one, sigma, mode="mirror") for one in pixel.double().numpy()])
    torch.testing.assert_close(smooth(pixel, sigma), torch.from_numpy(wanted).float(), rtol=0, atol=1e-5)


def test_smoothing_leaves_flat_maps_and_sigma_0_alone():
    pixel = random(2, 12, 12)
    assert smooth(pixel, 0) is pixel
    torch.testing.assert_close(smooth(torch.full((1, 12, 20), 0.3), 4.0), torch.full((1, 12, 20), 0.3))


def test_smoothing_a_map_smaller_than_the_window():
    pixel = random(1, 7, 9)
    wanted = gaussian_filter(pixel[0].double().numpy(), 4.0, mode="mirror", radius=6)
    torch.testing.assert_close(smooth(pixel, 4.0)[0], torch.from_numpy(wanted).float(), rtol=0, atol=1e-5)


def test_reductions_by_hand():
    pixel = torch.arange(200.0).flip(0).view(2, 10, 10)  # image 0 holds 100..199, image 1 holds 0..99
    assert reduce_map(pixel, "mean").tolist() == [149.5, 49.5]
    assert reduce_map(pixel, "max").tolist() == [199, 99]
    assert reduce_map(pixel, "topk").tolist() == [199, 99]  # 1 % of 100 pixels
    assert reduce_map(pixel, "topk", 0.03).tolist() == [198, 98]
    assert reduce_map(pixel, "topk", 1e-6).tolist() == [199, 99]  # never fewer than one
    assert reduce_map(pixel, "topk", 1.0).tolist() == [149.5, 49.5]


@pytest.mark.parametrize("score", MAPS)
@pytest.mark.parametrize("reduce", ["mean", "max", "topk"])
def test_the_error_is_smoothed_and_reduced(score, reduce):
    x, y = random(2, 3, 32, 32), random(2, 3, 32, 32, seed=1)
    found, pixel = ReconstructionError(score, reduce, smoothing=2.0, topk=0.05)(x, y)
    error = MAPS[score](x, y)
    torch.testing.assert_close(pixel, smooth(error, 2.0))
    wanted = reduce_map(error if reduce == "mean" else pixel, reduce, 0.05)  # the mean is eq. 1: no smoothing
    torch.testing.assert_close(found, wanted)


def test_the_error_may_be_perceptual(no_alexnet):
    x, y = random(2, 3, 32, 32), random(2, 3, 32, 32, seed=1)
    found, pixel = ReconstructionError("lpips", smoothing=0)(x, y)
    assert pixel.shape == (2, 32, 32) and torch.equal(found, pixel.mean((1, 2)))


def test_the_error_is_computed_in_full_precision():
    x, y = random(2, 3, 32, 32), random(2, 3, 32, 32, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        inside = ReconstructionError()(x, y)
    assert all(torch.equal(*pair) for pair in zip(inside, ReconstructionError()(x, y), strict=True))


@pytest.mark.parametrize(
    "settings",
    [
        *(dict(score="psnr"), dict(reduce="median"), dict(smoothing=-1.0), dict(smoothing=float("nan"))),
        *(dict(topk=0.0), dict(topk=1.5)),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(settings):
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=f"{name} .*{value}"):
        ReconstructionError(**settings)


@pytest.mark.parametrize("reduce", ["mean", "max", "topk"])
@pytest.mark.parametrize("score", MAPS)
def test_padded_images_score_as_they_do_without_padding(score, reduce):
    error = ReconstructionError(score, reduce, smoothing=2, topk=0.1)
    x, y = random(3, 3, 24, 32), random(3, 3, 24, 32, seed=1)
    size = torch.tensor([[24, 16], [12, 32], [24, 16]])
    image, pixel = error(x, y, size)
    for i, (h, w) in enumerate(size.tolist()):
        wanted = error(x[i : i + 1, :, :h, :w], y[i : i + 1, :, :h, :w])
        torch.testing.assert_close((image[i : i + 1], pixel[i : i + 1, :h, :w]), wanted)
        assert pixel[i].sum() == pytest.approx(float(pixel[i, :h, :w].sum()), rel=1e-5)
