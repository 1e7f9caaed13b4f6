import pytest
import torch

from adlight.detection.maps import MAPS, ReconstructionError
from adlight.mae.masking import draw_masks
from adlight.mae.network import MaskedAutoencoder
from adlight.mae.scorer import MultiMaskScorer, aggregate, reconstruct
from adlight.mae.tokens import PixelTokenizer, patchify

SIZE, PATCH, LENGTH = 16, 4, 16
PIXELS, LARGER = PixelTokenizer(SIZE, 3, PATCH), PixelTokenizer(32, 3, PATCH)  # 16 and 64 patches


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count, size=SIZE, channels=3):
    return torch.rand(count, channels, size, size, generator=generator(1))


class FakeNetwork:
    """View i of image b predicts `value(i, b, patch)` for all values of a patch."""

    num_patches = LENGTH

    def __init__(self, value):
        self.value, self.masks = value, []

    def __call__(self, tokens, mask, visible=None):
        self.masks.append(mask)
        shape = len(mask), len(tokens), LENGTH
        views = torch.tensor([self.value(*place) for place in torch.cartesian_prod(*map(torch.arange, shape)).tolist()])
        return views.float().view(*shape, 1).expand(-1, -1, -1, tokens.shape[2])


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return MaskedAutoencoder(LARGER.grid, LARGER.dim, 0.5, 1, 32, 4, 1, 16, 2).eval()


def test_equation_3_by_hand():
    views = torch.tensor([[1.0, 2, 3], [10, 20, 30], [100, 200, 300]]).view(3, 1, 3, 1)  # n = 3, B = 1, L = 3
    mask = ~torch.eye(3, dtype=torch.bool)
    views, mask = torch.cat([views, views[:, :, :1]], 2), torch.cat([mask, torch.zeros(3, 1, dtype=torch.bool)], 1)
    y = aggregate(views, mask, torch.full((1, 4, 1), 7.0))
    assert y.flatten().tolist() == [(10 + 100) / 2, (2 + 200) / 2, (3 + 30) / 2, 7]  # what no view hid stays


@pytest.mark.parametrize("ratio", [0.5, 0.75, 0.8, 0.9])
def test_equation_3_is_the_mean_over_the_other_views(ratio):
    fake = FakeNetwork(lambda view, image, patch: 100 * view + 10 * image + patch)
    mask = draw_masks("complementary", ratio, LENGTH, generator())
    n = len(mask)
    y = patchify(reconstruct(fake, PIXELS, images(2), mask), PATCH)  # (B, L, P)
    for patch in range(LENGTH):
        own = int((~mask[:, patch]).nonzero())
        for image in range(2):
            wanted = sum(100 * view + 10 * image + patch for view in range(n) if view != own) / (n - 1)
            torch.testing.assert_close(y[image, patch], torch.full((48,), wanted))


def test_what_a_view_says_of_its_own_visible_patches_does_not_count():
    mask = draw_masks("complementary", 0.75, LENGTH, generator())
    fake = FakeNetwork(lambda view, image, patch: 0.5 if mask[view, patch] else float("nan"))
    assert (reconstruct(fake, PIXELS, images(2), mask) == 0.5).all()


def test_single_mask_keeps_the_image_where_nothing_was_hidden():
    image = images(2)
    mask = draw_masks("single", 0.75, LENGTH, generator())
    y = reconstruct(FakeNetwork(lambda view, image, patch: 7), PIXELS, image, mask)
    x, y = patchify(image, PATCH), patchify(y, PATCH)
    assert (y[:, mask[0]] == 7).all() and torch.equal(y[:, ~mask[0]], x[:, ~mask[0]])
    scores = MultiMaskScorer(masks="single", smoothing=0)(FakeNetwork(lambda *place: 7), PIXELS, image)
    assert (scores["pixel"] == 0).float().mean() == 0.25  # blind to a defect that it did not hide


def test_equation_1_by_hand():
    image = images(3)
    scores = MultiMaskScorer(smoothing=0)(FakeNetwork(lambda view, image, patch: 0.25), PIXELS, image)
    assert (scores["reconstruction"] == 0.25).all()
    for b in range(3):
        wanted = sum((float(value) - 0.25) ** 2 for value in image[b].flatten()) / (3 * SIZE * SIZE)
        assert float(scores["image"][b]) == pytest.approx(wanted, rel=1e-5)
    torch.testing.assert_close(scores["pixel"], (image - 0.25).square().mean(1))


def test_scores_and_maps_are_the_reconstruction_s_error(network):
    image, settings = images(2, 32), dict(score="msgms", reduce="topk", smoothing=2.0, topk=0.05)
    scores = MultiMaskScorer(**settings)(network, LARGER, image)
    score, pixel = ReconstructionError(**settings)(image, scores["reconstruction"])
    assert torch.equal(scores["image"], score) and torch.equal(scores["pixel"], pixel)


@pytest.mark.parametrize("score", MAPS)
@pytest.mark.parametrize("reduce", ["mean", "max", "topk"])
def test_one_image_has_one_score_whatever_its_batch(network, score, reduce):
    scorer = MultiMaskScorer(score=score, reduce=reduce)
    image = images(5, 32)
    together = scorer(network, LARGER, image)
    apart = [scorer(network, LARGER, image[b : b + 1]) for b in range(5)]
    backwards = scorer(network, LARGER, image.flip(0))["image"].flip(0)
    for b in range(5):
        for key in ("image", "pixel", "reconstruction"):
            torch.testing.assert_close(apart[b][key][0], together[key][b], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(backwards, together["image"], rtol=2e-6, atol=0)


def test_fixed_seed_gives_the_same_scores_again(network):
    image = images(2, 32)
    scorer = MultiMaskScorer(seed=3)
    first = scorer(network, LARGER, image)["image"]
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert torch.equal(scorer(network, LARGER, image)["image"], first)
    assert torch.equal(MultiMaskScorer(seed=3)(network, LARGER, image)["image"], first)
    assert not torch.equal(MultiMaskScorer(seed=4)(network, LARGER, image)["image"], first)
    assert torch.equal(before, torch.get_rng_state())


def test_rounds_average_independent_reconstructions(network):
    image, draws = images(2, 32), generator(5)
    scores = MultiMaskScorer(rounds=3, seed=5, smoothing=0)(network, LARGER, image)
    with torch.no_grad():
        parts = [reconstruct(network, LARGER, image, draw_masks("complementary", 0.75, 64, draws)) for _ in range(3)]
    assert not torch.equal(parts[0], parts[1])
    torch.testing.assert_close(scores["reconstruction"], sum(parts) / 3)
    torch.testing.assert_close(scores["image"], (image - sum(parts) / 3).square().mean((1, 2, 3)))


def test_every_round_draws_masks_of_its_own():
    fake = FakeNetwork(lambda view, image, patch: view)
    scorer = MultiMaskScorer(mask_ratio=0.5, rounds=2)
    scorer(fake, PIXELS, images(1))
    (mask,) = fake.masks
    assert mask.shape == (4, 16) and not torch.equal(mask[:2], mask[2:])
    assert (~mask[:2]).sum(0).tolist() == (~mask[2:]).sum(0).tolist() == [1] * 16


def test_rounds_average_what_was_predicted_and_nothing_else():
    """With the plain MAE a patch is hidden in some rounds only: the others must not add the image's own pixels."""
    fake = FakeNetwork(lambda view, image, patch: view)
    image = images(1)
    scores = MultiMaskScorer(mask_ratio=0.5, masks="single", rounds=3)(fake, PIXELS, image)
    (mask,) = fake.masks
    expected = torch.stack(
        [mask[:, i].nonzero().double().mean() if mask[:, i].any() else torch.tensor(torch.nan) for i in range(16)]
    )
    found = patchify(scores["reconstruction"], PATCH)[0]
    for i in range(16):
        wanted = patchify(image, PATCH)[0, i] if expected[i].isnan() else expected[i].expand(found.shape[1])
        torch.testing.assert_close(found[i], wanted.to(found.dtype))


def test_scores_in_bf16_are_not_quantized(network):
    """Under autocast the reconstruction may be coarse, the scores made of it may not: ties would spoil every metric."""
    image = images(64, 32)
    with torch.autocast("cpu", torch.bfloat16):
        scores = MultiMaskScorer()(network, LARGER, image)
    assert {value.dtype for value in scores.values()} == {torch.float32}
    assert len(scores["image"].unique()) == 64


def test_no_gradient_is_kept(network):
    assert not MultiMaskScorer()(network, LARGER, images(1, 32))["image"].requires_grad


def test_perfect_network_scores_zero():
    class Oracle(FakeNetwork):
        def __call__(self, tokens, mask, visible=None):
            return tokens.expand(len(mask), -1, -1, -1)

    image = images(2)
    scores = MultiMaskScorer(mask_ratio=0.8)(Oracle(None), PIXELS, image)
    torch.testing.assert_close(scores["reconstruction"], image)
    assert scores["image"].abs().max() < 1e-12


@pytest.mark.parametrize("settings", [dict(rounds=0), dict(score="psnr"), dict(reduce="median"), dict(smoothing=-1.0)])
def test_settings_that_make_no_sense_are_refused(settings):
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=f"{name} .*{value}"):
        MultiMaskScorer(**settings)
