"""Cells beyond an image are NaN: whatever is computed of the others is what it is without them."""

import pytest
import torch

from adlight.detection.whitening import second_moments
from adlight.features.backbones import Backbone
from adlight.features.cells import TrainingCells, channel_statistics, content_of, content_shape, image_means
from adlight.features.pictures import PatchPictures
from adlight.features.scorer import CellScorer
from adlight.mae.complementary import ComplementaryMaskedNetwork
from adlight.mae.neighbour import NeighbourMaskedNetwork
from adlight.memory.bank import PatchBank
from adlight.memory.retrieval import Retrieval
from adlight.memory.subspace import Subspace

C, ROWS, COLUMNS = 6, 6, 8
MAKERS = {
    "neighbour": lambda: NeighbourMaskedNetwork(C, width=16, heads=2, depth=2),
    "complementary": lambda: ComplementaryMaskedNetwork(C, width=16, heads=2),
    "retrieval": lambda: Retrieval(C, neighbours=3),
    "patchcore": lambda: PatchBank(C),
    "subspace": lambda: Subspace(C, explained=0.6),
}


def cells(count, seed=0):
    return torch.randn(count, ROWS, COLUMNS, C, generator=torch.manual_seed(seed))


def padded(x):
    """The same cells in a larger frame."""
    frame = torch.full((len(x), ROWS + 3, COLUMNS + 2, C), torch.nan)
    frame[:, :ROWS, :COLUMNS] = x
    return frame


@pytest.mark.parametrize("name", MAKERS)
def test_predictors_see_no_padding(name):
    made = []
    for place in (lambda x: x, padded):
        torch.manual_seed(0)
        one = MAKERS[name]().eval()
        one.fit(TrainingCells(place(cells(12).half()).half(), torch.zeros(C), torch.ones(C)))
        made.append((one, place(cells(4, seed=1))))
    (alone, x), (other, framed) = made
    residual = other.residual(framed)
    torch.testing.assert_close(residual[:, :ROWS, :COLUMNS], alone.residual(x), rtol=1e-4, atol=1e-4)
    assert residual[:, ROWS:].isnan().all() and residual[:, :, COLUMNS:].isnan().all()
    if alone.trained:
        losses = [one.loss(x, torch.Generator().manual_seed(0)) for one, x in made]
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-5)
        losses[1].backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in other.parameters())
    scores = residual.square().mean(-1)
    if (own := other.image_score(framed, scores)) is not None:
        torch.testing.assert_close(own, alone.image_score(x, scores[:, :ROWS, :COLUMNS]), rtol=1e-4, atol=1e-5)


def test_statistics_count_no_padding():
    x = cells(5)
    torch.testing.assert_close(channel_statistics(padded(x)), channel_statistics(x))
    torch.testing.assert_close(image_means(padded(x)), x.mean((1, 2)))
    assert torch.equal(content_of(padded(x)), x.flatten(0, 2)) and content_shape(padded(x)[0, ..., 0]) == (
        ROWS,
        COLUMNS,
    )
    mean, center = torch.zeros(5, C), torch.zeros(1, C)
    wanted = second_moments(mean, x.flatten(1, 2), center)
    torch.testing.assert_close(second_moments(mean, padded(x).flatten(1, 2), center), wanted, rtol=1e-5, atol=1e-6)


def test_scores_and_pictures_are_those_of_the_cells_alone():
    x, size, frame = cells(3), torch.tensor([[24, 32]]).expand(3, 2), torch.Size((36, 40))
    alone = CellScorer()(x[..., 0], torch.Size((24, 32)))
    image, pixel = CellScorer()(padded(x)[..., 0], frame, size)
    torch.testing.assert_close((image, pixel[:, :24, :32]), alone)
    assert not pixel[:, 24:].any() and not pixel[:, :, 32:].any()

    class Shown:
        def __getitems__(self, rows):
            picture = torch.zeros(len(rows), 3, *frame, dtype=torch.uint8)
            picture[..., :24, :32] = 200
            return {"image": picture, "size": size[: len(rows)]}

    pictures = PatchPictures(C)
    pictures.fit(TrainingCells(padded(x).half(), torch.zeros(C), torch.ones(C)), Shown())
    assert len(pictures.cells) == 3 * ROWS * COLUMNS and (pictures.patches == 200).all()
    shown = pictures(padded(x), torch.zeros(3, 3, *frame), size)
    assert (shown[..., :24, :32] * 255).round().eq(200).all() and not shown[..., 24:, :].any()


@pytest.mark.parametrize("settings", [{}, {"input_size": 96}, {"min_size": 64}, {"stride": 8}], ids=str)
def test_a_backbone_sees_no_padding(settings):
    backbone = Backbone("resnet18", ["layer1", "layer2"], "random", **settings)
    image, size = torch.rand(3, 3, 32, 48), torch.tensor([[32, 24], [16, 48], [32, 48]])
    found, whole = backbone(image, size), backbone(image)
    assert found.shape == whole.shape and not found[2].isnan().any()
    torch.testing.assert_close(found[2:], whole[2:], rtol=1e-2, atol=1e-2)
    for one, (height, width) in zip(found, size.tolist(), strict=True):
        rows, columns = content_shape(one[..., 0])
        assert (rows, columns) == (-(-height * whole.shape[1] // 32), -(-width * whole.shape[2] // 48))
        assert not one[:rows, :columns].isnan().any() and one[rows:].isnan().all() and one[:, columns:].isnan().all()
