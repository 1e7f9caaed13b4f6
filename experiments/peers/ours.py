"""Our side: `python ours.py <row> <work> <threads>`."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from shared import BACKBONE, BANK, BATCH, CORESET, LAYERS, SIDE, clock, epochs, forget_peak, maps, peak, rate, run


def data(work: Path, folder: str, augmented: bool) -> dict[str, float]:
    from adlight.data.augmentation import Augmentation
    from adlight.data.datamodule import AnomalyDataModule
    from adlight.data.folder import Folder

    folders = {"root": str(work / folder), "normal_dir": "good", "abnormal_dir": "bad"}
    settings = {"image_size": SIDE, "batch_size": BATCH, "num_workers": 0, "val_fraction": 0.02, **folders}
    augmentation, module = Augmentation() if augmented else None, AnomalyDataModule(Folder, **settings)

    def load() -> Iterator[torch.Tensor]:
        module.setup("fit")
        for number, batch in enumerate(module.train_dataloader()):
            if augmentation is None:
                yield module.on_after_batch_transfer(batch, 0)["image"]
            else:
                yield augmentation(batch["image"], number)

    with patch("os.cpu_count", torch.get_num_threads):  # images are decoded on all cores
        return epochs(load)


def pixels(work: Path) -> dict[str, float]:
    from adlight.metrics.histogram import pixel_metrics
    from adlight.metrics.pixel import PixelHistogram

    metric, batches = PixelHistogram(), list(maps())
    before, start = forget_peak(), clock()
    for pixel, mask in batches:
        metric.update(pixel, mask, torch.zeros(len(pixel), dtype=torch.long))
    histogram = metric.histogram()
    values = pixel_metrics(histogram, histogram.flagged(histogram.quantile(0.99)))[0]
    names = {"AUROC": "pixel_auroc", "AP": "pixel_ap", "best F1": "pixel_f1_max", "AUPRO": "aupro"}
    found = {ours: values[name] for ours, name in names.items()}
    return {"time, s": clock() - start, "peak memory, MB": peak() - before, **found}


def fit(work: Path, pictures: bool) -> dict[str, float]:
    import adlight

    folder = work / f"ours-{pictures}"
    shutil.rmtree(folder, ignore_errors=True)  # of the last turn
    folders = {"root": str(work / "parts"), "normal_dir": "good", "abnormal_dir": "bad", "mask_dir": "mask"}
    words = ["model=patchcore", "dataset=folder", "trainer=cpu", f"model/backbone={BACKBONE}", "image_size=256"]
    words += ["model.backbone.weights=random", "model.backbone.stride=8", "model.cache=null", "calibration.folds=0"]
    words += [f"model.predictors.patchcore.coreset={CORESET}", f"hydra.run.dir={folder}"]
    words += [] if pictures else ["callbacks=none"]
    adlight.train(*words, **folders)
    return {}


def predict(work: Path) -> dict[str, float]:
    import adlight

    detector = adlight.load(str(work / "ours-False")).detector(device="cpu")
    return {"images": len(detector(sorted((work / "new").iterdir()), reconstruct=False))}


def forward() -> dict[str, float]:
    from adlight.features.backbones import Backbone
    from adlight.memory.bank import PatchBank

    backbone = Backbone(BACKBONE, LAYERS, weights="random", stride=8)
    bank = PatchBank(backbone.channels)
    bank.bank = torch.rand(BANK, backbone.channels)
    image = torch.rand(8, 3, SIDE, SIDE)
    before = forget_peak()

    def work() -> int:
        with torch.inference_mode():
            cells = backbone(image)
            distance = bank.residual(cells).norm(dim=-1)
            bank.image_score(cells, distance)
            torch.nn.functional.interpolate(distance[:, None], (SIDE, SIDE), mode="bilinear")
        return len(image)

    return {"images/s": rate(work), "peak memory, MB": peak() - before}


def score(work: Path) -> dict[str, float]:
    """The largest difference from the other side's scores of the same cells by the same bank."""
    from adlight.memory.bank import PatchBank

    theirs = np.load(work / "scores.npz")
    cells, found = torch.from_numpy(theirs["cells"]).permute(0, 2, 3, 1), {}
    for neighbours in (1, 9):
        bank = PatchBank(cells.shape[-1], neighbours=neighbours, pooled=False)
        bank.bank = torch.from_numpy(theirs["bank"])
        distance = bank.residual(cells).norm(dim=-1)
        image = bank.image_score(cells, distance).numpy()
        found[f"largest difference of images, {neighbours} neighbours"] = float(
            np.abs(image / theirs[f"image{neighbours}"] - 1).max()
        )
    cellwise = np.abs(distance.flatten(1).numpy() / theirs["distance"] - 1).max()
    return {"largest difference of cells": float(cellwise), **found}


ROWS = {
    "data 256": lambda work: data(work, "parts", augmented=False),
    "data 256 augmented": lambda work: data(work, "parts", augmented=True),
    "data 1024": lambda work: data(work, "large", augmented=False),
    "pixel metrics": pixels,
    "fit and test": lambda work: fit(work, pictures=False),
    "fit and test, pictures": lambda work: fit(work, pictures=True),
    "predict": predict,
    "PatchCore": lambda work: forward(),
    "score": score,
}

if __name__ == "__main__":
    run(ROWS)
