"""Predictions for prepared images: scoring tile by tile, and predictions from scores and anomaly maps."""

from collections.abc import Sequence
from itertools import islice

import numpy as np
from PIL import Image

from adlight.data.arrays import bands
from adlight.data.frames import Frame, find_content, scale_box
from adlight.data.images import PreparedImage
from adlight.data.roi import stack_contents
from adlight.data.tiling import Canvas, Tiling
from adlight.detection.regions import bounding_boxes, segment
from adlight.metrics.thresholds import Calibration, Threshold
from adlight.types import Prediction, ScoredImages, Scorer, UserError


def check_calibrated(calibration: Calibration) -> None:
    """Raise a UserError if there are no thresholds; the message says how to get some."""
    if not calibration.is_fitted:
        raise UserError(
            "no thresholds were calibrated for this model with these tiles, region of interest and overrides: adlight "
            "evaluate calibrates them (dataset.tile, dataset.roi), or set threshold and pixel_threshold to numbers"
        )


def score_by_tiles(
    scorer: Scorer, tiling: Tiling, image: PreparedImage, batch_size: int, reconstruct: bool = False
) -> ScoredImages:
    """Score an image in its own size, `batch_size` tiles at a time. -> the largest score, and the blended maps.

    Beyond the image and its maps, memory depends only on `batch_size`.
    """
    (height, width), content, best = image.pixels.shape[-2:], image.content, -np.inf
    corners = tiling.places(height, width)
    if content is not None:
        corners = (corner for corner in corners if tiling.cut(content, corner).any())
    canvas: Canvas | None = None
    while batch := list(islice(corners, batch_size)):
        inside = None if content is None else np.stack([tiling.cut(content, corner) for corner in batch])
        scores = scorer(np.stack([tiling.cut(image.pixels, corner) for corner in batch]), None, reconstruct, inside)
        maps = scores.pixel[:, None]  # (b, 1, h, w)
        if scores.reconstruction is not None:
            maps = np.concatenate([maps, scores.reconstruction], 1)  # (b, 1 + C, h, w)
        canvas = canvas or tiling.canvas(height, width, maps.shape[1])
        for corner, tile_maps in zip(batch, maps, strict=True):
            canvas.add(corner, tile_maps)
        best = np.maximum(best, scores.image.max() if scores.is_finite.all() else np.nan)
    assert canvas is not None  # the region of interest is never empty
    maps = canvas.finish()
    if content is not None:
        for rows in bands((height, width)):
            maps[0, rows][~content[rows]] = 0
    return ScoredImages(np.array([best]), maps[:1], maps[None, 1:] if len(maps) > 1 else None)


def make_predictions(
    images: Sequence[PreparedImage],
    thresholds: Sequence[Threshold],
    scores: ScoredImages,
    size: np.ndarray | None,
    frame: Frame,
    calibration: Calibration,
) -> list[Prediction]:
    """Find the regions of B images, which were fitted into a frame, and make a prediction for each.

    There is a threshold for each image. `size` (B, 2) holds the heights and widths of padded images; `calibration`
    defines what counts as a region, see `segment`.
    """
    content = stack_contents(images)
    content = find_content(size, scores.pixel.shape) if content is None else content  # (B, H, W)
    masks, areas = segment(scores.pixel, scores.image.tolist(), thresholds, content, calibration)
    reconstruction = scores.reconstruction
    predictions = []
    for i, (image, threshold) in enumerate(zip(images, thresholds, strict=True)):
        mask, anomaly_map = (frame.restore(array[i], *image.size) for array in (masks, scores.pixel))
        predictions.append(
            Prediction(
                score=scores.image[i].item(),
                threshold=threshold.image,
                pixel_threshold=threshold.pixel,
                threshold_source=threshold.source,
                area=areas[i],
                boxes=[scale_box(box, mask.shape, image.size) for box in bounding_boxes(mask)],
                mask=scale_mask(mask, image.size),
                anomaly_map=anomaly_map,
                reconstruction=None if reconstruction is None else frame.restore(reconstruction[i], *image.size),
                path=None if image.path is None else str(image.path),
            )
        )
    return predictions


def scale_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale a mask (H, W) bool to an image of `size` (width, height), rounded up so that no region is lost."""
    if mask.shape == size[::-1]:
        return mask
    picture = Image.fromarray(mask)
    if size[0] >= picture.width and size[1] >= picture.height:
        return np.asarray(picture.resize(size, Image.Resampling.NEAREST))
    return np.asarray(picture.convert("F").resize(size, Image.Resampling.BOX)) > 0
