"""Score images one by one by a frozen detector, whole or in tiles.

Letters: n tiles of an image (1 if it is not tiled), C channels, H x W pixels, h x w cells, D features of a cell.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adlight.data.datamodule import AnomalyDataModule
from adlight.data.source import Source
from adlight.data.splits import Split, SplitLoader
from adlight.detection.crossfitting import fetch, image_numbers_of
from adlight.detection.inference import autocast_dtype, inference
from adlight.detection.module import AnomalyModule
from adlight.learning.cells import Cells, extract_cells
from adlight.types import Batch, Record, Scores

BATCH = 16  # images or tiles at once


class ScoredImage(NamedTuple):
    """An image scored by a frozen detector, on the CPU; scores and maps of tiles are not joined."""

    record: Record
    batch: Batch  # of n tiles
    scores: Scores  # `image` (n,) and `pixel` (n, H, W)
    cells: Cells  # (n, h, w), (n, h, w, D)


def score_images(
    module: AnomalyModule, records: Sequence[Record], source: Source, data: AnomalyDataModule, precision: str
) -> Iterator[ScoredImage]:
    """Score images that `source` reads by a frozen detector, with the frame, tiles and region of interest of `data`."""
    settings = data.frame, data.channels, data.tiling, data.roi
    categories = sorted({record.category for record in records})
    loader = SplitLoader(*settings, cache="auto", cache_gb=0, cache_dir=None, skip=False)
    images = loader.load(source, records, categories)
    owner = image_numbers_of(images)  # (N,)
    module.eval()
    for numbers in owner.unique().split(1 if data.tiling else BATCH):
        index = torch.isin(owner, numbers).nonzero()[:, 0]  # the images, or the tiles of one image
        parts = [_score(module, images, part, precision) for part in index.split(BATCH)]
        values = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        for number in numbers.tolist():
            rows = owner[index] == number
            yield _to_scored_image(records[number], {name: value[rows] for name, value in values.items()})


def _score(module: AnomalyModule, images: Split, index: Tensor, precision: str) -> dict[str, Tensor]:
    with inference(module.device, autocast_dtype(precision)):
        batch = fetch(images, index, module.device)
        scores = module.score(batch)
        cells = extract_cells(batch, scores)
    maps = {"score": scores["image"], "pixel": scores["pixel"].float()}
    values: Any = {**batch, **maps, "cells": cells.score, "features": cells.features}
    return {name: value.cpu() for name, value in values.items()}


def _to_scored_image(record: Record, values: dict[str, Any]) -> ScoredImage:
    cells = Cells(values.pop("cells"), values.pop("features"))
    image, pixel = values.pop("score"), values.pop("pixel")
    batch: Any = values
    return ScoredImage(record, batch, Scores(image=image, pixel=pixel, reconstruction=values["image"]), cells)
