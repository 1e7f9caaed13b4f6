"""Features of a split's images, computed once and used by every epoch, run and job of a sweep that sees the same."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from rich.progress import track
from torch import Tensor

from adlight.data.pseudo_dataset import Images
from adlight.features.backbones import Backbone
from adlight.features.predictor import extract_features
from adlight.types import UserError

BATCH = 16


class FeatureCache:
    """Computes features of data sets, 16 bits a value, and keeps them in memory-mapped files.

    A file's name is a hash of the images' own bytes and of the backbone's fingerprint: whatever changes an image (size,
    crop, seed of pasted defects) or a feature (weights, layers, grid) leads to another file.

    Args:
        backbone: makes the features.
        folder: where the files lie; None: nothing is written, features are kept in memory.
    """

    def __init__(self, backbone: Backbone, folder: str | Path | None = None) -> None:
        self.backbone, self.folder = backbone, None if folder is None else Path(folder).expanduser()

    def __call__(self, images: Images, device: torch.device) -> Tensor:
        """Load or compute the features of all images, in their order. -> (N, h, w, C) float16 on the CPU.

        With a folder the processes of a distributed run share the work, without one each does all of it.

        Raises:
            UserError: the folder cannot be written to, or the disk is full.
        """
        if self.folder is None:
            return self._compute(images, range(len(images)), device, None)
        path = self.folder / f"{self._key(images)}.npy"
        if not _from_first_process(path.is_file()):
            try:
                self._write(images, path, device)
            except OSError as error:
                raise UserError(
                    f"features cannot be kept in {self.folder} ({error}): name another folder as cache, or null"
                ) from error
        return torch.from_numpy(np.load(path, mmap_mode="c"))  # copy-on-write, and nothing is written to it

    def _key(self, images: Images) -> str:
        found = hashlib.blake2b(self.backbone.fingerprint.encode(), digest_size=12)
        for start in range(0, len(images), BATCH):
            batch = images.__getitems__(range(start, min(start + BATCH, len(images))))
            image, padded = batch["image"], batch["size"].tolist() if "size" in batch else ""
            if "content" in batch:
                found.update(batch["content"].contiguous().numpy().tobytes())
            found.update(f"{tuple(image.shape)}{padded}".encode() + image.contiguous().numpy().tobytes())
        return found.hexdigest()

    def _write(self, images: Images, path: Path, device: torch.device) -> None:
        """Fill a file beside the final one, every process its own rows, and rename it when it is whole."""
        rank, world = _place()
        part = _from_first_process(path.with_suffix(f".{os.getpid()}.part"))
        rows, barrier = range(rank, len(images), world), dist.barrier if world > 1 else lambda: None
        shape = (len(images), *self._features(images, [0], device).shape[1:])
        if rank == 0:
            part.parent.mkdir(parents=True, exist_ok=True)
            np.lib.format.open_memmap(part, "w+", np.float16, shape)
            with part.open("r+b") as file:  # a full disk would end the process while the map is written to
                os.posix_fallocate(file.fileno(), 0, part.stat().st_size)
        barrier()
        self._compute(images, rows, device, np.load(part, mmap_mode="r+"))
        barrier()
        if rank == 0:
            os.replace(part, path)
        barrier()

    def _compute(self, images: Images, rows: range, device: torch.device, out: Any) -> Tensor:
        parts = []
        starts = range(0, len(rows), BATCH)
        for start in track(starts, description="computing features", transient=True, disable=len(rows) < 100):
            chosen = rows[start : start + BATCH]
            features = self._features(images, chosen, device)
            if out is None:
                parts.append(features)
            else:
                out[chosen.start : chosen.stop : chosen.step] = features.numpy()
        return torch.cat(parts) if parts else torch.empty(0)

    def _features(self, images: Images, rows: Sequence[int], device: torch.device) -> Tensor:
        batch: Any = {name: value.to(device) for name, value in images.__getitems__(rows).items()}  # type: ignore[attr-defined]
        batch["image"] = batch["image"].float().div_(255)
        return extract_features(self.backbone, batch).half().cpu()


def _place() -> tuple[int, int]:
    ready = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if ready else (0, 1)


def _from_first_process(value: Any) -> Any:
    """Give all processes what the first one holds."""
    if _place()[1] > 1:
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]
    return value
