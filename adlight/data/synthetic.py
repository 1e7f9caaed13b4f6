"""A procedural data set in MVTec AD's layout: two textures, two objects, five kinds of defects, exact masks.

Scenes are drawn from signed distances (negative inside) and smooth noise over z = x + iy in [-1, 1]^2, y downwards.
A defective image is drawn twice from the same random stream, with and without its defect. The mask marks the pixels
that differ by more than `TOLERANCE` grey levels; all other pixels equal the defect-free twin's exactly.
"""

import json
import tempfile
from itertools import product
from pathlib import Path

import numpy as np
from numpy import ndarray as Array
from numpy.random import Generator
from PIL import Image

MARKS = ("scratch", "blob", "colour")
KINDS = (*MARKS, "missing", "misplaced")
MARKER = "synthetic.json"
VERSION = 2  # to be increased whenever the same parameters produce other pixels
TOLERANCE = 4  # in grey levels of 255; larger changes belong to a defect


def generate(root: Path, *, seed: int, size: int, train: int, test: int) -> None:
    """Write the data set to `root`, which appears only once it is complete; two in seven test images are normal.

    Raises:
        OSError: `root` cannot be written, or is not empty.
    """
    good = max(1, round(test * 2 / 7))
    counts = {"train/good": train, "test/good": good}
    counts |= {f"test/{kind}": len(range(i, test - good, len(KINDS))) for i, kind in enumerate(KINDS)}
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as staging:
        part = Path(staging) / root.name
        for category, (split, count) in product(SCENES, counts.items()):
            folder, truth = part / category / split, part / category / split.replace("test", "ground_truth")
            for index in range(count):
                image, mask = draw(category, split, index, seed, size)
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(folder / f"{index:03d}.png")
                if mask.any():
                    truth.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(mask.astype(np.uint8) * 255).save(truth / f"{index:03d}_mask.png")
        marker = {"version": VERSION, "seed": seed, "size": size, "train": train, "test": test}
        (part / MARKER).write_text(json.dumps(marker) + "\n")
        part.rename(root)


def draw(category: str, split: str, index: int, seed: int, size: int) -> tuple[Array, Array]:
    """Draw an image (size, size, 3) uint8 and its exact mask (size, size) bool; unclear defects are redrawn."""
    key, kind = f"{seed}/{category}/{split}/{index}", split.split("/")[1]
    clean = render(category, size, key)
    if kind == "good":
        return clean, np.zeros((size, size), bool)
    for attempt in range(100):
        image = render(category, size, key, kind, attempt)
        change = np.abs(image.astype(int) - clean).max(axis=2)
        mask = change > TOLERANCE
        if max(8, 0.002 * size**2) <= mask.sum() <= 0.35 * size**2 and change[mask].mean() > 3 * TOLERANCE:
            return np.where(mask[..., None], image, clean), mask
    raise AssertionError(f"no visible {kind} on {category} in 100 attempts at size {size}")


def render(category: str, size: int, key: str, kind: str = "good", attempt: int = 0) -> Array:
    """Render an image with a defect or, for kind `good`, its defect-free twin. -> (size, size, 3) uint8."""
    rng_scene, rng_defect = (np.random.default_rng([*name.encode()]) for name in (key, f"{key}/{attempt}"))
    colour, surface = SCENES[category](_pose(size, rng_scene, 3, 0.03), rng_scene, rng_defect, kind)
    if kind in MARKS:
        colour = _mark(colour, surface, rng_defect, kind)
    slope = _pose(size, rng_scene, 180, 0).real  # the light falls off in a random direction
    colour = colour * (rng_scene.uniform(0.95, 1.05) + rng_scene.uniform(0, 0.07) * slope)[..., None]
    sensor = rng_scene.uniform(0.006, 0.011) * rng_scene.standard_normal(colour.shape, dtype=np.float32)
    return ((colour + sensor).clip(0, 1) * 255).round().astype(np.uint8)


def _pose(size: int, rng: Generator, degrees: float, shift: float) -> Array:
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    z = axis - rng.uniform(-shift, shift) + 1j * (axis[:, None] - rng.uniform(-shift, shift))
    return (z * np.exp(1j * np.radians(rng.uniform(-degrees, degrees)))).astype(np.complex64)


def _noise(rng: Generator, size: int, rows: int, columns: int) -> Array:
    coarse = rng.standard_normal((rows, columns), dtype=np.float32)
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))


def _box(z: Array, width: float, height: float) -> Array:
    return np.maximum(np.abs(z.real) - width / 2, np.abs(z.imag) - height / 2)


def _paint(colour: Array, tone: Array | tuple, distance: Array, soft: float = 0, opacity: float | Array = 1) -> Array:
    alpha = opacity * np.clip(0.5 - distance / max(soft, 2 / len(distance)), 0, 1)  # edges are at least a pixel wide
    return colour + alpha[..., None].astype(np.float32) * (np.asarray(tone, np.float32) - colour)


def _lay(colour: Array, distance: Array, tone: Array | tuple) -> Array:
    """Draw a body with a bevel and a shadow over an image, lit from the upper left."""
    step = max(1, len(distance) // 50)
    colour = _paint(colour, 0.5 * colour, np.roll(distance, (step, step), (0, 1)), 8 * step / len(distance))
    down, right = np.gradient(distance, 2 / len(distance))
    bevel = -(down + right) * np.exp(-((distance / 0.03 + 0.7) ** 2))
    return _paint(colour, tone + 0.15 * bevel[..., None], distance)


def _shift_strip(z: Array, rng: Generator, move: float) -> Array:
    local = (z - complex(*rng.uniform(-0.5, 0.5, 2))) * np.exp(1j * rng.uniform(-0.6, 0.6))
    strip = _box(local, rng.uniform(0.22, 0.45), rng.uniform(0.6, 1.6)) < 0
    return (z + move * (0.8 + 0.6j) * strip).astype(z.dtype)  # elsewhere z is unchanged


def _fabric(z: Array, rng_scene: Generator, rng_defect: Generator, kind: str) -> tuple[Array, Array]:
    """Draw a plain weave of 15 x 15 threads; a piece of a thread is missing, or a strip is misplaced."""
    z = _shift_strip(z, rng_defect, rng_defect.uniform(0.03, 0.09)) if kind == "misplaced" else z
    u, v = (7.5 * x + rng_scene.uniform(0, 64) + 0.1 * _noise(rng_scene, len(z), 4, 4) for x in (z.real, z.imag))
    i, j = np.floor(u).astype(int), np.floor(v).astype(int)
    a, b, over = np.cos(np.pi * (u - i - 0.5)), np.cos(np.pi * (v - j - 0.5)), 0.38 - 0.76 * ((i + j) % 2)
    warp, weft = a * (0.62 + over * b), b * (0.62 - over * a)
    if kind == "missing":
        at = tuple(rng_defect.integers(len(z) // 6, len(z) - len(z) // 6, 2))
        weft = weft * ~((j == j[at]) & (np.abs(u - u[at]) < rng_defect.uniform(1.5, 6)))
    dye = rng_scene.normal(1, 0.035, (2, 128))  # each thread has its own shade
    light = np.where(warp > weft, dye[0][i % 128], dye[1][j % 128]) * (0.32 + 0.68 * np.maximum(warp, weft))
    tone = np.where((warp > weft)[..., None], (0.80, 0.74, 0.62), (0.60, 0.58, 0.55))
    return tone * light[..., None], np.ones(z.shape, bool)


def _wood(z: Array, rng_scene: Generator, rng_defect: Generator, kind: str) -> tuple[Array, Array]:
    """Draw planed wood with growth rings and pores along y; a splinter is missing, or a strip is misplaced."""
    z = _shift_strip(z, rng_defect, rng_defect.uniform(0.06, 0.15)) if kind == "misplaced" else z
    fibre, wave = _noise(rng_scene, len(z), 12, len(z) // 2), _noise(rng_scene, len(z), 3, 3)
    radius = np.hypot(1.3 * (z.real - rng_scene.uniform(-0.5, 0.1)), 0.45 * z.imag + 0.5)
    age = (6.5 * radius + 0.16 * wave + rng_scene.uniform(0, 1)) % 1
    late = age**2.5 * np.clip((1 - age) * 8, 0, 1)  # latewood darkens slowly and ends abruptly
    colour = (0.78, 0.58, 0.37) - late[..., None] * (0.26, 0.27, 0.22)
    colour = colour * (1 + 0.04 * fibre - 0.12 * np.clip(fibre - 1.2, 0, 1))[..., None]
    if kind == "missing":
        local = z - complex(*rng_defect.uniform(-0.6, 0.6, 2))
        chip = np.hypot(3.5 * local.real, local.imag) - rng_defect.uniform(0.12, 0.35)
        colour = _paint(colour, colour * 0.45, chip + 0.04 * _noise(rng_defect, len(z), 8, 24), soft=0.1)
    return colour, np.ones(z.shape, bool)


def _washer(z: Array, rng_scene: Generator, rng_defect: Generator, kind: str) -> tuple[Array, Array]:
    """Draw a turned steel washer with six holes on a mat; a hole is missing or misplaced."""
    holes, changed = 0.55 * np.exp(1j * np.pi / 3 * np.arange(6)), rng_defect.integers(6)
    if kind == "missing":
        holes = np.delete(holes, changed)
    elif kind == "misplaced":
        holes[changed] += rng_defect.uniform(0.05, 0.12) * np.exp(1j * rng_defect.uniform(0, 2 * np.pi))
    part = np.maximum.reduce([np.abs(z) - 0.82, 0.27 - np.abs(z), *(0.1 - np.abs(z - hole) for hole in holes)])
    groove = rng_scene.normal(0, 0.02, 256)[(np.abs(z) * len(z) / 2).astype(int) % 256]
    shine = np.cos(np.angle(z) + 2.2 - rng_scene.normal(0, 0.15)) ** 6  # turned metal has two bright sectors
    mat = (1 + 0.1 * _noise(rng_scene, len(z), len(z) // 3, len(z) // 3))[..., None] * (0.15, 0.16, 0.18)
    return _lay(mat, part, (0.50 + 0.24 * shine + groove)[..., None] * (0.97, 0.98, 1.0)), part < -0.01


def _board(z: Array, rng_scene: Generator, rng_defect: Generator, kind: str) -> tuple[Array, Array]:
    """Draw a circuit board with a chip and six small parts, one of which is missing or misplaced."""
    places = (-0.52 - 0.5j, -0.25 - 0.5j, 0.6 + 0.05j, 0.6 + 0.52j, 0.1 - 0.52j, 0.55 - 0.52j)
    changed, plate, chip = rng_defect.integers(len(places)), _box(z, 1.84, 1.84), z + 0.1 - 0.26j
    green = (1 + 0.05 * _noise(rng_scene, len(z), len(z) // 4, len(z) // 4))[..., None] * (0.07, 0.34, 0.20)
    colour = _lay(np.full(green.shape, 0.62), plate, green)
    for side in (1.45, 1.58, 1.7):  # copper traces
        colour = _paint(colour, (0.16, 0.50, 0.30), np.abs(_box(z - 0.05j, side, 0.9 * side)) - 0.012)
    legs = np.maximum(_box(chip, 0.82, 0.86), np.abs(chip.real % 0.12 - 0.06) - 0.03)
    colour = _lay(_paint(colour, (0.76, 0.76, 0.74), legs), _box(chip, 0.88, 0.66), (0.13, 0.13, 0.14))
    for k, place in enumerate(places):
        direction, tone = (1j, (0.14, 0.15, 0.26)) if k < 4 else (1, (0.62, 0.47, 0.30))
        colour = _paint(colour, (0.80, 0.70, 0.42), _box((z - place) / direction, 0.42, 0.13))
        local = (z - place - complex(*rng_scene.normal(0, 0.012, 2))) / direction  # parts are placed inexactly
        if k == changed and kind == "misplaced":
            local = local * np.exp(1j * rng_defect.uniform(0.2, 0.8)) - complex(*rng_defect.uniform(-0.1, 0.1, 2))
        if k != changed or kind != "missing":
            colour = _paint(_lay(colour, _box(local, 0.3, 0.15), (0.74, 0.74, 0.74)), tone, _box(local, 0.18, 0.16))
    return colour, plate < -0.03


def _mark(colour: Array, surface: Array, rng: Generator, kind: str) -> Array:
    """Draw a bent scratch, a stain or a tinted patch on a surface (H, W)."""
    z = _pose(len(colour), rng, 180, 0)
    z = z - rng.choice(z[surface])
    if kind == "scratch":
        line = np.abs(z.imag - rng.normal(0, 0.5) * z.real**2) - rng.uniform(0.006, 0.018)
        line = np.maximum(line, np.abs(z.real) - rng.uniform(0.15, 0.5))
        return _paint(colour, colour + rng.uniform(0.15, 0.45) * rng.choice([-1, 1]), line, opacity=surface)
    radius = rng.uniform(0.06, 0.22) if kind == "blob" else rng.uniform(0.16, 0.4)
    patch = np.hypot(z.real, z.imag * rng.uniform(1, 1.8)) - radius * (1 + 0.22 * _noise(rng, len(z), 10, 10))
    tint = (colour + 0.06) * (1 + rng.uniform(0.1, 0.25) * rng.permutation((-1, 0, 1))) - 0.06
    stain = ((0.10, 0.09, 0.08), (0.42, 0.22, 0.10), (0.85, 0.84, 0.80))[rng.integers(3)]  # oil, rust or paste
    tone, opacity = (stain, rng.uniform(0.3, 0.9)) if kind == "blob" else (tint, 1)
    return _paint(colour, tone, patch, rng.uniform(0.1, 0.9) * radius, opacity * surface)


SCENES = {"board": _board, "fabric": _fabric, "washer": _washer, "wood": _wood}
