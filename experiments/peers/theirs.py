"""Anomalib's side: `python theirs.py <row> <work> <threads>`, by the interpreter of .venv-peers."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from shared import (
    BACKBONE,
    BANK,
    BATCH,
    CHANNELS,
    CORESET,
    LAYERS,
    SIDE,
    clock,
    epochs,
    forget_peak,
    maps,
    peak,
    rate,
    run,
)


def data(work: Path, folder: str, augmented: bool) -> dict[str, float]:
    from anomalib.data import Folder
    from torchvision.transforms import v2

    resize = v2.Resize((SIDE, SIDE), antialias=True)
    steps = [v2.RandomAffine(10), v2.RandomHorizontalFlip(), v2.RandomResizedCrop(SIDE, (0.8, 1.0), antialias=True)]
    both = {"augmentations": resize, "train_augmentations": v2.Compose([resize, *steps]) if augmented else resize}
    module = Folder("x", "good", work / folder, "bad", train_batch_size=BATCH, num_workers=0, **both)

    def load() -> Iterator[torch.Tensor]:
        module.prepare_data()
        if not hasattr(module, "train_data"):
            module.setup()
        return (batch.image for batch in module.train_dataloader())

    return epochs(load)


def pixels(work: Path) -> dict[str, float]:
    from anomalib.metrics.aupr import _AUPR
    from anomalib.metrics.aupro import _AUPRO
    from anomalib.metrics.auroc import _AUROC
    from anomalib.metrics.f1_score import _F1Max

    metrics, batches = {"AUROC": _AUROC(), "AP": _AUPR(), "best F1": _F1Max(), "AUPRO": _AUPRO()}, list(maps())
    before, start = forget_peak(), clock()
    for pixel, mask in batches:
        for metric in metrics.values():
            metric.update(pixel, mask.long())
    values = {name: float(metric.compute()) for name, metric in metrics.items()}
    return {"time, s": clock() - start, "peak memory, MB": peak() - before, **values}


def patchcore(visualizer: bool):
    from anomalib.models import Patchcore

    pre = Patchcore.configure_pre_processor((SIDE, SIDE))
    settings = {"pre_trained": False, "coreset_sampling_ratio": CORESET, "visualizer": visualizer}
    return Patchcore(BACKBONE, LAYERS, pre_processor=pre, **settings)


def engine(work: Path):
    from anomalib.engine import Engine

    return Engine(accelerator="cpu", devices=1, logger=False, default_root_dir=work / "theirs")


def fit(work: Path, pictures: bool) -> dict[str, float]:
    from anomalib.data import Folder

    folders = {"normal_dir": "good", "abnormal_dir": "bad", "mask_dir": "mask"}
    sizes = {"train_batch_size": BATCH, "eval_batch_size": 32, "num_workers": 0}
    data = Folder("parts", root=work / "parts", val_split_mode="same_as_test", **folders, **sizes)
    torch.manual_seed(0)
    trained, model = engine(work), patchcore(pictures)
    trained.fit(model, datamodule=data)
    trained.test(model, datamodule=data)
    trained.trainer.save_checkpoint(work / "theirs.ckpt")
    return {}


def predict(work: Path) -> dict[str, float]:
    from anomalib.data import PredictDataset

    files = PredictDataset(work / "new", image_size=(SIDE, SIDE))
    loader = torch.utils.data.DataLoader(files, 32, collate_fn=files.collate_fn)
    model = type(patchcore(False)).load_from_checkpoint(work / "theirs.ckpt", weights_only=False)
    model.visualizer = None  # no pictures
    engine(work).predict(model, dataloaders=loader)
    return {}


def forward(name: str) -> dict[str, float]:
    from anomalib.models.image.efficient_ad.torch_model import EfficientAdModel
    from anomalib.models.image.padim.torch_model import PadimModel
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    image = torch.rand(8, 3, SIDE, SIDE)
    if name == "efficient_ad":
        model = EfficientAdModel()
    elif name == "dinomaly":
        model = dinomaly()
        image = torch.rand(4, 3, 224, 224)
    elif name == "padim":
        model = PadimModel(backbone=BACKBONE, layers=LAYERS, pre_trained=False)
        for _ in range(8):
            model(torch.rand(8, 3, SIDE, SIDE))
        model.fit()
    else:
        model = PatchcoreModel(backbone=BACKBONE, layers=LAYERS, pre_trained=False)
        model.memory_bank = torch.rand(BANK, CHANNELS)
    model.eval()
    before = forget_peak()

    def work() -> int:
        with torch.inference_mode():
            model(image)
        return len(image)

    return {"images/s": rate(work), "peak memory, MB": peak() - before}


def dinomaly():
    """Random weights: the encoder's download is the only thing left out."""
    from unittest.mock import patch

    import timm
    from anomalib.models.image.dinomaly.torch_model import DinomalyModel

    create = timm.create_model
    with patch("timm.create_model", lambda *a, **k: create(*a, **{**k, "pretrained": False})):
        return DinomalyModel("vit_small_patch14_reg4_dinov2", target_layers=[2, 3, 4, 5, 6, 7, 8, 9])


def score(work: Path) -> dict[str, float]:
    """Scores of random cells by a random bank, kept for our side to compute again."""
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    generator = torch.Generator().manual_seed(0)
    bank, cells = torch.randn(500, 64, generator=generator), torch.randn(4, 64, 16, 16, generator=generator)
    found = {}
    for neighbours in (1, 9):
        model = PatchcoreModel(backbone=BACKBONE, layers=LAYERS, pre_trained=False, num_neighbors=neighbours).eval()
        model.memory_bank = bank
        with torch.inference_mode():
            flat = model.reshape_embedding(cells)
            distance, place = model.nearest_neighbors(flat, 1)
            distance, place = distance.reshape(4, -1), place.reshape(4, -1)
            found[f"image{neighbours}"] = model.compute_anomaly_score(distance, place, flat).numpy()
    np.savez(work / "scores.npz", bank=bank, cells=cells, distance=distance, **found)
    return {}


ROWS = {
    "data 256": lambda work: data(work, "parts", augmented=False),
    "data 256 augmented": lambda work: data(work, "parts", augmented=True),
    "data 1024": lambda work: data(work, "large", augmented=False),
    "pixel metrics": pixels,
    "fit and test": lambda work: fit(work, pictures=False),
    "fit and test, pictures": lambda work: fit(work, pictures=True),
    "predict": predict,
    "PatchCore": lambda work: forward("patchcore"),
    "PaDiM": lambda work: forward("padim"),
    "EfficientAD": lambda work: forward("efficient_ad"),
    "Dinomaly": lambda work: forward("dinomaly"),
    "score": score,
}

if __name__ == "__main__":
    run(ROWS)
