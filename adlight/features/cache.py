"""Features of images, computed once and reused by every epoch, run and job of a sweep that sees the same images."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from adlight.data.arrays import reserve
from adlight.data.datamodule import AnomalyDataModule
from adlight.data.pseudo_dataset import Images
from adlight.detection.crossfitting import fetch
from adlight.features.backbones import Backbone
from adlight.features.cells import extract_features
from adlight.progress import track
from adlight.types import UserError

BATCH = 16
PROGRESS_FROM = 7  # batches
STAGES = {"train": "fit", "val": "validate", "test": "test"}


class FeatureCache:
    """Computes the features of data sets in 16 bits, and keeps them in memory-mapped files.

    A file is named by a hash of the images' pixels and the backbone's fingerprint, so that any change of an image
    (size, crop, seed of synthetic anomalies) or of the features (weights, layers, grid) leads to another file. Without
    a folder, features are kept in memory only.
    """

    def __init__(self, backbone: Backbone, folder: str | Path | None = None) -> None:
        self.backbone, self.folder = backbone, None if folder is None else Path(folder).expanduser()
        self.splits: dict[str, tuple[AnomalyDataModule, Tensor]] = {}

    def features_of(self, data: AnomalyDataModule, split: str, device: torch.device) -> Tensor:
        """Return a split's features in the order of `Batch["index"]`. -> (N, h, w, C) float16 on the CPU."""
        if split not in self.splits or self.splits[split][0] is not data:
            self.splits[split] = data, self(images_of(data, split), device)
        return self.splits[split][1]

    def forget(self, *splits: str) -> None:
        """Release the memory of splits; their features are loaded or recomputed on demand."""
        for split in splits:
            self.splits.pop(split, None)

    def __call__(self, images: Images, device: torch.device) -> Tensor:
        """Load or compute the features of all images, in order. -> (N, h, w, C) float16 on the CPU.

        With a folder, the processes of a distributed run share the work; without, each computes all features.

        Raises:
            UserError: the folder cannot be written to, the disk is full, or the file is damaged.
        """
        if self.folder is None:
            return self._compute(images, range(len(images)), device, None)
        path = self.folder / f"{self._key(images)}.npy"
        if not _from_first_process(path.is_file()):
            try:
                self._write(images, path, device)
            except OSError as error:
                raise UserError(
                    f"features cannot be written to {self.folder} ({error.strerror}): set model.cache=<folder> or "
                    "ADLIGHT_CACHE to a folder with enough space, or set model.cache=null"
                ) from error
        try:
            features = np.load(path, mmap_mode="c")  # copy-on-write, as torch warns of read-only arrays
        except (ValueError, EOFError) as error:  # too short, or not such a file
            raise UserError(f"the features in {path} are damaged: remove the file to compute them again") from error
        return torch.from_numpy(features)

    def _key(self, images: Images) -> str:
        key = hashlib.blake2b(self.backbone.fingerprint.encode(), digest_size=12)
        for start in range(0, len(images), BATCH):
            batch = images.__getitems__(range(start, min(start + BATCH, len(images))))
            image, padded = batch["image"], batch["size"].tolist() if "size" in batch else ""
            if "content" in batch:
                key.update(batch["content"].contiguous().numpy().tobytes())
            key.update(f"{tuple(image.shape)}{padded}".encode() + image.contiguous().numpy().tobytes())
        return key.hexdigest()

    def _write(self, images: Images, path: Path, device: torch.device) -> None:
        """Write a temporary file, each process its own rows, and rename it when it is complete."""
        rank, world = _rank_and_world()
        part = _from_first_process(path.with_suffix(f".{os.getpid()}.part"))
        rows, barrier = range(rank, len(images), world), dist.barrier if world > 1 else lambda: None
        shape = (len(images), *self._features(images, [0], device).shape[1:])
        if rank == 0:
            part.parent.mkdir(parents=True, exist_ok=True)
        try:
            if rank == 0:
                np.lib.format.open_memmap(part, "w+", np.float16, shape)
                with part.open("r+b") as file:
                    reserve(file, part.stat().st_size)
            barrier()
            features: np.memmap = np.load(part, mmap_mode="r+")
            self._compute(images, rows, device, features)
            features.flush()  # otherwise a power failure could leave zeros under the final name
            barrier()
            if rank == 0:
                os.replace(part, path)
            barrier()
        finally:
            if rank == 0:
                part.unlink(missing_ok=True)

    def _compute(self, images: Images, rows: range, device: torch.device, out: np.ndarray | None) -> Tensor:
        starts = range(0, len(rows), BATCH)
        for start in track(starts, "computing features", len(starts), PROGRESS_FROM):
            selected = rows[start : start + BATCH]
            features = self._features(images, selected, device)
            if out is None:
                out = np.empty((len(rows), *features.shape[1:]), np.float16)
            out[selected.start : selected.stop : selected.step] = features.numpy()
        return torch.empty(0) if out is None else torch.from_numpy(out)

    def _features(self, images: Images, rows: Sequence[int], device: torch.device) -> Tensor:
        return extract_features(self.backbone, fetch(images, torch.as_tensor(rows), device)).half().cpu()


def images_of(data: AnomalyDataModule, split: str) -> Images:
    """Return a split's images without augmentation: `train`, `val` (with synthetic anomalies) or `test`."""
    with torch.inference_mode(False):  # even if a validation calls first: loader threads write to these tensors
        data.setup(STAGES[split])  # does nothing the second time
    loader: Any = getattr(data, f"{split}_dataloader")()
    return loader.dataset


def _rank_and_world() -> tuple[int, int]:
    ready = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if ready else (0, 1)


def _from_first_process(value: Any) -> Any:
    """Return the first process's value on all processes."""
    if _rank_and_world()[1] > 1:
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]
    return value
