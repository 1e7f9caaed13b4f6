"""Scores of images from scores of cells."""

import pytest
import torch

from adlight.features.scorer import CellScorer


def defective(height, width):
    """Cells of 1, four of them 5."""
    cells = torch.ones(1, height, width)
    cells[0, 2:4, 2:4] = 5
    return cells


@pytest.mark.parametrize("shape", [(20, 20), (20, 50), (60, 20)])
def test_a_defect_counts_in_a_strip_as_in_a_square(shape):
    score, pixel = CellScorer(cell_smoothing=0)(defective(*shape), torch.Size(16 * side for side in shape))
    assert score.item() == 5 and pixel.shape == (1, 16 * shape[0], 16 * shape[1])


def test_the_share_is_that_of_the_square():
    score, _ = CellScorer(topk=0.02, cell_smoothing=0)(defective(20, 50), torch.Size((320, 800)))
    assert score.item() == 3  # 8 cells, of which 4 are defective


def test_one_cell_counts_at_least():
    score, _ = CellScorer(topk=1e-6, cell_smoothing=0)(defective(20, 400), torch.Size((320, 6400)))
    assert score.item() == 5
