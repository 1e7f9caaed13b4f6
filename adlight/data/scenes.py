"""The generated scenes, and the marks that are left on them. Conventions as in `drawing.py`.

A scene: (n, look, flaw, kind) -> picture (N, N, 3) and surface (N, N) bool, where marks may lie.
A mark: (picture, surface, flaw) -> picture. The other kinds of defect are the scenes' own business.
"""

import functools
import math
from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from adlight.data.drawing import (
    LAMP,
    Array,
    Scene,
    Stream,
    box,
    cloud,
    disc,
    displaced,
    frame,
    inside,
    paint,
    rgb,
    rim,
    shaded,
    sign,
    solid,
    thrown,
    turned,
)


def fabric(n: int, look: Stream, flaw: Stream, kind: str) -> Scene:
    """Plain weave of 18 x 18 threads; the thread that lies higher at a pixel is seen."""
    x, y = frame(n, look, 2.5, 0)
    if kind == "misplaced":
        x, y = displaced(x, y, flaw, 0.03)
    u = 9 * x + look.uniform(0, 64) + 0.11 * cloud(look, n, 4, 4)
    v = 9 * y + look.uniform(0, 64) + 0.11 * cloud(look, n, 4, 4)
    i, j = np.floor(u), np.floor(v)
    a, b, side = u - i - 0.5, v - j - 0.5, 1 - 2 * ((i + j) % 2)
    warp = np.sqrt(np.clip(1 - (a / 0.47) ** 2, 0, 1)) * (0.62 + 0.38 * side * np.cos(np.pi * b))
    weft = np.sqrt(np.clip(1 - (b / 0.47) ** 2, 0, 1)) * (0.62 - 0.38 * side * np.cos(np.pi * a))
    if kind == "missing":  # a pulled-out piece of a weft thread
        row, column = flaw.integers(n // 6, n - n // 6, 2)
        weft = weft * ~((j == j[row, column]) & (np.abs(u - u[row, column]) < flaw.uniform(1.5, 6)))
    tones = look.normal(1, 0.035, (2, 128)).astype(np.float32)  # no two threads are dyed alike
    dyed = tones[0][i.astype(int) % 128, None], tones[1][j.astype(int) % 128, None]
    tint = np.where((warp > weft)[..., None], rgb(0.80, 0.74, 0.62) * dyed[0], rgb(0.60, 0.58, 0.55) * dyed[1])
    light = 0.32 + 0.68 * np.maximum(warp, weft) + 0.035 * cloud(look, n, n // 3, n // 3)
    return tint * light[..., None], np.ones((n, n), bool)


def wood(n: int, look: Stream, flaw: Stream, kind: str) -> Scene:
    """Planed wood: year rings cut lengthwise, fibres and pores along y."""
    x, y = frame(n, look, 4, 0)
    fibre, pore, wave = cloud(look, n, 10, n // 3), cloud(look, n, 16, n // 2), cloud(look, n, 3, 3)
    centre, phase = look.uniform(-0.5, 0.1), look.uniform(0, 1)
    if kind == "misplaced":
        x, y = displaced(x, y, flaw, 0.06)
    ring = 6.5 * np.hypot(1.3 * (x - centre), 0.45 * y + 0.5) + 0.16 * wave + phase
    age = ring - np.floor(ring)
    late = age**2.5 * np.clip((1 - age) * 8, 0, 1)  # the dark wood of autumn comes slowly and ends at once
    colour = rgb(0.78, 0.58, 0.37) - rgb(0.26, 0.27, 0.22) * late[..., None]
    colour = colour * (1 + 0.035 * fibre - 0.16 * np.clip(pore - 1.2, 0, 1) + 0.02 * wave)[..., None]
    if kind == "missing":  # a splinter torn out along the grain
        a, b = thrown(x, y, flaw, 0.6, 0.2)
        chip = 0.06 * (np.hypot(a / flaw.uniform(0.05, 0.1), b / flaw.uniform(0.12, 0.35)) - 1)
        chip = chip + 0.012 * cloud(flaw, n, 8, 24)
        colour = paint(colour, colour * rgb(0.50, 0.44, 0.38), inside(chip, 0.03))
        colour = colour * (1 + 0.25 * np.clip(rim(chip, 0.03), -2, 2))[..., None]
    return colour, np.ones((n, n), bool)


def washer(n: int, look: Stream, flaw: Stream, kind: str) -> Scene:
    """Turned steel washer with six holes on a dark mat."""
    x, y = frame(n, look, 6, 0.04)
    radius, turn = np.hypot(x, y), np.arctan2(y, x)
    part = np.maximum(radius - 0.82, 0.27 - radius)
    holes = [(0.55, place * math.pi / 3, 0.1) for place in range(6)]
    if kind == "missing" and flaw.random() < 0.65:
        del holes[flaw.integers(6)]
    elif kind == "missing":  # a piece broken off the outer edge
        bite = disc(x, y, flaw.uniform(0.81, 0.9), flaw.uniform(0, 2 * math.pi), flaw.uniform(0.1, 0.17))
        part = np.maximum(part, -bite - 0.012 * cloud(flaw, n, 16, 16))
    elif kind == "misplaced":
        place, move, outwards = flaw.integers(6), flaw.uniform(0.045, 0.12) * sign(flaw), flaw.integers(2)
        holes[place] = (0.55 + move * outwards, holes[place][1] + move / 0.55, 0.1)
    for hole in holes:
        part = np.maximum(part, -disc(x, y, *hole))
    groove = look.normal(0, 1, 512).astype(np.float32)[(radius * 150).astype(int)]
    shine = np.cos(turn - LAMP - look.normal(0, 0.15)) ** 6  # turned metal shines in two fans
    steel = 0.50 + 0.24 * shine + 0.016 * groove + 0.012 * cloud(look, n, 40, 40) + 0.3 * rim(part, 0.022)
    mat = rgb(0.15, 0.16, 0.18) * (1 + 0.10 * cloud(look, n, n // 3, n // 3))[..., None]
    colour = paint(shaded(mat, part, 0.5, 1 / 40), rgb(0.97, 0.98, 1.0) * steel[..., None], inside(part))
    return colour, part < -0.01


BLACK, TAN, BLUE = rgb(0.10, 0.10, 0.11), rgb(0.62, 0.47, 0.30), rgb(0.16, 0.17, 0.30)
PARTS = (  # of the board: x, y, width, height, colour
    *((-0.52, -0.50, 0.13, 0.26, BLACK), (-0.25, -0.50, 0.13, 0.26, BLACK)),
    *((0.10, -0.52, 0.30, 0.15, TAN), (0.55, -0.52, 0.30, 0.15, TAN)),
    *((0.60, 0.05, 0.15, 0.30, BLUE), (0.60, 0.52, 0.15, 0.30, BLUE)),
)
TRACES = (  # x, y, width, height
    *((-0.52, -0.26, 0.03, 0.24), (-0.25, -0.26, 0.03, 0.24), (0.72, -0.10, 0.03, 0.36)),
    *((-0.72, 0.25, 0.03, 1.0), (-0.79, 0.25, 0.03, 1.0), (0.0, 0.74, 1.2, 0.03), (0.0, -0.76, 1.1, 0.03)),
    *((0.30, -0.28, 0.86, 0.03), (0.38, 0.28, 0.44, 0.03), (0.38, 0.36, 0.44, 0.03)),
)


def board(n: int, look: Stream, flaw: Stream, kind: str) -> Scene:
    """Printed board: traces, screw holes, a chip with legs and print, six small parts on their pads."""
    x, y = frame(n, look, 2.5, 0.03)
    plate, hole = box(x, y, 1.84, 1.84), np.hypot(np.abs(x) - 0.84, np.abs(y) - 0.84)
    desk = rgb(0.62, 0.62, 0.62) * (1 + 0.02 * cloud(look, n, n // 4, n // 4))[..., None]
    green = rgb(0.07, 0.34, 0.20) * (1 + 0.05 * cloud(look, n, n // 4, n // 4))[..., None]
    colour = paint(desk, green, inside(plate)) + 0.1 * rim(plate, 0.03)[..., None]
    copper = union(box(x - left, y - top, width, height) for left, top, width, height in TRACES)
    colour = paint(colour, rgb(0.16, 0.50, 0.30), inside(copper))
    colour = paint(paint(colour, rgb(0.78, 0.66, 0.36), inside(hole - 0.06)), desk, inside(hole - 0.03))
    colour = solid(chip(colour, x, y), union(part_pads(x, y, part) for part in PARTS), rgb(0.80, 0.70, 0.42))
    changed = int(flaw.integers(len(PARTS))) if kind in ("missing", "misplaced") else -1
    shifts = look.normal(0, 0.012, (len(PARTS), 2)).tolist()  # no machine places parts exactly
    places = {
        k: (x - part[0] - dx, y - part[1] - dy) for k, (part, (dx, dy)) in enumerate(zip(PARTS, shifts, strict=True))
    }
    if kind == "missing":
        del places[changed]
    elif kind == "misplaced":
        a, b = thrown(*places[changed], flaw, 0.1, 0)
        places[changed] = turned(a, b, flaw.uniform(0.15, 0.8) * sign(flaw))
    colour = solid(colour, union(box(*at, *PARTS[k][2:4]) for k, at in places.items()), rgb(0.74, 0.74, 0.73))
    for k, at in places.items():
        _, _, width, height, tone = PARTS[k]
        body = (width, 0.62 * height) if height > width else (0.62 * width, height)
        colour = paint(colour, tone, inside(box(*at, *body)))
    return colour, plate < -0.03


def union(distances: Iterable[Array]) -> Array:
    """Distance to the nearest of several shapes."""
    return functools.reduce(np.minimum, distances)


def part_pads(x: Array, y: Array, part: tuple) -> Array:
    """Distance to the two solder pads of one of `PARTS`."""
    left, top, width, height, _ = part
    along = (0, height / 2) if height > width else (width / 2, 0)
    return box(np.abs(x - left) - along[0], np.abs(y - top) - along[1], 0.13, 0.13)


def chip(colour: Array, x: Array, y: Array) -> Array:
    """Lay a chip with 14 legs, three lines of print and the mark of its first leg over a picture."""
    legs = union(box(x + 0.46 - 0.12 * place, y - 0.26, 0.06, 0.86) for place in range(7))
    colour = paint(colour, rgb(0.76, 0.76, 0.74), inside(legs))
    colour = solid(colour, box(x + 0.10, y - 0.26, 0.88, 0.66), rgb(0.13, 0.13, 0.14))
    for line, width in enumerate((0.42, 0.30, 0.36)):
        stroke = box(x + 0.30 - width / 2, y - 0.16 - 0.1 * line, width, 0.045)
        gaps = 0.014 * (np.sin(x * 70 + 3 * line) - 0.6)
        colour = paint(colour, rgb(0.62, 0.62, 0.60), 0.9 * inside(np.maximum(stroke, gaps)))
    return paint(colour, rgb(0.5, 0.5, 0.5), inside(np.hypot(x + 0.45, y - 0.50) - 0.035))


def scratch(colour: Array, surface: Array, flaw: Stream) -> Array:
    """Draw a thin bent groove: a bright or dark line with a shadow beside it."""
    n = len(colour)
    start = flaw.choice(np.argwhere(surface))[::-1]
    headings = flaw.uniform(0, 2 * math.pi) + flaw.normal(0, 0.5) * np.linspace(0, 1, 24)
    steps = np.stack([np.cos(headings), np.sin(headings)], axis=1) * n * flaw.uniform(0.15, 0.5) / 24
    points = (start + np.cumsum(steps, axis=0)).ravel().tolist()
    sheet = Image.new("L", (n, n))
    ImageDraw.Draw(sheet).line(points, fill=255, width=max(1, round(n * flaw.uniform(0.006, 0.018))))
    line = ndimage.gaussian_filter(np.asarray(sheet, np.float32) / 255, n / 400) * surface
    strength = flaw.uniform(0.15, 0.45) * sign(flaw)
    shade = np.roll(line, max(1, n // 128), 0) * surface * (1 - line)
    return colour * (1 - 0.4 * abs(strength) * shade[..., None]) + strength * line[..., None]


def spot(surface: Array, flaw: Stream, least: float, most: float, soft: float) -> Array:
    """Coverage of an irregular round patch with a radius of `least` to `most` on the surface: (N, N)."""
    n = len(surface)
    row, column = flaw.choice(np.argwhere(surface)).tolist()
    x, y = frame(n, flaw, 0, 0)
    a, b = turned(x - x[0, column], y - y[row, 0], flaw.uniform(0, math.pi))
    radius = flaw.uniform(least, most)
    distance = np.hypot(a, b * flaw.uniform(1, 1.8)) - radius + 0.22 * radius * cloud(flaw, n, 10, 10)
    return inside(distance, soft * radius) * surface


def blob(colour: Array, surface: Array, flaw: Stream) -> Array:
    """Drop a stain of oil, rust or paste; some of the ground shines through."""
    tone = (rgb(0.10, 0.09, 0.08), rgb(0.42, 0.22, 0.10), rgb(0.85, 0.84, 0.80))[flaw.integers(3)]
    return paint(colour, tone, spot(surface, flaw, 0.06, 0.22, flaw.uniform(0.1, 0.6)) * flaw.uniform(0.3, 0.9))


def discolour(colour: Array, surface: Array, flaw: Stream) -> Array:
    """Tint a patch, as heat or a chemical does; what is on it stays visible."""
    tints = rgb(1.18, 0.97, 0.75), rgb(0.80, 0.97, 1.20), rgb(1.12, 0.84, 0.95), rgb(0.84, 1.08, 0.84)
    tint = tints[flaw.integers(4)] ** np.float32(flaw.uniform(0.5, 1.3))
    return paint(colour, (colour + 0.06) * tint - 0.06, spot(surface, flaw, 0.16, 0.4, flaw.uniform(0.3, 0.9)))


SCENES = {"board": board, "fabric": fabric, "washer": washer, "wood": wood}
MARKS = {"scratch": scratch, "blob": blob, "colour": discolour}
