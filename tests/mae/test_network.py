import pytest
import torch
from hydra.utils import instantiate
from makers import composed
from naive_mae import naive_view

from adlight.mae.masking import draw_masks, split_by_size
from adlight.mae.network import MaskedAutoencoder
from adlight.mae.scorer import reconstruct
from adlight.mae.tokens import PixelTokenizer

RATIOS = [0.5, 0.75, 0.8, 0.9]  # 2, 4, 5 and 10 views; 196 is not a multiple of 5 or 10


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


PIXELS = PixelTokenizer(28, 3, 2)


def small(encoder="separate", grid=(14, 14), token_dim=12, **settings):
    """196 patches as the article has them, tiny widths; every parameter is random, in double precision."""
    sizes = dict(encoder_depth=2, encoder_width=16, encoder_heads=2, decoder_depth=2, decoder_width=8, decoder_heads=4)
    network = MaskedAutoencoder(grid, token_dim, 0.5, encoder=encoder, **(sizes | settings)).double().eval()
    rng = generator(7)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=rng, dtype=torch.float64) * 0.3
    return network


def images(count=2):
    return torch.rand(count, 3, 28, 28, generator=generator(1), dtype=torch.float64)


def tokens(count=2, length=196, dim=12):
    return torch.rand(count, length, dim, generator=generator(1), dtype=torch.float64)


def naive_reconstruct(network, image, mask):
    """Equation 3, patch by patch and pixel by pixel: y = 1/(n - 1) sum_i M_i y_i."""
    result = torch.zeros_like(image)
    cut = [
        (slice(2 * row, 2 * row + 2), slice(2 * column, 2 * column + 2)) for row in range(14) for column in range(14)
    ]
    for one, y in zip(image, result, strict=True):
        token = torch.stack([one[:, rows, columns].flatten() for rows, columns in cut])
        views = [naive_view(network, token, hidden) for hidden in mask]
        for place, (rows, columns) in enumerate(cut):
            total = sum(int(hidden[place]) * view[place] for hidden, view in zip(mask, views, strict=True))
            y[:, rows, columns] = (total / (len(mask) - 1)).view(3, 2, 2)
    return result


@pytest.mark.parametrize("ratio", RATIOS)
@torch.no_grad()
def test_batched_network_equals_the_equations_written_out(ratio):
    network, image = small(decoder_depth=1), images(2 if ratio == 0.5 else 1)
    mask = draw_masks("complementary", ratio, 196, generator(2))
    wanted = naive_reconstruct(network, image, mask)
    torch.testing.assert_close(reconstruct(network, PIXELS, image, mask), wanted, rtol=1e-9, atol=1e-9)
    single = network.float()  # the precision that it is trained in
    torch.testing.assert_close(reconstruct(single, PIXELS, image.float(), mask), wanted.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ratio", RATIOS)
@torch.no_grad()
def test_all_views_at_once_equal_one_by_one(ratio):
    network, x = small(), tokens()
    mask = draw_masks("complementary", ratio, 196, generator(3))
    views = network(x, mask)
    assert views.shape == (len(mask), 2, 196, 12)
    for i in range(len(mask)):
        torch.testing.assert_close(network(x, mask[i : i + 1])[0], views[i], rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_views_may_have_any_sizes_in_any_order():
    network, x = small(), tokens()
    score = torch.rand(6, 196, generator=generator(4))
    for i, visible in enumerate([50, 3, 195, 3, 1, 50]):
        score[i, score[i].argsort()[:visible]] = -1
    mask = score >= 0
    assert [group.shape for group in split_by_size(~mask)] == [(1, 50), (1, 3), (1, 195), (1, 3), (1, 1), (1, 50)]
    assert [group.shape for group in split_by_size(~mask[[1, 3, 0, 5, 4]])] == [(2, 3), (2, 50), (1, 1)]
    views = network(x, mask)
    for i in range(6):
        torch.testing.assert_close(network(x, mask[i : i + 1])[0], views[i], rtol=1e-9, atol=1e-9)
    order = [4, 2, 0, 5, 3, 1]
    torch.testing.assert_close(network(x, mask[order]), views[order], rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_an_image_does_not_depend_on_its_batch():
    network, x = small(), tokens(3)
    mask = draw_masks("complementary", 0.8, 196, generator(5))
    views = network(x, mask)
    for b in range(3):
        torch.testing.assert_close(network(x[b : b + 1], mask)[:, 0], views[:, b], rtol=1e-9, atol=1e-9)


def gradient_at(network, ratio, place):
    """|gradient| of the reconstruction at one patch with respect to every patch of the image, (L,)."""
    image = images(1).requires_grad_()
    mask = draw_masks("complementary", ratio, 196, generator(6))
    y = PIXELS.tokenize(reconstruct(network, PIXELS, image, mask))[0, place]
    (y * torch.rand(12, generator=generator(8), dtype=torch.float64)).sum().backward()
    return PIXELS.tokenize(image.grad)[0].abs().amax(1)


@pytest.mark.parametrize("place", [0, 77, 195])
@pytest.mark.parametrize("ratio", RATIOS)
def test_a_patch_is_predicted_without_its_own_pixels(ratio, place):
    gradient = gradient_at(small(), ratio, place)
    assert gradient[place] == 0  # exactly
    # all that share the patch's own view see it, so nothing of theirs may count; everything else does
    mask = draw_masks("complementary", ratio, 196, generator(6))
    together = ~mask[(~mask[:, place]).nonzero()[0, 0]]
    assert (gradient[together] == 0).all() and (gradient[~together] > 0).all()


@pytest.mark.parametrize("ratio", RATIOS)
def test_joint_encoder_leaks(ratio):
    assert gradient_at(small("joint"), ratio, 77)[77] > 1e-6


WORK = {"joint": [(2, 196, 16)], "separate": [(2, 40, 16), (8, 39, 16)]}  # (images, views x images), visible patches


@pytest.mark.parametrize("encoder", WORK)
@torch.no_grad()
def test_the_encoder_does_the_work_of_one_image(encoder):
    network, shapes = small(encoder), []
    network.encoder_blocks[0].register_forward_hook(lambda block, given, result: shapes.append(tuple(result.shape)))
    views = network(tokens(), draw_masks("complementary", 0.8, 196, generator()))
    assert views.shape == (5, 2, 196, 12) and shapes == WORK[encoder]
    assert sum(batch * length for batch, length, _ in shapes) == 2 * 196


@torch.no_grad()
def test_other_grids_and_tokens_and_one_mask():
    """Nothing in the network knows of images: a wide grid of seven-dimensional features will do."""
    network = small(grid=(3, 5), token_dim=7)
    assert network(tokens(3, 15, 7), draw_masks("single", 0.8, 15, generator())).shape == (1, 3, 15, 7)


@torch.no_grad()
def test_a_grid_given_later_is_as_one_given_at_first():
    network, other, mask = small(grid=(3, 5)), small(grid=(9, 2)), draw_masks("complementary", 0.8, 15, generator())
    torch.testing.assert_close(other(tokens(2, 15), mask, (3, 5)), network(tokens(2, 15), mask), rtol=1e-9, atol=1e-9)


def test_starts_at_the_mean_of_the_tokens():
    torch.manual_seed(0)
    network = MaskedAutoencoder((4, 4), 192, 0.25, 1, 16, 2, 1, 16, 2)
    assert (network.decoder_pred.bias == 0.25).all()
    assert not network.patch_embed.bias.any() and network.mask_token.any()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (dict(encoder_width=20, encoder_heads=3), "width 20 .* 3 heads"),
        (dict(decoder_width=20, decoder_heads=8), "width 20 .* 8 heads"),
        (dict(encoder_width=18, encoder_heads=3), "width 18 .* 4"),
        (dict(encoder="both"), r"'both'.*separate, joint"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(settings, text):
    with pytest.raises(ValueError, match=text):
        small(**settings)


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
    config = composed(f"model={model}", "dataset=mvtec").model
    tokenizer = PixelTokenizer(224 if model == "mae" else 128)
    with torch.device("meta"):
        network = instantiate(config.network)(grid=tokenizer.grid, token_dim=tokenizer.dim)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == size_by_hand(*sizes) and least <= count <= most


def test_the_articles_input_has_196_patches():
    config = composed("model=mae", "dataset=mvtec", "model/depth=e12d8").model
    tokenizer = instantiate(config.tokenizer)
    with torch.device("meta"):
        network = instantiate(config.network)(grid=tokenizer.grid, token_dim=tokenizer.dim)
    assert network.num_patches == 196 and (len(network.encoder_blocks), len(network.decoder_blocks)) == (12, 8)
