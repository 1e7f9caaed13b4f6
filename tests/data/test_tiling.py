import numpy as np
import pytest
import torch
from makers import fake_mvtec, write_image
from PIL import Image

from adlight.data.dataset import CachedImageDataset
from adlight.data.frames import Frame, WholeFrame
from adlight.data.mvtec import MVTecAD
from adlight.data.splits import SplitLoader, TileDataset, batch_tiles
from adlight.data.tiling import Tiling, describe_tiles, make_tiling
from adlight.types import UserError


@pytest.mark.parametrize("length", [5, 32, 33, 48, 100, 1024])
@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.9])
def test_tiles_cover_a_side_and_overlap(length, overlap):
    starts = Tiling(32, overlap, (32, 32)).starts(length)
    assert starts[0] == 0 and starts[-1] == max(0, length - 32)
    steps = np.diff(starts)
    assert (steps > 0).all() and (steps <= max(1, round(32 * (1 - overlap)))).all()


@pytest.mark.parametrize("shape", [(50, 70), (32, 32), (20, 90), (9, 9)])
@pytest.mark.parametrize("overlap", [0, 0.3])
def test_an_image_is_the_blend_of_its_tiles(shape, overlap):
    image = np.random.default_rng(0).integers(0, 256, (3, *shape), np.uint8)
    tiling = Tiling(32, overlap, (32, 32))
    canvas = tiling.canvas(*shape, 3)
    for place in tiling.places(*shape):
        tile = tiling.cut(image, place)
        assert tile.shape == (3, 32, 32) and tile.dtype == np.uint8
        canvas.add(place, tile.astype(np.float32))
    assert canvas.finish() == pytest.approx(image, abs=1e-3)


def test_tiles_fade_out_where_others_begin():
    """Between two tiles that disagree the blend goes from one to the other without a step."""
    tiling = Tiling(32, 0.5, (32, 32))
    canvas = tiling.canvas(32, 48, 1)
    for value, place in enumerate(tiling.places(32, 48)):
        canvas.add(place, np.full((1, 32, 32), value, np.float32))
    row = canvas.finish()[0, 16]
    assert row[0] == 0 and row[-1] == 1 and (np.diff(row) >= 0).all() and np.diff(row).max() < 0.15


def test_tiles_of_another_size_are_resized_and_back():
    tiling = Tiling(64, 0.25, (16, 16))
    image = np.zeros((1, 100, 100), np.uint8)
    image[:, 20:60, 30:70] = 200
    canvas, mask = tiling.canvas(100, 100, 1), tiling.canvas(100, 100, 1)
    for place in tiling.places(100, 100):
        tile = tiling.cut(image, place)
        assert tile.shape == (1, 16, 16)
        canvas.add(place, tile.astype(np.float32))
        mask.add(place, tiling.cut(image[0] > 0, place)[None].astype(np.float32))
    blended, marked = canvas.finish()[0], mask.finish()[0] > 0.5
    assert blended[30:50, 40:60] == pytest.approx(200, abs=1) and blended[:10].max() < 1
    assert (marked == (image[0] > 0)).mean() > 0.95


@pytest.fixture
def split(tmp_path):
    """Two images of 40 x 60 and 32 x 32 pixels, one of them defective in its top left corner."""
    fake_mvtec(tmp_path, ("bottle",), train=1, test=1, size=(40, 60))
    source = MVTecAD(tmp_path, category="bottle")
    write_image(tmp_path / "bottle" / "test" / "good" / "000.png", 3, 32)
    records = [record for record in source.test() if record.defect != "scratch"]
    images = CachedImageDataset(source, records, ["bottle"], frame=WholeFrame(), cache=False)
    return lambda bytes=1e9, **settings: TileDataset(images, ["bottle"], Tiling(32, 0.25, (32, 32)), bytes, **settings)


def test_items_are_tiles_with_their_places(split):
    kept, read = split(), split(0)
    assert kept.cache and not read.cache and len(kept) == len(read) == 1 + 2 * 3
    for tiles in (kept, read):
        batch = tiles.__getitems__(range(7))
        assert batch["image"].shape == (7, 3, 32, 32) and batch["label"].tolist() == [0] + [1] * 6
        assert batch["tile"][0].tolist() == [0, 0, 0, 32, 32, 1] and batch["index"].tolist() == list(range(7))
        assert batch["tile"][1:, 1:3].tolist() == [[0, 0], [0, 14], [0, 28], [8, 0], [8, 14], [8, 28]]
        assert (batch["tile"][1:, 3:] == torch.tensor([40, 60, 6])).all()
        whole = np.asarray(Image.open(tiles.records[1].path))
        assert (batch["image"][3].numpy().transpose(1, 2, 0) == whole[:32, 28:]).all()
        assert batch["mask"][1].any() and not batch["mask"][3].any()


def test_unreadable_images_are_skipped_or_named(split):
    path = split().records[0].path
    with open(path, "wb") as file:
        file.write(b"no image")
    with pytest.raises(UserError, match=r"000\.png"):
        split()
    tiles = split(skip=True)
    assert len(tiles) == 6 and len(tiles.records) == 1 and "000.png" in tiles.skipped[0]


def test_batches_are_of_one_image_and_processes_share_images():
    images = torch.tensor([0] * 5 + [1] * 2 + [2] * 3)
    assert batch_tiles(images, 3) == [[0, 1, 2], [3, 4], [5, 6], [7, 8, 9]]
    parts = [batch_tiles(images, 4, rank, 2) for rank in (0, 1)]
    assert parts == [[[0, 1, 2, 3], [4], [7, 8, 9]], [[5, 6]]]


@pytest.mark.parametrize(("cache", "processes", "kept"), [("auto", 1, True), ("auto", 2, False), ("memory", 2, True)])
def test_processes_share_the_room_for_tiles(tmp_path, cache, processes, kept):
    source = MVTecAD(fake_mvtec(tmp_path / "data", ("bottle",), size=48))
    records, tiling = source.train(), Tiling(32, 0.25, (32, 32))

    def load(cache, gigabytes, processes):
        loader = SplitLoader(Frame(32), 3, tiling, None, cache, gigabytes, None, False)
        return loader.load(source, records, ["bottle"], processes)

    room = len(load("memory", 0.0, 1)) * 32 * 32 * (3 + 1 + 1) * 1.01 / 1e9  # images, masks and what counts
    assert load(cache, room, processes).cache is kept


@pytest.mark.parametrize(
    ("tile", "overlap", "said"),
    [
        *((10, None, "tile=10"), (79, None, "tile=79"), (4, None, "tile must"), (-3, None, "tile must")),
        *((2.5, None, "tile must"), (True, None, "tile must"), (None, 0.5, "overlap=0.5")),
        *((100, 1.0, "overlap must"), (100, 0.95, "overlap must"), (100, -0.1, "overlap must")),
    ],
)
def test_tiles_that_would_only_be_enlarged_or_lie_over_one_another_are_refused(tile, overlap, said):
    with pytest.raises(ValueError, match=said):
        make_tiling(tile, overlap, 320)
    assert make_tiling(80, 0.9, 320).tile == 80 and make_tiling(None, 0.25, 320) is None


def test_how_many_tiles_there_are_is_said_and_images_smaller_than_all_tiles_are_refused():
    tiling = make_tiling(32, 0.0, 32)
    (line,) = describe_tiles(tiling, [(64, 32), (96, 64)])
    assert "4.0 tiles" in line and "6" in line
    with pytest.raises(UserError, match=r"tile=32.*31"):
        describe_tiles(tiling, [(31, 20)])
