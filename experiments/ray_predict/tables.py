"""Time what one process does at the end, from Parquet parts to the tables: python tables.py out=tables.csv."""

import csv
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from adlight.detection.regions import annotate
from adlight.prediction.batches import Summary
from adlight.runs.predictions import PredictionFolder

PARTS, SIZE, ANOMALOUS = 100, 1024, 0.1  # 102,400 images, a tenth of them with one region


def make_entry(number: int, rng: np.random.Generator) -> dict:
    """Give an entry as `predict` makes it, of an image of 32 x 32 pixels."""
    score, mask = float(rng.random()), np.zeros((32, 32), bool)
    anomalous = score > 1 - ANOMALOUS
    mask[8:16, 8:16] = anomalous
    numbers = {"score": score, "threshold": 1 - ANOMALOUS, "pixel_threshold": 0.5, "area": float(mask.mean())}
    words = {"path": f"images/{number:09}.png", "threshold_source": "pooled", "anomalous": anomalous}
    boxes, regions = [[8, 8, 16, 16]] * anomalous, annotate(mask, mask.astype(np.float32))
    return {**words, **numbers, "boxes": boxes, "width": 32, "height": 32, "regions": regions}


def main() -> None:
    """Write parts, then time in processor seconds."""
    words, rng = dict(word.split("=", 1) for word in sys.argv[1:]), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as place:
        folder, weights = PredictionFolder(place), Path(place) / "weights"
        weights.write_bytes(b"")
        folder.begin(weights, resume=False)
        for number in range(PARTS):
            folder.parts.write(number, [make_entry(number * SIZE + i, rng) for i in range(SIZE)])
        size = sum(path.stat().st_size for path in folder.parts.path.iterdir())
        started = time.process_time()
        Summary(folder.entries())
        folder.finish()
        seconds = time.process_time() - started
        tables = sum(path.stat().st_size for path in Path(place).iterdir() if path.is_file())
    with open(words["out"], "w", newline="") as file:
        csv.writer(file).writerow(
            ("images", "cpu_s", "us_per_image", "parquet_bytes_per_image", "table_bytes_per_image")
        )
        images = PARTS * SIZE
        row = (round(seconds, 2), round(1e6 * seconds / images, 1), round(size / images), round(tables / images))
        csv.writer(file).writerow((images, *row))


if __name__ == "__main__":
    main()
