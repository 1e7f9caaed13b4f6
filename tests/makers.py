"""Small data sets that the tests write for themselves, all from fixed seeds; and configs."""

import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image

from adlight.runs.overrides import compose_config

CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def composed(*words):
    """The config of a training as the command line composes it."""
    return compose_config("train", [*words, "run_dir=nowhere"])


def write_image(path, seed=0, size=32, channels=3):
    """Write a noise image, its folders too; returns the path. `size`: a side, or height and width."""
    size = (size, size) if isinstance(size, int) else tuple(size)
    shape = (*size, channels) if channels > 1 else size
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(path)
    return path


def write_mask(path, size=32):
    """Write a mask whose top left corner, a quarter of each side, is white; returns the path."""
    height, width = (size, size) if isinstance(size, int) else size
    mask = np.zeros((height, width), np.uint8)
    mask[: height // 4, : width // 4] = 255
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


def intervals(table):
    """Ends of made-up intervals of some metrics."""
    known = [name for name in ("auroc", "ap", "f1_max") if name in table]
    lower = {f"{name}_lower": max(0.0, table[name] - 0.06) for name in known}
    return lower | {f"{name}_upper": min(1.0, table[name] + 0.04) for name in known}


def fake_run(
    folder, categories=("bottle", "screw"), finished=True, shift=1.0, images=20, error=None, seed=0, draw=0, **settings
):
    """Write a run's folder as a training leaves it; its scores are drawn, the anomalous ones `shift` deviations higher.

    `settings` are values of its config by dotted key with `__` for the dots; `model` and `dataset` are names.
    """
    from adlight.metrics.image import image_metrics
    from adlight.metrics.results import Results, macro_mean

    folder, generator = Path(folder), np.random.default_rng([seed, draw])
    choices = {"model": settings.pop("model", "mae"), "dataset": settings.pop("dataset", "mvtec")}
    choices |= {key: settings.pop(key) for key in ("experiment", "sweep") if key in settings}
    config = OmegaConf.create({"seed": seed, "resume": None, "run_dir": "${hydra:runtime.output_dir}"})
    values = {"model.mask_ratio": 0.75, "model.network.encoder_depth": 2, "model.network.decoder_depth": 4}
    for key, value in (values | {key.replace("__", "."): value for key, value in settings.items()}).items():
        OmegaConf.update(config, key, value, force_add=True)
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(config, folder / ".hydra" / "config.yaml")
    OmegaConf.save({"hydra": {"runtime": {"choices": choices}}}, folder / ".hydra" / "hydra.yaml")
    if error is not None:
        (folder / "error.txt").write_text(error)
    if not finished:
        return folder
    label = np.arange(images) % 2
    header = "path,category,defect,label,score,threshold,anomalous,threshold_source,pixel_threshold,area,boxes"
    lines, tables = [header], {}
    for c, category in enumerate(categories):
        score = generator.normal(1 + c, 0.5, images) + shift * 0.5 * label
        for i in range(images):
            verdict = f"{float(score[i])!r},{2.0 + c},{score[i] > 2 + c:d},{category},0.5,0,"
            lines.append(f"{i}.png,{category},x,{label[i]},{verdict}")
        tables[category], _ = image_metrics(torch.tensor(score), torch.tensor(label), 2.0 + c)
        tables[category] |= {"normal": float(sum(label == 0)), "anomalous": float(sum(label))}
        tables[category] |= intervals(tables[category]) | {"threshold": 2.0 + c, "pixel_threshold": 0.5}
    (folder / "predictions.csv").write_text("\n".join(lines) + "\n")
    content = Results(macro_mean(list(tables.values())), tables[categories[0]], tables).as_dict()
    content |= {"threshold": 1.5, "threshold_method": "quantile:0.95", "seed": seed, "epochs": 3, "seconds": 12.5}
    content |= {"commit": "0123456789ab", "command": "adlight train"}
    (folder / "metrics.json").write_text(json.dumps(content))
    for category in categories:
        write_image(folder / "panels" / f"{category}.png", seed, 48)
    return folder


def fill_gallery(run, rows, side=100):
    """Fill the gallery of a made-up run with pictures of noise, a mask for every other one."""
    from adlight.callbacks.gallery import encode
    from adlight.runs.folder import RunFolder
    from adlight.runs.subfolders import Pictures

    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    picture = encode(Image.fromarray(noise), side)
    RunFolder(run).gallery.write((row, Pictures(picture, picture, picture if row % 2 else None)) for row in rows)
