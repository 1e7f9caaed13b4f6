"""Images scored one by one by a frozen detector, whole or by their tiles.

Letters: n tiles of an image (1 if it is not tiled), C channels, H x W pixels, h x w cells, D features of a cell.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adlight.data.datamodule import AnomalyDataModule
from adlight.data.source import Source
from adlight.data.splits import Split, SplitLoader, batch_tiles
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
    """Score images by a frozen detector.

    Args:
        module: Detector with its weights.
        records: Images to score.
        source: Reads the images.
        data: Data module whose frame, tiles and region of interest are used.
        precision: Precision of the trainer.

    Raises:
        UserError: An image cannot be read.
    """
    settings = data.frame, data.channels, data.tiling, data.roi
    categories = sorted({record.category for record in records})
    loader = SplitLoader(*settings, cache="auto", cache_gb=0, cache_dir=None, skip=False)
    images = loader.load(source, records, categories)
    owner = image_numbers_of(images)  # (N,)
    batches: Any = batch_tiles(owner, BATCH) if data.tiling else torch.arange(len(owner)).split(BATCH)
    module.eval()
    parts = list[dict[str, Tensor]]()
    for index in map(torch.as_tensor, batches):
        parts.append(_score(module, images, index, precision))
        last = int(index[-1])
        if last + 1 < len(owner) and owner[last + 1] == owner[last]:  # an image with further tiles
            continue
        values = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        numbers, counts = owner[values["index"]].unique_consecutive(return_counts=True)
        rows = zip(*(value.split(counts.tolist()) for value in values.values()), strict=True)
        for number, row in zip(numbers.tolist(), rows, strict=True):
            yield _to_scored_image(records[number], dict(zip(values, row, strict=True)))
        parts.clear()


def _score(module: AnomalyModule, images: Split, index: Tensor, precision: str) -> dict[str, Tensor]:
    with inference(module.device, autocast_dtype(precision)):
        batch = fetch(images, index, module.device)
        scores = module.score(batch)
        cells = extract_cells(batch, scores)
    maps = {
        "score": scores["image"],
        "pixel": scores["pixel"].float(),
        "cells": cells.score,
        "features": cells.features,
    }
    values: Any = {**batch, **maps}
    return {name: value.cpu() for name, value in values.items()}


def _to_scored_image(record: Record, values: dict[str, Any]) -> ScoredImage:
    cells = Cells(values.pop("cells"), values.pop("features"))
    image, pixel = values.pop("score"), values.pop("pixel")
    batch: Any = values
    return ScoredImage(record, batch, Scores(image=image, pixel=pixel, reconstruction=values["image"]), cells)
