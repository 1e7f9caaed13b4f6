import math

import pytest
import torch

from adlight.data import pseudo_anomalies, regions
from adlight.data.pseudo_anomalies import KINDS, paste_defect
from adlight.data.synthetic import draw


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def textured(channels: int, height: int, width: int) -> torch.Tensor:
    """Smooth noise between 40 and 215, with some grain."""
    coarse = torch.rand(1, channels, 6, 6, generator=generator())
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")[0] * 165 + 40
    return (smooth + 4 * torch.randn(smooth.shape, generator=generator(1))).clamp(0, 255).to(torch.uint8)


def digit() -> torch.Tensor:
    """A stroke on black, as MNIST has them: (1, 28, 28)."""
    image = torch.zeros(1, 28, 28, dtype=torch.uint8)
    image[:, 6:22, 12:15] = 250
    return image


def washer(size: int = 128) -> torch.Tensor:
    return torch.from_numpy(draw("washer", "train/good", 0, 0, size)[0]).permute(2, 0, 1).contiguous()


IMAGES = {
    "28x28 grey": textured(1, 28, 28),
    "28x28": textured(3, 28, 28),
    "128x128": textured(3, 128, 128),
    "131x257": textured(3, 131, 257),
    "512x512 grey": textured(1, 512, 512),
    "28x400": textured(3, 28, 400),
    "digit": digit(),
    "washer": washer(),
    "black": torch.zeros(3, 64, 64, dtype=torch.uint8),
    "white": torch.full((1, 64, 64), 255, dtype=torch.uint8),
    "grey": torch.full((1, 28, 28), 128, dtype=torch.uint8),
}


@pytest.mark.parametrize("name", IMAGES)
def test_mask_is_exact_visible_and_of_sensible_size(name):
    image, draws = IMAGES[name], generator(2)
    untouched = image.clone()
    for _ in range(40):
        pasted, mask = paste_defect(image, draws)
        assert torch.equal(image, untouched)
        assert (pasted.shape, pasted.dtype) == (image.shape, torch.uint8)
        assert (mask.shape, mask.dtype) == (image.shape[1:], torch.bool)
        change = (pasted.float() - image.float()).abs().amax(dim=0)
        assert torch.equal(mask, change > 0)
        assert max(6, 0.0005 * mask.numel()) <= mask.sum() <= 0.2 * mask.numel()
        assert change[mask].min() >= pseudo_anomalies.MIN_CHANGE and change[mask].mean() >= 8


@pytest.mark.parametrize("name", ["28x28 grey", "128x128", "black", "digit"])
def test_last_resort_works_on_every_image(name, monkeypatch):
    monkeypatch.setattr(pseudo_anomalies, "ATTEMPTS", 0)
    image, draws = IMAGES[name], generator(3)
    for _ in range(100):
        pasted, mask = paste_defect(image, draws)
        change = (pasted.int() - image.int()).abs()
        assert 6 <= mask.sum() <= 0.2 * mask.numel()
        assert (change[:, mask] >= 24).all() and not change[:, ~mask].any()


def test_same_generator_same_defect():
    image = IMAGES["128x128"]
    first, second, other = (paste_defect(image, generator(seed)) for seed in (5, 5, 6))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert not torch.equal(first[1], other[1])


def test_global_generator_is_not_used():
    before = torch.get_rng_state()
    paste_defect(IMAGES["128x128"], generator())
    assert torch.equal(before, torch.get_rng_state())


def test_noise_moved_onto_noise_does_not_count():
    noise = (100 + 10 * torch.randn(3, 64, 64, generator=generator(1))).round()
    other = (100 + 10 * torch.randn(3, 20, 20, generator=generator(2))).round()
    pasted = noise.clone()
    pasted[:, :20, :20] = other
    assert pseudo_anomalies.visible_change(noise.to(torch.uint8), pasted) is None
    pasted[:, :20, :20] += 25
    assert pseudo_anomalies.visible_change(noise.to(torch.uint8), pasted) is not None


def test_background_on_background_does_not_count():
    image, draws = digit(), generator(4)
    assert pseudo_anomalies.visible_change(image, image.float()) is None
    for _ in range(60):
        pasted, _ = paste_defect(image, draws)
        assert (pasted.int() - image.int()).abs().amax() >= pseudo_anomalies.MIN_VISIBLE_CHANGE


def test_difficulty_spans_from_subtle_to_obvious():
    image, draws = washer(), generator(7)
    drawn = [paste_defect(image, draws) for _ in range(200)]
    area = torch.tensor([mask.float().mean() for _, mask in drawn])
    change = torch.tensor([(pasted.float() - image).abs().amax(dim=0)[mask].mean() for pasted, mask in drawn])
    assert area.quantile(0.1) < 0.0015 and area.quantile(0.5) < 0.01 < area.quantile(0.9)
    assert change.quantile(0.1) < 20 and change.quantile(0.9) > 60


def test_every_kind_occurs(monkeypatch):
    calls = []

    def note(kind):
        return lambda image, rng: calls.append(kind) or kind(image, rng)

    monkeypatch.setattr(pseudo_anomalies, "KINDS", tuple(note(kind) for kind in KINDS))
    draws = generator(6)
    for _ in range(100):
        paste_defect(IMAGES["28x28"], draws)
    assert set(calls) == set(KINDS) and len(KINDS) == 8
    assert all(calls.count(kind) > len(calls) / 20 for kind in KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", ["washer", "digit", "28x400"])
def test_every_kind_makes_visible_defects(kind, name):
    image, draws = IMAGES[name], generator(8)
    made = [pseudo_anomalies.visible_change(image, kind(image.float(), draws).round().clamp(0, 255)) for _ in range(50)]
    assert sum(mask is not None for mask in made) > 2


def test_most_defects_lie_where_the_image_has_structure():
    image, draws = torch.full((1, 64, 64), 100, dtype=torch.uint8), generator(3)
    image[:, 16:32, 16:32] = textured(1, 16, 16)
    places = [regions.draw_place(image.float(), draws) for _ in range(200)]
    inside = sum(14 <= row < 34 and 14 <= column < 34 for row, column in places)
    assert 0.6 < inside / 200 < 0.95


@pytest.mark.parametrize("kind", [pseudo_anomalies.cut_paste, pseudo_anomalies.displace, pseudo_anomalies.duplicate])
def test_moved_content_is_of_the_image(kind, monkeypatch):
    monkeypatch.setattr(pseudo_anomalies, "draw_tint", lambda *_: 0.0)
    monkeypatch.setattr(regions, "log_uniform", lambda *_: 1e9 if _[1:] == (2, 20) else math.sqrt(_[1] * _[2]))
    image = torch.arange(64 * 64).reshape(1, 64, 64).float()
    pasted = kind(image, generator(9))
    assert (pasted != image).any() and set(pasted.unique().tolist()) <= set(image.unique().tolist())


def test_content_is_taken_a_step_away_and_turned_about_the_centre():
    image = torch.arange(21 * 21).reshape(1, 21, 21).float()
    region = regions.Region(torch.ones(21, 21), 10, 10, 5)
    assert torch.equal(regions.take(image, region, (0, 0)), image)
    assert regions.take(image, region, (3, -2))[0, 10, 10] == image[0, 13, 8]
    assert torch.equal(regions.take(image, region, (0, 0), math.pi / 2), image.rot90(1, (1, 2)))


def test_blob_has_the_size_that_was_drawn():
    image, draws = torch.zeros(1, 200, 300), generator(5)
    area = torch.tensor([(regions.draw_blob(image, draws).alpha > 0).float().mean() for _ in range(200)])
    assert area.quantile(0.05) > 0.0003 and area.quantile(0.95) < 0.06 and 0.003 < area.median() < 0.012


def test_harmonic_filling_continues_a_plane_and_obeys_the_maximum_principle():
    down, right = torch.meshgrid(torch.arange(9.0), torch.arange(7.0), indexing="ij")
    plane = torch.stack([2 * down - 3 * right + 5, down * right, down**2 - right**2])  # all harmonic on the grid
    hollow = plane.clone()
    hollow[:, 1:-1, 1:-1] = 1e4
    torch.testing.assert_close(regions.fill_harmonically(hollow), plane, atol=1e-3, rtol=1e-5)
    noise = torch.randn(1, 9, 7, generator=generator())
    filled = regions.fill_harmonically(noise)
    border = torch.cat([noise[0, [0, -1]].flatten(), noise[0, :, [0, -1]].flatten()])
    assert border.min() <= filled.min() and filled.max() <= border.max()
    assert torch.equal(filled[0, 0], noise[0, 0]) and torch.equal(filled[0, :, -1], noise[0, :, -1])


def test_seamless_blending_of_what_differs_by_a_constant_shows_nothing():
    image = textured(3, 40, 50).float()
    region = regions.draw_blob(image, generator(1))
    blended = regions.blend_seamlessly(image, image + 30, region.alpha)
    shown = regions.blend(image, blended, region.alpha)
    torch.testing.assert_close(shown, image, atol=1e-3, rtol=0)


def test_indices_are_mirrored_at_the_borders():
    indices = torch.tensor([-2.0, -1, 0, 1, 2, 3, 4, 7, 8])
    assert regions._reflect(indices, 4).tolist() == [1, 0, 0, 1, 2, 3, 3, 0, 0]
