import math

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from adlight.mae.masking import draw_masks
from adlight.mae.network import MaskedAutoencoder
from adlight.mae.scorer import reconstruct
from adlight.mae.tokens import patchify
from adlight.runs.config import CONF

RATIOS = [0.5, 0.75, 0.8, 0.9]  # 2, 4, 5 and 10 views; 196 is not a multiple of 5 or 10


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def small(encoder="separate", **settings):
    """196 patches as the article has them, tiny widths; every parameter is random, in double precision."""
    sizes = dict(image_size=28, channels=3, patch_size=2, encoder_depth=2, encoder_width=16, encoder_heads=2)
    sizes |= dict(decoder_depth=2, decoder_width=8, decoder_heads=4, encoder=encoder)
    network = MaskedAutoencoder(**(sizes | settings)).double().eval()
    draws = generator(7)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=draws, dtype=torch.float64) * 0.3
    return network


def images(count=2, channels=3, size=28):
    return torch.rand(count, channels, size, size, generator=generator(1), dtype=torch.float64)


def naive_norm(norm, token):
    centred = token - token.mean()
    return norm.weight * centred / (centred.square().mean() + 1e-5).sqrt() + norm.bias


def naive_block(block, tokens):
    """One sequence (V, D), one head after the other, one query after the other."""
    width = tokens.shape[1]
    each = width // block.heads
    qkv = torch.stack([block.qkv.weight @ naive_norm(block.norm1, token) + block.qkv.bias for token in tokens])
    attended = torch.zeros_like(tokens)
    for head in range(block.heads):
        q, k, v = (qkv[:, part * width + head * each :][:, :each] for part in range(3))
        for i, query in enumerate(q):
            weight = (k @ query / math.sqrt(each)).exp()
            attended[i, head * each : (head + 1) * each] = (weight / weight.sum()) @ v
    tokens = tokens + attended @ block.project.weight.T + block.project.bias
    result = []
    for token in tokens:
        inner = block.expand.weight @ naive_norm(block.norm2, token) + block.expand.bias
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))  # GELU
        result.append(token + block.contract.weight @ inner + block.contract.bias)
    return torch.stack(result)


def naive_view(network, image, hidden):
    """What one view of one image predicts: a list of L patches."""
    p, side = network.patch_size, network.image_size // network.patch_size
    tokens, places = [], []
    for place in range(side * side):
        if hidden[place]:
            continue
        row, column = divmod(place, side)
        pixels = image[:, row * p : (row + 1) * p, column * p : (column + 1) * p].reshape(-1)
        token = network.embed.weight @ (pixels - 0.5) + network.embed.bias
        tokens.append(token + network.encoder_positions[place])
        places.append(place)
    tokens = torch.stack(tokens)
    for block in network.encoder:
        tokens = naive_block(block, tokens)
    sequence = [network.mask_token] * len(hidden)
    for place, token in zip(places, tokens, strict=True):
        sequence[place] = network.bridge.weight @ naive_norm(network.encoder_norm, token) + network.bridge.bias
    x = torch.stack([token + network.decoder_positions[place] for place, token in enumerate(sequence)])
    for block in network.decoder:
        x = naive_block(block, x)
    return [network.predict.weight @ naive_norm(network.decoder_norm, token) + network.predict.bias for token in x]


def naive_reconstruct(network, image, mask):
    """Equation 3, patch by patch: y = 1/(n - 1) sum_i M_i y_i."""
    n, p, side = len(mask), network.patch_size, network.image_size // network.patch_size
    result = torch.zeros_like(image)
    for b in range(len(image)):
        views = [naive_view(network, image[b], mask[i]) for i in range(n)]
        for place in range(side * side):
            row, column = divmod(place, side)
            total = sum(int(mask[i, place]) * views[i][place] for i in range(n))
            patch = (total / (n - 1)).view(-1, p, p)
            result[b, :, row * p : (row + 1) * p, column * p : (column + 1) * p] = patch
    return result


@pytest.mark.parametrize("ratio", RATIOS)
@torch.no_grad()
def test_batched_network_equals_the_equations_written_out(ratio):
    network, image = small(decoder_depth=1), images(2 if ratio == 0.5 else 1)
    mask = draw_masks("complementary", ratio, 196, generator(2))
    wanted = naive_reconstruct(network, image, mask)
    torch.testing.assert_close(reconstruct(network, image, mask), wanted, rtol=1e-9, atol=1e-9)
    single = network.float()  # the precision that it is trained in
    torch.testing.assert_close(reconstruct(single, image.float(), mask), wanted.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ratio", RATIOS)
@torch.no_grad()
def test_one_pass_equals_one_pass_a_view(ratio):
    network, image = small(), images()
    mask = draw_masks("complementary", ratio, 196, generator(3))
    views = network(image, mask)
    assert views.shape == (len(mask), 2, 196, 12)
    for i in range(len(mask)):
        torch.testing.assert_close(network(image, mask[i : i + 1])[0], views[i], rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_views_may_have_any_sizes_in_any_order():
    network, image = small(), images()
    score = torch.rand(6, 196, generator=generator(4))
    for i, visible in enumerate([50, 3, 195, 3, 1, 50]):
        score[i, score[i].argsort()[:visible]] = -1
    mask = score >= 0
    assert (~mask).sum(1).tolist() == [50, 3, 195, 3, 1, 50]
    views = network(image, mask)
    for i in range(6):
        torch.testing.assert_close(network(image, mask[i : i + 1])[0], views[i], rtol=1e-9, atol=1e-9)
    order = [4, 2, 0, 5, 3, 1]
    torch.testing.assert_close(network(image, mask[order]), views[order], rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_an_image_does_not_depend_on_its_batch():
    network, image = small(), images(3)
    mask = draw_masks("complementary", 0.8, 196, generator(5))
    views = network(image, mask)
    for b in range(3):
        torch.testing.assert_close(network(image[b : b + 1], mask)[:, 0], views[:, b], rtol=1e-9, atol=1e-9)


def gradient_at(network, ratio, place):
    """|gradient| of the reconstruction at one patch with respect to every patch of the image, (L,)."""
    image = images(1).requires_grad_()
    mask = draw_masks("complementary", ratio, 196, generator(6))
    y = patchify(reconstruct(network, image, mask), 2)[0, place]
    (y * torch.rand(12, generator=generator(8), dtype=torch.float64)).sum().backward()
    return patchify(image.grad, 2)[0].abs().amax(1)


@pytest.mark.parametrize("place", [0, 77, 195])
@pytest.mark.parametrize("ratio", RATIOS)
def test_a_patch_is_predicted_without_its_own_pixels(ratio, place):
    gradient = gradient_at(small(), ratio, place)
    assert gradient[place] == 0  # exactly
    others = torch.arange(196) != place
    # all that share the patch's own view see it, so nothing of theirs may count; everything else does
    mask = draw_masks("complementary", ratio, 196, generator(6))
    together = ~mask[(~mask[:, place]).nonzero()[0, 0]]
    assert (gradient[together] == 0).all() and (gradient[~together & others] > 0).all()


@pytest.mark.parametrize("ratio", RATIOS)
def test_changed_pixels_do_not_change_their_own_prediction(ratio):
    network, image = small(), images(1)
    mask = draw_masks("complementary", ratio, 196, generator(6))
    changed = image.clone()
    changed[:, :, 10:12, 4:6] = 0  # patch (5, 2)
    with torch.no_grad():
        before, after = reconstruct(network, image, mask), reconstruct(network, changed, mask)
    assert torch.equal(before[:, :, 10:12, 4:6], after[:, :, 10:12, 4:6])
    assert not torch.allclose(before, after)


@pytest.mark.parametrize("ratio", RATIOS)
def test_joint_encoder_leaks(ratio):
    assert gradient_at(small("joint"), ratio, 77)[77] > 1e-6


@torch.no_grad()
def test_joint_encoder_runs_once_over_all_patches():
    network, image = small("joint"), images()
    shapes = []
    network.encoder[0].register_forward_hook(lambda block, given, result: shapes.append(tuple(result.shape)))
    mask = draw_masks("complementary", 0.8, 196, generator())
    assert network(image, mask).shape == (5, 2, 196, 12)
    assert shapes == [(2, 196, 16)]


@torch.no_grad()
def test_separate_encoder_does_the_work_of_one_image():
    network, image = small(), images()
    shapes = []
    network.encoder[0].register_forward_hook(lambda block, given, result: shapes.append(tuple(result.shape)))
    network(image, draw_masks("complementary", 0.8, 196, generator()))
    assert sorted(shapes) == [(2, 40, 16), (8, 39, 16)]  # views x images, visible patches
    assert sum(batch * length for batch, length, _ in shapes) == 2 * 196


@torch.no_grad()
def test_grey_images_and_one_mask():
    network = small(channels=1, patch_size=4)
    mask = draw_masks("single", 0.75, 49, generator())
    assert network(images(3, channels=1), mask).shape == (1, 3, 49, 16)


def test_starts_at_mid_grey():
    torch.manual_seed(0)
    network = MaskedAutoencoder(32, 3, 8, 1, 16, 2, 1, 16, 2)
    assert (network.predict.bias == 0.5).all() and not network.embed.bias.any() and network.mask_token.any()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (dict(image_size=30, patch_size=16), "image_size 30 is not a multiple of patch_size 16"),
        (dict(encoder_width=20, encoder_heads=3), "width 20 is not a multiple of its 3 heads"),
        (dict(decoder_width=20, decoder_heads=8), "width 20 is not a multiple of its 8 heads"),
        (dict(encoder_width=18, encoder_heads=3), "width 18 is not a multiple of 4"),
        (dict(encoder="both"), "'both' is unknown: separate or joint"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(settings, text):
    with pytest.raises(ValueError, match=text):
        small(**settings)


def composed(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", [*overrides, "seed=0"])


def size_by_hand(values, encoder_depth, encoder_width, decoder_depth, decoder_width):
    def block(width):
        return 12 * width**2 + 13 * width  # 4 + 8 square matrices; their biases, and two norms

    size = values * encoder_width + encoder_width + encoder_depth * block(encoder_width) + 2 * encoder_width
    size += encoder_width * decoder_width + decoder_width + decoder_width
    size += decoder_depth * block(decoder_width) + 2 * decoder_width + decoder_width * values + values
    return size


@pytest.mark.parametrize(
    ("model", "sizes", "least", "most"),
    [("mae", (768, 2, 768, 4, 512), 26.5e6, 28.5e6), ("mae_small", (768, 2, 192, 4, 128), 1e6, 3e6)],
)
def test_parameter_counts_of_the_configs(model, sizes, least, most):
    with torch.device("meta"):
        network = instantiate(composed(f"model={model}", "dataset=mvtec").model.network)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == size_by_hand(*sizes) and least <= count <= most


def test_the_articles_input_has_196_patches():
    config = composed("model=mae", "dataset=mvtec", "model/depth=e12d8")
    with torch.device("meta"):
        network = instantiate(config.model.network)
    assert network.num_patches == 196 and (len(network.encoder), len(network.decoder)) == (12, 8)
