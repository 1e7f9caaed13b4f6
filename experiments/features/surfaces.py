"""Generate grey surfaces of many shapes with defects, to try detectors on other images than MVTec AD's.

    python experiments/features/surfaces.py data/surfaces

writes two categories in MVTec AD's layout. Strips of 230 x 630 pixels have machining lines; tiles of 105 to 500 by 250
to 400 pixels have uneven light, grain and grinding marks. Defects are cracks, scratches, spots, and frayed, broken or
uneven regions, some of them faint.
"""

import sys
from pathlib import Path

import numpy as np
from numpy import ndarray as Array
from numpy.random import Generator
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.special import expit

DEFECTS = ("crack", "scratch", "spot", "fray", "break", "uneven")
COUNTS = {"train/good": 240, "test/good": 60} | {f"test/{defect}": 13 for defect in DEFECTS}


def main(root: Path) -> None:
    """Write both categories to `root`."""
    for category, draw_surface in (("strip", draw_strip), ("tile", draw_tile)):
        for split, count in COUNTS.items():
            for index in range(count):
                rng = np.random.default_rng([*f"{category}/{split}/{index}".encode()])
                surface = draw_surface(rng)
                mask = np.zeros(surface.shape, bool)
                if not split.endswith("good"):
                    surface, mask = add_defect(surface, split.removeprefix("test/"), rng)
                grain = 0.012 * rng.standard_normal(surface.shape)
                save(root / category / split / f"{index:03d}.png", surface + grain)
                if mask.any():
                    folder = root / category / split.replace("test", "ground_truth")
                    save(folder / f"{index:03d}_mask.png", mask.astype(float))


def draw_strip(rng: Generator) -> Array:
    """Draw a vertical strip with horizontal machining lines. -> (630, 230) in [0, 1]."""
    height, width = 630, 230
    lines = gaussian_filter(rng.standard_normal((height, 1)), (1.2, 0)) * rng.uniform(0.04, 0.08)
    wobble = gaussian_filter(rng.standard_normal((height, width)), (1.0, 25)) * 0.25
    return rng.uniform(0.4, 0.55) + draw_light((height, width), 0.10, rng) + lines + wobble


def draw_tile(rng: Generator) -> Array:
    """Draw a tile with uneven light, blotches and grinding marks. -> (105...500, 250...400) in [0, 1]."""
    shape = int(rng.integers(105, 501)), int(rng.integers(250, 401))
    marks = gaussian_filter(rng.standard_normal(shape), (rng.uniform(0.5, 0.8), rng.uniform(6, 18))) * 0.12
    blotches = gaussian_filter(rng.standard_normal(shape), 5) * rng.uniform(0.2, 0.5)
    return rng.uniform(0.3, 0.5) + draw_light(shape, 0.15, rng) + marks + blotches


def draw_light(shape: tuple[int, int], strength: float, rng: Generator) -> Array:
    """Draw light that falls off in a random direction, and smooth shadows. -> (H, W)."""
    y, x = (np.linspace(-1, 1, side) for side in shape)
    slope = rng.uniform(-1, 1) * y[:, None] + rng.uniform(-1, 1) * x
    shadow = gaussian_filter(rng.standard_normal(shape), 40)
    return strength * (slope + shadow / shadow.std() * 0.4)


def add_defect(surface: Array, defect: str, rng: Generator) -> tuple[Array, Array]:
    """Add a defect of random strength. (H, W) -> (H, W), mask (H, W) bool."""
    depth = rng.uniform(0.05, 0.25)  # of grey values in [0, 1]; the weakest are hard to see
    if defect in ("crack", "scratch"):
        soft = draw_line(surface.shape, rng, waviness=0.35 if defect == "crack" else 0.02)
        change = (-depth if defect == "crack" else depth) * soft
    elif defect == "spot":
        soft = sum(draw_blob(surface.shape, rng, rng.uniform(2, 6)) for _ in range(rng.integers(1, 4)))
        change = -2 * depth * soft.clip(0, 1)
    elif defect == "uneven":
        soft = draw_blob(surface.shape, rng, rng.uniform(30, 70))
        change = rng.choice([-1, 1]) * depth * soft
    else:
        soft = draw_blob(surface.shape, rng, rng.uniform(12, 35), roughness=0.6)
        texture = gaussian_filter(rng.standard_normal(surface.shape), 1.5 if defect == "fray" else 4)
        change = soft * depth * (texture / texture.std() - (defect == "break") * 1.5)
    return surface + change, soft > 0.3


def draw_line(shape: tuple[int, int], rng: Generator, waviness: float) -> Array:
    """Draw a soft line of random place, direction, length and width; `waviness` in radians per step. -> (H, W)."""
    canvas = np.zeros(shape)
    steps = int(rng.uniform(0.15, 0.6) * min(shape)) * 2
    turns = rng.uniform(0, 2 * np.pi) + np.cumsum(waviness * rng.standard_normal(steps))
    start = rng.uniform(0.2, 0.8, 2) * shape
    path = start + 0.5 * np.cumsum(np.stack([np.sin(turns), np.cos(turns)], 1), 0)
    path = path[((path >= 0) & (path < np.array(shape) - 1)).all(1)].astype(int)
    canvas[path[:, 0], path[:, 1]] = 1
    soft = gaussian_filter(canvas, rng.uniform(0.6, 1.4))
    return soft / max(soft.max(), 1e-9)


def draw_blob(shape: tuple[int, int], rng: Generator, radius: float, roughness: float = 0.2) -> Array:
    """Draw a soft, irregular ellipse. -> (H, W) in [0, 1]."""
    y, x = (np.arange(side) - rng.uniform(0.15, 0.85) * side for side in shape)
    stretch = rng.uniform(0.6, 1.6)
    distance = np.hypot(y[:, None] * stretch, x / stretch) / radius
    noise = gaussian_filter(rng.standard_normal(shape), max(1, radius / 4))
    return expit(6 * (1 - distance - roughness * noise / noise.std()))


def save(path: Path, image: Array) -> None:
    """Write an image in [0, 1] as a grey PNG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((image.clip(0, 1) * 255).round().astype(np.uint8)).save(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
