import pytest
import torch

from adlight.data import pseudo_anomalies
from adlight.data.pseudo_anomalies import paste_defect
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
        assert max(6, 0.001 * mask.numel()) <= mask.sum() <= 0.4 * mask.numel()
        assert change[mask].min() >= pseudo_anomalies.MIN_CHANGE and change[mask].mean() >= 8


@pytest.mark.parametrize("name", ["28x28 grey", "128x128", "black", "digit"])
def test_last_resort_works_on_every_image(name, monkeypatch):
    monkeypatch.setattr(pseudo_anomalies, "ATTEMPTS", 0)
    image, draws = IMAGES[name], generator(3)
    for _ in range(100):
        pasted, mask = paste_defect(image, draws)
        change = (pasted.int() - image.int()).abs()
        assert 6 <= mask.sum() <= 0.4 * mask.numel()
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
    assert area.quantile(0.1) < 0.004 and area.quantile(0.9) > 0.04
    assert change.quantile(0.1) < 30 and change.quantile(0.9) > 70


@pytest.mark.parametrize("kind", [pseudo_anomalies.cut_paste, pseudo_anomalies.scar, pseudo_anomalies.blend])
def test_every_kind_makes_visible_defects(kind):
    image, draws = washer(), generator(8)
    made = [pseudo_anomalies.visible_change(image, kind(image.float(), draws).round().clamp(0, 255)) for _ in range(50)]
    assert sum(mask is not None for mask in made) > 20


def test_cut_paste_without_jitter_copies_pixels_of_the_image(monkeypatch):
    monkeypatch.setattr(pseudo_anomalies, "_jitter", lambda content, rng, always=False: content)
    image = torch.arange(64 * 64).reshape(1, 64, 64).float()
    pasted = pseudo_anomalies.cut_paste(image, generator(9))
    assert (pasted != image).any() and set(pasted.unique().tolist()) <= set(image.unique().tolist())


def test_indices_are_mirrored_at_the_borders():
    indices = torch.tensor([-2.0, -1, 0, 1, 2, 3, 4, 7, 8])
    assert pseudo_anomalies._reflect(indices, 4).tolist() == [1, 0, 0, 1, 2, 3, 3, 0, 0]
