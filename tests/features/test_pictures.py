"""Pictures of normal patches."""

import torch

from adlight.features.cells import TrainingCells
from adlight.features.pictures import SIDE, PatchPictures, blend


class Images:
    def __init__(self, image):
        self.image = image

    def __getitems__(self, rows):
        return {"image": self.image[list(rows)]}


def test_an_image_whose_cells_are_all_known_is_shown_as_it_is():
    rng = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (2, 3, 4 * SIDE, 6 * SIDE), generator=rng, dtype=torch.uint8)
    cells = torch.randn(2, 4, 6, 8, generator=rng)
    pictures = PatchPictures(8)
    pictures.fit(TrainingCells(cells.half(), torch.zeros(8), torch.ones(8)), Images(image))
    assert len(pictures.cells) == 48 and pictures.patches.shape[-1] == 2 * SIDE
    torch.testing.assert_close(pictures(cells, image / 255), image / 255, rtol=0, atol=1e-5)
    grey = pictures(cells, image[:, :1] / 255)
    torch.testing.assert_close(grey, (image / 255).mean(1, keepdim=True), rtol=0, atol=1e-5)


def test_neighbours_fade_into_each_other():
    patches = torch.zeros(1, 2, 1, 4, 4)
    patches[0, 1] = 1
    row = torch.tensor([0.0, 0.25, 0.75, 1.0])  # between the centres of two cells of two pixels
    torch.testing.assert_close(blend(patches)[0], row.expand(2, 4))
