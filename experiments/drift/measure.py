"""Does the report notice that a camera drifts? `python experiments/drift/measure.py <run> <images> <out> light|focus`

Ten days of predictions of a finished run: each day 30 images, drawn with replacement from normal ones that the run has
not seen; from the sixth day on they are darker by 1, 2, 5, 10 and 20 %, or blurred by 0.25, 0.5, 1, 1.5 and 2 pixels
(sigma). Prints the report's table of days, and adds it to `measured.csv`.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageFilter

from adlight.reports.drift import compare_days, read_history
from adlight.runs.tables import read_calibration

CHANGES = {"light": (0, 0, 0, 0, 0, 1, 2, 5, 10, 20), "focus": (0, 0, 0, 0, 0, 0.25, 0.5, 1, 1.5, 2)}  # day by day
IMAGES = 30
MEASURED = Path(__file__).with_name("measured.csv")


def change_image(image: Image.Image, change: str, amount: float) -> Image.Image:
    """Darken an image by per cent, or blur it by pixels."""
    if change == "focus":
        return image.filter(ImageFilter.GaussianBlur(amount))
    return image.point(lambda value: round(value * (1 - amount / 100)))


def main(run: Path, normal: Path, out: Path, change: str) -> None:
    rng, sources = np.random.default_rng(0), np.array(sorted(normal.glob("*.png")), dtype=object)
    for day, amount in enumerate(CHANGES[change], 1):
        images, target = out / f"day-{day:02}", run / "predictions" / f"202601{day:02}-000000"
        images.mkdir(parents=True, exist_ok=True)
        for number, source in enumerate(rng.choice(sources, IMAGES)):
            change_image(Image.open(source).convert("RGB"), change, amount).save(images / f"{number:02}.png")
        words = [f"run={run}", f"images={images}", "save=none", "device=cpu", f"hydra.run.dir={target}"]
        subprocess.run([sys.executable, "-m", "adlight.predict", *words], check=True, stdout=subprocess.DEVNULL)
    table = compare_days(read_history(run), read_calibration(run)).assign(change=change, amount=CHANGES[change])
    print(table.to_string(index=False))
    known = [pd.read_csv(MEASURED)] if MEASURED.is_file() else []
    pd.concat([*known, table]).to_csv(MEASURED, index=False, float_format="%.3g")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), sys.argv[4])
