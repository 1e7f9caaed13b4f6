"""A procedural data set in MVTec AD's layout: two textures, two objects, five kinds of defect, exact masks.

Scenes are drawn from signed distances (negative inside) and smooth noise over z = x + iy in [-1, 1]^2, y downwards.
A defective image is drawn twice from the same random stream, with and without its defect: the mask is where the two
differ by more than `TOLERANCE` grey levels; everywhere else the image equals its defect-free twin exactly.
"""

import hashlib
import json
import tempfile
from itertools import product
from pathlib import Path

import numpy as np
from numpy import ndarray as Array
from numpy.random import Generator
from PIL import Image

from adlight.types import UserError

KINDS = ("scratch", "blob", "colour", "missing", "misplaced")  # the first three are marks on the surface
MARKER = "synthetic.json"
VERSION = 2  # increase it whenever the same parameters give other pixels
TOLERANCE = 4  # grey levels, of 255, that do not count as a change
SMALLEST = 32  # pixels a side; below, threads and parts are thinner than a pixel


def generate(root: Path, *, seed: int, size: int, train: int, test: int) -> None:
    """Write the data set to `root` unless it is there; two in seven test images are good.

    An image depends on (seed, category, split, index) and `size` alone. The set is written beside `root` and renamed
    when complete, so that an interrupted call leaves no partial set.

    Raises:
        UserError: an argument is out of range, or `root` holds something else, such as a set of another version.
    """
    if size < SMALLEST or train < 1 or test < 2:
        least = f"size at least {SMALLEST}, train 1, test 2"
        raise UserError(f"synthetic set too small: size {size}, train {train}, test {test} ({least})")
    settings = {"seed": seed, "size": size, "train": train, "test": test, "version": VERSION}
    if _is_complete(root, settings):
        return
    good = max(1, round(test * 2 / 7))
    counts = {"train/good": train, "test/good": good}
    counts |= {f"test/{kind}": len(range(i, test - good, len(KINDS))) for i, kind in enumerate(KINDS)}
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as staging:
            part = Path(staging) / root.name
            for category, (split, count) in product(SCENES, counts.items()):
                for index in range(count):
                    image, mask = draw(category, split, index, seed, size)
                    _save(image, part / category / split / f"{index:03d}.png")
                    if mask.any():
                        truth = part / category / split.replace("test", "ground_truth")
                        _save(mask.astype(np.uint8) * 255, truth / f"{index:03d}_mask.png")
            (part / MARKER).write_text(json.dumps(settings, indent=1) + "\n")
            part.rename(root)
    except OSError as error:
        if not _is_complete(root, settings):  # another process may have been faster
            raise UserError(f"cannot write the synthetic set to {root}: {error}") from error


def _is_complete(root: Path, settings: dict[str, int]) -> bool:
    remedy = "set root to another folder or remove that one"
    if not (root / MARKER).exists():
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise UserError(f"{root} is not a synthetic set (missing {MARKER}): {remedy}")
        return False
    found = json.loads((root / MARKER).read_text())
    other = [f"{key} {found.get(key)} instead of {value}" for key, value in settings.items() if found.get(key) != value]
    if other:
        raise UserError(f"{root} holds a synthetic set with {', '.join(other)}: {remedy}")
    return True


def _save(array: Array, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def draw(category: str, split: str, index: int, seed: int, size: int) -> tuple[Array, Array]:
    """Draw one image and its exact mask, (size, size, 3) uint8 and (size, size) bool; redraw an unclear defect."""
    key, kind = f"{seed}/{category}/{split}/{index}", split.split("/")[1]
    clean, mask = render(category, size, key), np.zeros((size, size), bool)
    for attempt in range(100 if kind != "good" else 0):
        image = render(category, size, key, kind, attempt)
        change = np.abs(image.astype(int) - clean).max(axis=2)
        mask = change > TOLERANCE
        if max(8, 0.002 * size**2) <= mask.sum() <= 0.35 * size**2 and change[mask].mean() > 3 * TOLERANCE:
            return np.where(mask[..., None], image, clean), mask
    assert kind == "good", f"no visible {kind} on {category} in 100 attempts at size {size}"
    return clean, mask


def render(category: str, size: int, key: str, kind: str = "good", attempt: int = 0) -> Array:
    """Render a key's image with a defect, or (kind `good`) its defect-free twin: (size, size, 3) uint8."""
    seeds = (hashlib.sha256(name.encode()).digest()[:16] for name in (key, f"{key}/{attempt}"))
    rng_scene, rng_defect = (np.random.default_rng(int.from_bytes(seed)) for seed in seeds)
    colour, surface = SCENES[category](size, rng_scene, rng_defect, kind)
    if kind in KINDS[:3]:
        colour = _mark(colour, surface, rng_defect, kind)
    slope = _pose(size, rng_scene, 180, 0).real  # the light falls off in a random direction
    colour = colour * (rng_scene.uniform(0.95, 1.05) + rng_scene.uniform(0, 0.07) * slope)[..., None]
    sensor = rng_scene.uniform(0.006, 0.011) * rng_scene.standard_normal(colour.shape, dtype=np.float32)
    return ((colour + sensor).clip(0, 1) * 255).round().astype(np.uint8)


def _pose(size: int, rng: Generator, degrees: float, shift: float) -> Array:
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    moved = axis - rng.uniform(-shift, shift) + 1j * (axis[:, None] - rng.uniform(-shift, shift))
    return (moved * np.exp(1j * np.radians(rng.uniform(-degrees, degrees)))).astype(np.complex64)


def _smooth_noise(rng: Generator, size: int, rows: int, columns: int) -> Array:
    coarse = rng.standard_normal((rows, columns), dtype=np.float32)  # so many waves over height and width
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))


def _box(z: Array, width: float, height: float) -> Array:
    return np.maximum(np.abs(z.real) - width / 2, np.abs(z.imag) - height / 2)


def _paint(colour: Array, tone: Array | tuple, distance: Array, soft: float = 0, opacity: float | Array = 1) -> Array:
    alpha = opacity * np.clip(0.5 - distance / max(soft, 2 / len(distance)), 0, 1)  # an edge is at least a pixel wide
    return colour + alpha[..., None].astype(np.float32) * (np.asarray(tone, np.float32) - colour)


def _lay(colour: Array, distance: Array, tone: Array | tuple) -> Array:
    """Lay a body with a bevel and a shadow over a picture; the light comes from the upper left."""
    step = max(1, len(distance) // 50)
    colour = _paint(colour, 0.5 * colour, np.roll(distance, (step, step), (0, 1)), 8 * step / len(distance))
    down, right = np.gradient(distance, 2 / len(distance))
    bevel = -(down + right) * np.exp(-((distance / 0.03 + 0.7) ** 2))
    return _paint(colour, tone + 0.15 * bevel[..., None], distance)


def _shift_strip(z: Array, rng: Generator, move: float) -> Array:
    local = (z - complex(*rng.uniform(-0.5, 0.5, 2))) * np.exp(1j * rng.uniform(-0.6, 0.6))
    strip = _box(local, rng.uniform(0.22, 0.45), rng.uniform(0.6, 1.6)) < 0
    return z + (move + 0.6j * move) * rng.uniform(1, 2.5) * rng.choice([-1, 1]) * strip


def _fabric(size: int, rng_scene: Generator, rng_defect: Generator, kind: str) -> tuple[Array, Array]:
    """Draw a plain weave of 15 x 15 threads; missing: a piece of a thread, misplaced: a strip."""
    z = _pose(size, rng_scene, 2.5, 0)
    z = _shift_strip(z, rng_defect, 0.03) if kind == "misplaced" else z
    u, v = (7.5 * x + rng_scene.uniform(0, 64) + 0.1 * _smooth_noise(rng_scene, size, 4, 4) for x in (z.real, z.imag))
    i, j = np.floor(u).astype(int), np.floor(v).astype(int)
    a, b, over = np.cos(np.pi * (u - i - 0.5)), np.cos(np.pi * (v - j - 0.5)), 0.38 - 0.76 * ((i + j) % 2)
    warp, weft = a * (0.62 + over * b), b * (0.62 - over * a)
    if kind == "missing":
        row, column = rng_defect.integers(size // 6, size - size // 6, 2)
        weft = weft * ~((j == j[row, column]) & (np.abs(u - u[row, column]) < rng_defect.uniform(1.5, 6)))
    dye = rng_scene.normal(1, 0.035, (2, 128))  # no two threads are dyed alike
    light = np.where(warp > weft, dye[0][i % 128], dye[1][j % 128]) * (0.32 + 0.68 * np.maximum(warp, weft))
    tone = np.where((warp > weft)[..., None], (0.80, 0.74, 0.62), (0.60, 0.58, 0.55))
    return (tone * light[..., None]).astype(np.float32), np.ones((size, size), bool)


def _wood(size: int, rng_scene: Generator, rng_defect: Generator, kind: str) -> tuple[Array, Array]:
    """Draw planed wood with year rings and pores along y; missing: a splinter, misplaced: a strip."""
    fibre, wave = _smooth_noise(rng_scene, size, 12, size // 2), _smooth_noise(rng_scene, size, 3, 3)
    z, centre, phase = _pose(size, rng_scene, 4, 0), rng_scene.uniform(-0.5, 0.1), rng_scene.uniform(0, 1)
    z = _shift_strip(z, rng_defect, 0.06) if kind == "misplaced" else z
    age = (6.5 * np.hypot(1.3 * (z.real - centre), 0.45 * z.imag + 0.5) + 0.16 * wave + phase) % 1
    late = age**2.5 * np.clip((1 - age) * 8, 0, 1)  # dark late wood grows slowly and ends at once
    colour = (0.78, 0.58, 0.37) - late[..., None] * (0.26, 0.27, 0.22)
    colour = (colour * (1 + 0.04 * fibre - 0.12 * np.clip(fibre - 1.2, 0, 1))[..., None]).astype(np.float32)
    if kind == "missing":
        local = z - complex(*rng_defect.uniform(-0.6, 0.6, 2))
        chip = np.hypot(local.real / rng_defect.uniform(0.05, 0.1), local.imag / rng_defect.uniform(0.12, 0.35)) - 1
        torn = 0.06 * chip + 0.012 * _smooth_noise(rng_defect, size, 8, 24)
        colour = _paint(colour, colour * 0.45, torn, soft=0.03)
    return colour, np.ones((size, size), bool)


def _washer(size: int, rng_scene: Generator, rng_defect: Generator, kind: str) -> tuple[Array, Array]:
    """Draw a turned steel washer with six holes on a mat; missing and misplaced: a hole."""
    z = _pose(size, rng_scene, 6, 0.04)
    holes, changed = 0.55 * np.exp(1j * np.pi / 3 * np.arange(6)), rng_defect.integers(6)
    if kind == "missing":
        holes = np.delete(holes, changed)
    elif kind == "misplaced":
        holes[changed] += rng_defect.uniform(0.05, 0.12) * np.exp(1j * rng_defect.uniform(0, 2 * np.pi))
    part = np.maximum.reduce([np.abs(z) - 0.82, 0.27 - np.abs(z), *(0.1 - np.abs(z - hole) for hole in holes)])
    groove = rng_scene.normal(0, 0.02, 256)[(np.abs(z) * size / 2).astype(int) % 256]
    shine = np.cos(np.angle(z) + 2.2 - rng_scene.normal(0, 0.15)) ** 6  # turned metal shines in two fans
    steel = (0.50 + 0.24 * shine + groove)[..., None] * (0.97, 0.98, 1.0)
    mat = (1 + 0.1 * _smooth_noise(rng_scene, size, size // 3, size // 3))[..., None] * (0.15, 0.16, 0.18)
    return _lay(mat.astype(np.float32), part, steel), part < -0.01


# of the board: four parts that stand, two that lie
PARTS = np.array([-0.52 - 0.5j, -0.25 - 0.5j, 0.6 + 0.05j, 0.6 + 0.52j, 0.1 - 0.52j, 0.55 - 0.52j])


def _board(size: int, rng_scene: Generator, rng_defect: Generator, kind: str) -> tuple[Array, Array]:
    """Draw a printed board: traces, a chip with legs, six parts on pads; missing and misplaced: one of the parts."""
    z, changed = _pose(size, rng_scene, 2.5, 0.03), rng_defect.integers(len(PARTS))
    plate, chip = _box(z, 1.84, 1.84), z + 0.1 - 0.26j
    green = (1 + 0.05 * _smooth_noise(rng_scene, size, size // 4, size // 4))[..., None] * (0.07, 0.34, 0.20)
    colour = _lay(np.full((size, size, 3), 0.62, np.float32), plate, green)
    traces = np.minimum.reduce([np.abs(_box(z - 0.05j, side, 0.9 * side)) - 0.012 for side in (1.45, 1.58, 1.7)])
    colour = _paint(colour, (0.16, 0.50, 0.30), traces)
    legs = np.maximum(_box(chip, 0.82, 0.86), np.abs(chip.real % 0.12 - 0.06) - 0.03)
    colour = _lay(_paint(colour, (0.76, 0.76, 0.74), legs), _box(chip, 0.88, 0.66), (0.13, 0.13, 0.14))
    pads = bodies = np.full((size, size), 2.0, np.float32)
    tones = np.full((size, size, 3), 0.74, np.float32)
    for k, place in enumerate(PARTS):
        direction, tone = (1j, (0.14, 0.15, 0.26)) if k < 4 else (1, (0.62, 0.47, 0.30))
        pads = np.minimum(pads, _box((z - place) / direction, 0.42, 0.13))
        local = (z - place - complex(*rng_scene.normal(0, 0.012, 2))) / direction  # machines place parts inexactly
        if k == changed and kind == "misplaced":
            local = local * np.exp(1j * rng_defect.uniform(0.2, 0.8)) - complex(*rng_defect.uniform(-0.1, 0.1, 2))
        if k != changed or kind != "missing":
            bodies = np.minimum(bodies, _box(local, 0.3, 0.15))
            tones = _paint(tones, tone, _box(local, 0.18, 0.16))
    return _lay(_paint(colour, (0.80, 0.70, 0.42), pads), bodies, tones), plate < -0.03


def _mark(colour: Array, surface: Array, rng: Generator, kind: str) -> Array:
    """Leave a bent scratch, a stain or a tinted patch on a surface (H, W)."""
    size, z = len(colour), _pose(len(colour), rng, 180, 0)
    z = z - rng.choice(z[surface])
    if kind == "scratch":
        line = np.abs(z.imag - rng.normal(0, 0.5) * z.real**2) - rng.uniform(0.006, 0.018)
        line = np.maximum(line, np.abs(z.real) - rng.uniform(0.15, 0.5))
        return _paint(colour, colour + rng.uniform(0.15, 0.45) * rng.choice([-1, 1]), line, opacity=surface)
    radius = rng.uniform(0.06, 0.22) if kind == "blob" else rng.uniform(0.16, 0.4)
    patch = np.hypot(z.real, z.imag * rng.uniform(1, 1.8)) - radius * (1 + 0.22 * _smooth_noise(rng, size, 10, 10))
    tint = (colour + 0.06) * (1 + rng.uniform(0.1, 0.25) * rng.permutation((-1, 0, 1))) - 0.06
    stain = ((0.10, 0.09, 0.08), (0.42, 0.22, 0.10), (0.85, 0.84, 0.80))[rng.integers(3)]  # oil, rust or paste
    tone, opacity = (stain, rng.uniform(0.3, 0.9)) if kind == "blob" else (tint, 1)
    return _paint(colour, tone, patch, rng.uniform(0.1, 0.9) * radius, opacity * surface)


SCENES = {"board": _board, "fabric": _fabric, "washer": _washer, "wood": _wood}
