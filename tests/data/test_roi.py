import numpy as np
import pytest
import torch
from PIL import Image

from adlight.data.augmentation import Augmentation, augment
from adlight.data.frames import Frame
from adlight.data.images import FILL, to_input_array
from adlight.data.pseudo_anomalies import paste_within
from adlight.data.roi import RegionOfInterest
from adlight.types import Record, UserError


def paint(path, *boxes, size=(40, 20)):
    """Write a mask of `size` (width, height) that is white in boxes (left, top, right, bottom)."""
    mask = np.zeros(size[::-1], np.uint8)
    for left, top, right, bottom in boxes:
        mask[top:bottom, left:right] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)
    return path


def applied(roi, size, frame):
    """What counts of a plain image of `size` (width, height)."""
    return roi.apply(Image.new("RGB", size), 3, frame, None, None)[1]


def test_one_mask_is_scaled_to_every_image(tmp_path):
    roi = RegionOfInterest(paint(tmp_path / "roi.png", (0, 0, 20, 20)))
    found = applied(roi, (80, 40), Frame([10, 20]))
    assert found.shape == (10, 20) and found[:, :10].all() and not found[:, 10:].any()
    cropped = applied(roi, (80, 40), Frame(10, [10, 20]))  # the centre
    assert cropped[:, :5].all() and not cropped[:, 5:].any()
    with pytest.raises(UserError, match=r"roi.png is 40x20, its image is 40x40"):
        applied(roi, (40, 40), Frame(10))


@pytest.mark.parametrize("channels", [1, 3])
def test_no_neighbour_sees_what_is_outside(tmp_path, channels):
    roi = RegionOfInterest(paint(tmp_path / "roi.png", (5, 3, 20, 16)))
    inside = np.asarray(Image.open(tmp_path / "roi.png")) > 0
    image = np.random.default_rng(0).integers(0, 256, (20, 40, 3), np.uint8)
    frame, found = Frame([9, 18]), []
    for other in (0, 255):
        picture, content = roi.apply(
            Image.fromarray(np.where(inside[..., None], image, other).astype(np.uint8)), channels, frame, None, None
        )
        found.append(to_input_array(picture, channels, frame))
    assert (found[0] == found[1]).all() and found[0].shape[0] == channels and 20 < content.sum() < 60


def test_masks_of_a_folder_go_by_name_then_by_category(tmp_path):
    for name in ("bottle.png", "good/000.png", "001.bmp"):
        paint(tmp_path / "roi" / name, (0, 0, 9, 9))
    roi = RegionOfInterest(tmp_path / "roi")
    for path, category, wanted in (
        ("/d/bottle/test/good/000.png", "bottle", "good/000.png"),
        ("/d/bottle/test/hole/000.png", "bottle", "bottle.png"),
        ("/d/screw/test/hole/001.jpg", "screw", "001.bmp"),
        (None, "bottle", "bottle.png"),
    ):
        assert roi.find(path, category) == tmp_path / "roi" / wanted
    for path, category in (("/d/screw/002.png", "screw"), (None, None)):
        with pytest.raises(UserError, match="no region of interest"):
            roi.find(path, category)
    with pytest.raises(UserError, match=r"002\.png"):
        roi.check([Record("/d/bottle/a.png", "bottle"), Record("/d/screw/002.png", "screw")])


def test_masks_of_no_use_are_refused(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        RegionOfInterest(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"black\.png is black"):
        RegionOfInterest(paint(tmp_path / "black.png")).check([Record("a.png", "x")])
    with pytest.raises(UserError, match="leaves nothing"):
        applied(RegionOfInterest(paint(tmp_path / "dot.png", (2, 2, 3, 3))), (40, 20), Frame([10, 20]))
    with pytest.raises(UserError, match=r"text.png"):
        (tmp_path / "text.png").write_text("x")
        RegionOfInterest(tmp_path / "text.png").check([Record("a.png", "x")])


def test_what_is_outside_is_grey():
    pixels, content = np.arange(8 * 9 * 3, dtype=np.uint8).reshape(8, 9, 3), np.eye(8, 9, dtype=bool)
    filled = to_input_array(Image.fromarray(pixels), 3, Frame([8, 9]), content).transpose(1, 2, 0)
    assert (filled[~content] == FILL).all() and (filled[content] == pixels[content]).all()


@pytest.mark.parametrize("seed", range(6))
def test_synthetic_defects_lie_inside(seed):
    image = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (3, 64, 64), np.uint8))
    content = torch.zeros(64, 64, dtype=torch.bool)
    content[50:60, 5:9] = True
    changed, mask = paste_within(image, content, torch.Generator().manual_seed(seed))
    assert mask.sum() >= 6 and not (mask & ~content).any()
    assert (changed == image)[:, ~mask].all() and (changed != image)[:, mask].any(0).all()
    content[:] = False
    content[63, 63] = True
    assert paste_within(image, content, torch.Generator().manual_seed(seed))[1].sum() == 1


def test_the_region_moves_with_an_augmented_image():
    content = torch.zeros(4, 32, 32, dtype=torch.bool)
    content[:, 4:20, 8:30] = True
    image = torch.where(content[:, None], 0.9, FILL / 255).expand(-1, 3, -1, -1).clone()
    batch = {"image": image, "content": content.clone()}
    augment(batch, Augmentation(rotation=30, vertical_flip=0.5), seed=1)
    inside = batch["content"][:, None].expand_as(image)
    assert batch["image"].shape == image.shape and (batch["content"] != content).any()
    assert batch["image"][inside].allclose(torch.tensor(0.9), atol=1e-3)
    assert (batch["image"][~inside] == FILL / 255).all() and 300 < inside.sum() / 12 < 420
