"""Tiles of a validation or test, joined to whole images before anything is counted."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from adlight.data.frames import content_of
from adlight.data.tiling import Canvas, Tiling
from adlight.types import Batch, Scores, reconstruction_of


class TileJoiner:
    """Joins the tiles of images that come one after the other; without a tiling, images pass as they are.

    Args:
        tiling: cut the tiles; None: there are none.
        reconstruct: join reconstructions too; otherwise those of joined images are the images.
    """

    def __init__(self, tiling: Tiling | None, reconstruct: bool = False) -> None:
        self.tiling, self.reconstruct = tiling, reconstruct
        self.image, self.seen, self.score = -1, 0, -torch.inf
        self.canvas: Canvas | None = None

    def __call__(self, batch: Batch, scores: Scores) -> Iterator[tuple[Batch, Scores]]:
        """Take a batch of tiles. -> each image that is whole now, a batch of its own, with its scores."""
        if self.tiling is None:
            if len(batch["index"]):
                yield batch, scores
            return
        shown = reconstruction_of(scores) if self.reconstruct else batch["image"][:, :0]
        layers = [scores["pixel"][:, None], batch["mask"][:, None], content_of(batch)[:, None], batch["image"], shown]
        maps = torch.cat([one.float() for one in layers], 1).cpu().numpy()  # (B, 3 + C or 3 + 2 C, h, w)
        for row, (image, top, left, height, width, count) in enumerate(batch["tile"].tolist()):
            if image != self.image or self.canvas is None:
                self.image, self.seen, self.score = image, 0, -torch.inf
                self.canvas = self.tiling.canvas(height, width, maps.shape[1])
            self.canvas.add((top, left), maps[row])
            self.seen, self.score = self.seen + 1, max(self.score, scores["image"][row].item())
            if self.seen == count:
                yield self._finish(batch, row, torch.from_numpy(self.canvas.finish()).to(batch["image"].device))
                self.canvas = None

    def _finish(self, batch: Batch, row: int, maps: Tensor) -> tuple[Batch, Scores]:
        channels = batch["image"].shape[1]
        pixel, mask, content = maps[0], maps[1] > 0.5, maps[2] > 0.5
        image, shown = maps[None, 3 : 3 + channels], maps[None, 3 + channels :]
        whole: Any = {name: batch[name][row : row + 1] for name in ("label", "category")}
        index = batch["tile"][row, :1]
        whole |= {"image": image, "mask": mask[None], "index": torch.where(batch["index"][row] < 0, -1 - index, index)}
        whole |= {"content": content[None]} if "content" in batch else {}
        score = torch.tensor([self.score], dtype=torch.float64, device=maps.device)
        scores = Scores(
            image=score, pixel=pixel.where(content, 0)[None], reconstruction=shown if self.reconstruct else image
        )
        return whole, scores


def select_rows(batch: Batch, scores: Scores, rows: Tensor) -> tuple[Batch, Scores]:
    """Take some rows (B,) bool of a batch and its scores, without reconstructions."""
    mine: Any = batch
    chosen: Any = {name: value[rows] for name, value in mine.items()}
    return chosen, Scores(image=scores["image"][rows], pixel=scores["pixel"][rows], reconstruction=chosen["image"])


def empty(batch: Batch) -> tuple[Batch, Scores]:
    """Give a batch of no image, where none is whole yet."""
    mine: Any = batch
    nothing: Any = {name: value[:0] for name, value in mine.items()}
    image = nothing["image"]
    return nothing, Scores(image=image[:, 0, 0, 0], pixel=image[:, 0], reconstruction=image)


def replace_batch(batch: Batch, other: Batch) -> None:
    """Let a batch be another one, for all who hold it."""
    mine, content = batch, dict(other)
    mine.clear()  # type: ignore[attr-defined]
    mine.update(content)  # type: ignore[typeddict-item]
