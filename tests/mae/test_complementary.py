"""Complementary masks on features."""

import pytest
import torch
from naive_mae import naive_view

from adlight.mae.complementary import ComplementaryMaskedNetwork
from adlight.mae.masking import partition_masks
from adlight.mae.network import MaskedAutoencoder
from adlight.mae.tokens import fold_cells, unfold_cells

C = 5


def network(views, fold=2):
    made = ComplementaryMaskedNetwork(C, views, width=16, heads=2, encoder_depth=1, decoder_depth=1, fold=fold)
    rng = torch.Generator().manual_seed(7)
    for p in made.parameters():  # nothing that is zero by initialization may prove anything
        p.data = torch.randn(p.shape, generator=rng, dtype=torch.float64) * 0.3
    return made.double().eval()


def cells(*shape, seed=0):
    return torch.randn(*shape, C, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def masks_of(count, views):
    return partition_masks(count, views, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("views", "grid", "fold"), [(2, (6, 8), 2), (4, (5, 7), 1), (4, (7, 6), 2)])
def test_a_prediction_depends_on_nothing_that_is_hidden_with_it(views, grid, fold):
    made, x = network(views, fold), cells(1, *grid).requires_grad_()
    prediction = made(x)
    rows, columns = -(-grid[0] // fold), -(-grid[1] // fold)
    hidden = masks_of(rows * columns, views)  # (n, L)
    for row, column in ((0, 0), (grid[0] // 2, grid[1] // 2), (grid[0] - 1, 1)):
        (gradient,) = torch.autograd.grad(prediction[0, row, column].sum(), x, retain_graph=True)
        own = int((~hidden[:, row // fold * columns + column // fold]).nonzero())  # the view that shows the cell
        seen = hidden[own].view(rows, columns).repeat_interleave(fold, 0).repeat_interleave(fold, 1)
        assert torch.equal(gradient[0].abs().sum(-1) > 0, seen[: grid[0], : grid[1]])


@pytest.mark.parametrize("views", [2, 3, 4])
@torch.no_grad()
def test_equals_the_equations_written_out(views):
    """y = 1/(n - 1) sum_i M_i y_i, one image, one view, one token after the other."""
    made, x = network(views), cells(2, 4, 6)
    plain = MaskedAutoencoder((2, 3), 4 * C, 0.0, 1, 16, 2, 1, 16, 2).double()
    plain.load_state_dict(made.network.state_dict())
    tokens, grid = fold_cells(x, 2)
    hidden, wanted = masks_of(6, views), torch.zeros_like(tokens)
    for b in range(2):
        for mask in hidden:
            view = naive_view(plain, tokens[b], mask)
            for place in range(6):
                if mask[place]:
                    wanted[b, place] += view[place] / (views - 1)
    torch.testing.assert_close(made(x), unfold_cells(wanted, 2, grid, x.shape), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_one_image_one_answer_whatever_the_shapes_beside_it():
    made, x = network(2), cells(3, 8, 6)
    torch.testing.assert_close(made(x)[1:2], made(x[1:2]), rtol=1e-9, atol=1e-9)
    x[0, 6:], x[2, :, 5:] = torch.nan, torch.nan
    found = made(x)
    torch.testing.assert_close(found[1:2], made(x[1:2]), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[:1, :6], made(x[:1, :6]), rtol=1e-9, atol=1e-9)
    assert found[0, 6:].isnan().all() and not found[1].isnan().any()


def test_masks_of_the_training_come_from_the_generator_alone():
    made, x = network(2), cells(2, 6, 6)
    before = torch.get_rng_state()
    losses = [made.loss(x, torch.Generator().manual_seed(seed)).item() for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2] and torch.equal(before, torch.get_rng_state())
    assert losses[0] == pytest.approx((made(x) - x).square().mean().item())  # seed 0 is that of the predictions


def test_matrices_are_the_blocks():
    made = network(2)
    assert {tuple(p.shape) for p in made.matrices()} == {(48, 16), (16, 16), (64, 16), (16, 64)}
    assert len(made.matrices()) == 2 * 4 and "2 complementary masks" in made.summary()


def test_a_single_view_is_refused():
    with pytest.raises(ValueError, match="views"):
        ComplementaryMaskedNetwork(C, views=1)
