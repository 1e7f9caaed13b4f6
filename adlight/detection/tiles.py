"""Scores of tiles joined to those of images: the largest score of a tile, and all maps blended."""

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from adlight.data.images import PreparedImage
from adlight.data.roi import stack_contents
from adlight.data.tiling import Canvas, Tiling
from adlight.types import ScoredImages, Scorer


def score_images(
    scorer: Scorer,
    tiling: Tiling | None,
    images: Sequence[PreparedImage],
    size: np.ndarray | None,
    batch_size: int,
    reconstruct: bool,
) -> ScoredImages:
    """Score a batch of images at once, or a single one by its tiles, see `score_by_tiles`; `size` as of `Scorer`."""
    if tiling is not None:
        (image,) = images
        return score_by_tiles(scorer, tiling, image, batch_size, reconstruct)
    return scorer(np.stack([one.pixels for one in images]), size, reconstruct, stack_contents(images))


def score_by_tiles(
    scorer: Scorer, tiling: Tiling, image: PreparedImage, batch_size: int, reconstruct: bool = False
) -> ScoredImages:
    """Score an image by its tiles, so many at a time: what it takes beside the image and its maps is theirs.

    Args:
        scorer: scores tiles.
        tiling: cuts them.
        image: in its own size.
        batch_size: tiles at once.
        reconstruct: whether reconstructions are wanted.

    Returns:
        The largest score of a tile, and the blended maps of the image.
    """
    (height, width), content, best = image.pixels.shape[-2:], image.content, -np.inf
    canvas: Canvas | None = None
    for places in _parts(tiling.places(height, width), batch_size):
        inside = None if content is None else np.stack([tiling.cut(content, place) for place in places])
        if inside is not None:
            places = [place for place, own in zip(places, inside, strict=True) if own.any()]
            inside = inside[inside.any((1, 2))]
        if not places:
            continue
        found = scorer(np.stack([tiling.cut(image.pixels, place) for place in places]), None, reconstruct, inside)
        maps = found.pixel[:, None]  # (B, 1, h, w)
        if found.reconstruction is not None:
            maps = np.concatenate([maps, found.reconstruction], 1)  # (B, 1 + C, h, w)
        canvas = canvas or tiling.canvas(height, width, maps.shape[1])
        for place, own in zip(places, maps, strict=True):
            canvas.add(place, own)
        best = max(best, found.image.max() if found.is_finite.all() else np.nan)
    assert canvas is not None  # some of the image counts
    pixel, *shown = canvas.finish()
    pixel = pixel if content is None else np.where(content, pixel, np.float32(0))
    return ScoredImages(np.array([best]), pixel[None], np.stack(shown)[None] if shown else None)


def _parts(places: Iterator[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    while part := list(islice(places, size)):
        yield part
