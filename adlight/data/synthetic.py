"""A procedural data set in the MVTec AD layout: two textures, two objects, five kinds of defect, exact masks.

An image is drawn at twice its size from distances and smooth noise, lit, averaged down and made noisy.
A defective image is drawn twice from the same random stream, with and without its defect; the mask is where
the two differ by more than `TOLERANCE` grey levels; elsewhere the image is its defect-free twin, bit by bit.
"""

import hashlib
import json
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from adlight.data.drawing import frame
from adlight.data.scenes import MARKS, SCENES
from adlight.types import UserError

KINDS = ("scratch", "blob", "missing", "colour", "misplaced")
MARKER = "synthetic.json"
VERSION = 1  # of the pictures: raise it whenever the same parameters give other pixels
TOLERANCE = 4  # grey levels, of 255, that do not count as a change
OVERSAMPLING = 2
SMALLEST = 32  # pixels a side; below, threads and pads are thinner than a pixel


def generate(root: Path, *, seed: int, size: int, train: int, test: int, categories: Sequence[str]) -> Path:
    """Write the data set to `root` unless it is there already, and return `root`.

    An image depends on (seed, category, split, index) and `size` alone. The set is written beside `root` and
    renamed when complete, so an interrupted call leaves no half set.

    Args:
        root: folder of the set; must not exist, be empty, or hold a set of the same parameters.
        seed: of every image.
        size: pixels a side, at least 32.
        train: normal training images of a category.
        test: test images of a category; two in seven are good, the others are spread evenly over the kinds.
        categories: which of `SCENES` to draw.

    Raises:
        UserError: an argument is out of range, or `root` holds something else.
    """
    unknown = sorted(set(categories) - set(SCENES))
    if unknown or not categories:
        raise UserError(f"no synthetic category {unknown}: dataset.category is one or more of {sorted(SCENES)}")
    if size < SMALLEST or train < 1 or test < 2:
        raise UserError(
            f"synthetic set too small: size {size} (at least {SMALLEST}), train {train} (1), test {test} (2)"
        )
    asked = {"seed": seed, "size": size, "train": train, "test": test, "categories": sorted(set(categories))}
    asked["version"] = VERSION
    if is_complete(root, asked):
        return root
    part = root.with_name(f".{root.name}-{uuid.uuid4().hex[:8]}")
    try:
        for category in sorted(set(categories)):
            write_category(part / category, seed, size, train, test)
        (part / MARKER).write_text(json.dumps(asked, indent=1) + "\n")
        if not is_complete(root, asked):  # another process may have been faster
            part.rename(root)
    except OSError as error:
        if not is_complete(root, asked):
            raise UserError(f"cannot write the synthetic set to {root}: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return root


def is_complete(root: Path, asked: dict[str, object]) -> bool:
    """Whether `root` holds the set that is asked for; False where there is nothing.

    Raises:
        UserError: it holds something else.
    """
    remedy = "choose another dataset.root or remove that folder"
    if not (root / MARKER).exists():
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise UserError(f"{root} is there, but is no synthetic set (it has no {MARKER}): {remedy}")
        return False
    found = json.loads((root / MARKER).read_text())
    other = [key for key in asked if found.get(key) != asked[key]]
    if other:
        differences = ", ".join(f"{key} {found.get(key)} instead of {asked[key]}" for key in other)
        raise UserError(f"{root} holds a synthetic set with {differences}: {remedy}")
    return True


def write_category(folder: Path, seed: int, size: int, train: int, test: int) -> None:
    """Write one category, named as its folder: `train/good`, `test/<kind>`, `ground_truth/<kind>`."""
    good = max(1, round(test * 2 / 7))
    counts = {"train/good": train, "test/good": good}
    counts |= {f"test/{kind}": len(range(place, test - good, len(KINDS))) for place, kind in enumerate(KINDS)}
    for split, count in counts.items():
        kind = split.split("/")[1]
        for index in range(count):
            image, mask = draw(folder.name, split, index, seed, size)
            save(image, folder / split / f"{index:03d}.png")
            if kind != "good":
                save(mask.astype(np.uint8) * 255, folder / "ground_truth" / kind / f"{index:03d}_mask.png")


def save(array: np.ndarray, path: Path) -> None:
    """Write a (H, W, 3) or (H, W) uint8 image as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def draw(category: str, split: str, index: int, seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one image and its exact mask: (size, size, 3) uint8 and (size, size) bool.

    A defect that came out invisible, or that fills the image, is drawn again.
    """
    key, kind = f"{seed}/{category}/{split}/{index}", split.split("/")[1]
    clean = picture(category, size, key)
    if kind == "good":
        return clean, np.zeros((size, size), bool)
    for attempt in range(100):
        image = picture(category, size, key, kind, attempt)
        change = np.abs(image.astype(int) - clean).max(axis=2)
        mask = without_specks(change > TOLERANCE)
        if max(8, 0.002 * size**2) <= mask.sum() <= 0.35 * size**2 and change[mask].mean() > 3 * TOLERANCE:
            return np.where(mask[..., None], image, clean), mask
    raise AssertionError(f"no visible {kind} on {category} in 100 attempts at size {size}")


def without_specks(mask: np.ndarray, smallest: int = 4) -> np.ndarray:
    """Drop the regions (8-connected) of fewer than `smallest` pixels: (H, W) bool."""
    regions, _ = ndimage.label(mask, np.ones((3, 3)))
    return mask & (np.bincount(regions.ravel()) >= smallest)[regions]


def picture(category: str, size: int, key: str, kind: str = "good", attempt: int = 0) -> np.ndarray:
    """Draw a key's image, with a defect or (kind `good`) as its defect-free twin: (size, size, 3) uint8."""
    look, flaw = stream(key), stream(f"{key}/{attempt}")
    n = size * OVERSAMPLING
    colour, surface = SCENES[category](n, look, flaw, kind)
    if kind in MARKS:
        colour = MARKS[kind](colour, surface, flaw)
    x, y = frame(n, look, 180, 0)  # uneven light, falling off in some direction
    colour = colour * (look.uniform(0.95, 1.05) + look.uniform(0, 0.07) * x + 0.02 * x * y)[..., None]
    colour = colour.reshape(size, OVERSAMPLING, size, OVERSAMPLING, 3).mean(axis=(1, 3))
    noise = look.standard_normal(colour.shape, dtype=np.float32)  # the sensor's
    return ((colour + look.uniform(0.006, 0.011) * noise).clip(0, 1) * 255).round().astype(np.uint8)


def stream(key: str) -> np.random.Generator:
    """Start the random stream of a key; any two keys have unrelated ones."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode()).digest()[:16]))
