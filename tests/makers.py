"""Small data sets that the tests write for themselves, all from fixed seeds."""

import pickle
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def write_image(path, seed=0, size=32, channels=3):
    """Write a noise image, its folders too; returns the path."""
    shape = (size, size, channels) if channels > 1 else (size, size)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(path)
    return path


def write_mask(path, size=32):
    """Write a mask with a white square of a quarter of its side at the top left; returns the path."""
    mask = np.zeros((size, size), np.uint8)
    mask[: size // 4, : size // 4] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)
    return path


def fake_mvtec(root, categories=("bottle", "screw"), train=6, test=3, size=32):
    """Write categories in MVTec AD's layout: `test` good images, as many of each of two defects, masks."""
    root = Path(root)
    for c, category in enumerate(categories):
        folder = root / category
        for i in range(train):
            write_image(folder / "train" / "good" / f"{i:03d}.png", 1000 * c + i, size)
        for d, defect in enumerate(("good", "hole", "scratch")):
            for i in range(test):
                write_image(folder / "test" / defect / f"{i:03d}.png", 1000 * c + 100 * (d + 1) + i, size)
                if defect != "good":
                    write_mask(folder / "ground_truth" / defect / f"{i:03d}_mask.png", size)
        (folder / "license.txt").write_text("not an image")
    return root


def fake_archive(path, folder):
    """Pack a folder as a tar.xz, as MVTec does; returns the path."""
    with tarfile.open(path, "w:xz") as archive:
        archive.add(folder, folder.name)
    return path


def fake_mnist(root, train=60, test=40, noise=0):
    """Write idx files as torchvision expects them: labels 0..9 in turn, image i its label plus noise up to `noise`."""
    folder = Path(root) / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for split, count in (("train", train), ("t10k", test)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = np.tile(labels[:, None, None], (1, 28, 28))
        images += np.random.default_rng(count).integers(0, noise + 1, images.shape, dtype=np.uint8)
        for kind, array, code in (("images-idx3", images, 0x803), ("labels-idx1", labels, 0x801)):
            header = np.array([code, *array.shape], ">i4").tobytes()
            (folder / f"{split}-{kind}-ubyte").write_bytes(header + array.tobytes())
    return Path(root)


def fake_cifar10(root, batch=20):
    """Write pickled batches as torchvision expects them (but for their MD5): labels 0..9 in turn."""
    folder = Path(root) / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    labels = [i % 10 for i in range(batch)]
    data = np.tile(np.array(labels, np.uint8)[:, None], (1, 3 * 32 * 32))
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": labels}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(CIFAR_CLASSES)}))
    return Path(root)
