"""Neighbour-masked attention."""

import pytest
import torch

from adlight.features.predictor import mean_square
from adlight.mae.neighbour import NeighbourMaskedNetwork, outside_neighbourhood
from adlight.mae.tokens import fold_cells, unfold_cells
from adlight.types import UserError


def network(channels=5, **settings):
    torch.manual_seed(0)
    made = NeighbourMaskedNetwork(channels, **{"width": 16, "heads": 2, "depth": 2, **settings})
    for p in made.parameters():  # nothing that is zero by initialization may prove anything
        torch.nn.init.normal_(p, std=0.3)
    return made.eval()


@pytest.mark.parametrize(
    ("grid", "fold", "radius"), [((12, 12), 2, 1), ((7, 9), 1, 1), ((10, 14), 2, 0), ((8, 11), 1, 2)]
)
def test_a_prediction_depends_on_nothing_in_its_neighbourhood(grid, fold, radius):
    made = network(fold=fold, radius=radius)
    cells = torch.randn(1, *grid, 5, requires_grad=True)
    prediction = made(cells)
    for row, column in ((0, 0), (grid[0] // 2, grid[1] // 2), (grid[0] - 1, 1)):
        (gradient,) = torch.autograd.grad(prediction[0, row, column].sum(), cells, retain_graph=True)
        seen = gradient[0].abs().sum(-1) > 0  # (h, w)
        far_row = (torch.arange(grid[0]) // fold - row // fold).abs() > radius
        far_column = (torch.arange(grid[1]) // fold - column // fold).abs() > radius
        assert torch.equal(seen, far_row[:, None] | far_column[None, :])


def test_visible_tokens():
    visible = outside_neighbourhood(4, 5, 1)
    assert visible.shape == (20, 20) and torch.equal(visible, visible.T)
    assert (~visible[0]).nonzero()[:, 0].tolist() == [0, 1, 5, 6]
    assert int((~visible[7]).sum()) == 9


def test_a_grid_without_anything_outside_is_refused():
    with pytest.raises(UserError, match="3 x 3"):
        network(fold=1)(torch.randn(1, 3, 3, 5))
    with pytest.raises(UserError, match="radius 1"):
        network(fold=2)(torch.randn(1, 4, 5, 5))


@pytest.mark.parametrize("grid", [(6, 8), (5, 7)])
def test_folding_there_and_back(grid):
    cells = torch.randn(2, *grid, 3)
    tokens, size = fold_cells(cells, 2)
    assert tokens.shape == (2, size[0] * size[1], 12) and size == (3, 4)
    assert torch.equal(unfold_cells(tokens, 2, size, cells.shape), cells)
    assert torch.equal(tokens[0, 1].view(2, 2, 3), cells[0, :2, 2:4])


def test_one_image_one_answer():
    made, cells = network(), torch.randn(3, 8, 10, 5)
    assert made(cells)[1:2].detach() == pytest.approx(made(cells[1:2]).detach(), abs=1e-5)


def test_loss_falls():
    torch.manual_seed(0)
    made = NeighbourMaskedNetwork(5, width=16, heads=2, depth=1)
    pattern = torch.randn(4, 1, 1, 5).expand(-1, 8, 8, -1)  # every cell tells of all others
    optimizer = torch.optim.Adam(made.parameters(), 1e-2)
    first = made.loss(pattern, torch.Generator().manual_seed(0)).item()
    for _ in range(40):
        optimizer.zero_grad()
        made.loss(pattern, torch.Generator().manual_seed(0)).backward()
        optimizer.step()
    assert made.loss(pattern, torch.Generator().manual_seed(0)).item() < 0.2 * first


def test_matrices_are_the_blocks():
    made = network()
    shapes = {tuple(p.shape) for p in made.matrices()}
    assert shapes == {(16, 16), (64, 16), (16, 64)} and len(made.matrices()) == 2 + 2 * 6


def test_what_does_not_fit_is_refused():
    for settings in ({"width": 15}, {"heads": 3}, {"radius": -1}, {"depth": 0}, {"hard": 1.5}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            NeighbourMaskedNetwork(5, **{"width": 16, "heads": 2, **settings})


def test_gradients_of_easy_cells_are_a_tenth():
    cells = torch.zeros(1, 2, 2, 3)
    cells[0, 1, 1] = torch.nan
    gradients = []
    for hard in (0.0, 0.5):
        predicted = torch.tensor([[1.0, 2.0], [3.0, 9.0]])[None, ..., None].expand(1, 2, 2, 3).clone().requires_grad_()
        loss = mean_square(predicted, cells, hard)
        assert loss.item() == pytest.approx((1 + 4 + 9) / 3)  # the value stays
        gradients.append(torch.autograd.grad(loss, predicted)[0][0, ..., 0] * 9)
    assert torch.allclose(gradients[0], torch.tensor([[2.0, 4.0], [6.0, 0.0]]))
    assert torch.allclose(gradients[1], torch.tensor([[0.2, 4.0], [6.0, 0.0]]))  # the median is not below itself
