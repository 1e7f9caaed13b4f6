"""Features that are computed once."""

import errno

import pytest
import torch

from adlight.features.cache import FeatureCache
from adlight.types import UserError


class Pixels:
    """Stands in for a backbone: every cell is a pixel."""

    fingerprint = "pixels"

    def __init__(self):
        self.seen = 0

    def __call__(self, image, size=None):
        self.seen += len(image)
        return image.permute(0, 2, 3, 1)


class Noise:
    def __init__(self, count=20, seed=0):
        self.image = torch.randint(0, 256, (count, 3, 4, 6), generator=torch.manual_seed(seed), dtype=torch.uint8)

    def __len__(self):
        return len(self.image)

    def __getitems__(self, indices):
        return {"image": self.image[list(indices)]}


CPU = torch.device("cpu")


def test_files_are_used_again(tmp_path):
    first, second, images = Pixels(), Pixels(), Noise()
    found = FeatureCache(first, tmp_path / "new")(images, CPU)
    again = FeatureCache(second, tmp_path / "new")(images, CPU)
    assert first.seen >= 20 and second.seen == 0
    assert torch.equal(found, again) and found.dtype == torch.float16 and found.shape == (20, 4, 6, 3)
    assert found == pytest.approx(images.image.permute(0, 2, 3, 1) / 255, abs=1e-3)
    assert [path.suffix for path in (tmp_path / "new").iterdir()] == [".npy"]


def test_another_image_or_backbone_is_another_file(tmp_path):
    FeatureCache(Pixels(), tmp_path)(Noise(), CPU)
    changed, other = Noise(), Pixels()
    changed.image[7, 0, 0, 0] ^= 1
    other.fingerprint = "other"
    for images, backbone in ((changed, Pixels()), (Noise(), other), (Noise(19), Pixels())):
        FeatureCache(backbone, tmp_path)(images, CPU)
        assert backbone.seen
    assert len(list(tmp_path.iterdir())) == 4


def test_memory():
    backbone = Pixels()
    found = FeatureCache(backbone)(Noise(), CPU)
    assert found.shape == (20, 4, 6, 3) and backbone.seen == 20


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=str(tmp_path / "file")):
        FeatureCache(Pixels(), tmp_path / "file" / "below")(Noise(), CPU)


def test_a_full_disk_is_left_as_it_was(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", refuse)
    with pytest.raises(UserError, match=r"model\.cache"):
        FeatureCache(Pixels(), tmp_path)(Noise(), CPU)
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_named(tmp_path):
    FeatureCache(Pixels(), tmp_path)(Noise(), CPU)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for content in (whole[:-1], whole[:40], b"", bytes(len(whole))):
        path.write_bytes(content)
        with pytest.raises(UserError, match=path.name):
            FeatureCache(Pixels(), tmp_path)(Noise(), CPU)
