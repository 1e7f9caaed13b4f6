"""What the generated scenes are drawn with: frames, distances, paint and light.

N is the drawing's side (twice the image's); coordinates run over [-1, 1], x to the right and y downwards;
colours are RGB in [0, 1]; a distance is negative inside its shape. `look` is the random stream of what varies
between normal images, `flaw` that of the defect: a scene draws the same from `look` with a defect or without.
"""

import math

import numpy as np
from PIL import Image
from scipy import ndimage

Array = np.ndarray
Stream = np.random.Generator
Scene = tuple[Array, Array]
LAMP = -2.2  # where the light comes from: the upper left, in radians


def rgb(red: float, green: float, blue: float) -> Array:
    """A colour as an array, (3,)."""
    return np.array((red, green, blue), np.float32)


def turned(x: Array, y: Array, angle: float) -> tuple[Array, Array]:
    """Coordinates in a frame turned by an angle in radians."""
    cos, sin = math.cos(angle), math.sin(angle)
    return cos * x + sin * y, cos * y - sin * x


def frame(n: int, look: Stream, degrees: float, shift: float) -> tuple[Array, Array]:
    """Coordinates of the pixel centres, turned and shifted at random up to a limit: two (N, N)."""
    axis = ((np.arange(n) + 0.5) / n * 2 - 1).astype(np.float32)
    x, y = np.meshgrid(axis - look.uniform(-shift, shift), axis - look.uniform(-shift, shift))
    return turned(x, y, math.radians(look.uniform(-degrees, degrees)))


def thrown(x: Array, y: Array, flaw: Stream, reach: float, turn: float) -> tuple[Array, Array]:
    """Coordinates around a random point at most `reach` off the middle, turned by up to `turn` radians."""
    dx, dy, angle = flaw.uniform(-reach, reach), flaw.uniform(-reach, reach), flaw.uniform(-turn, turn)
    return turned(x - dx, y - dy, angle)


def cloud(stream: Stream, n: int, rows: int, columns: int) -> Array:
    """Smooth noise, (N, N), of about unit variance; so many waves over the image's height and width."""
    coarse = stream.standard_normal((rows, columns), dtype=np.float32)
    return np.asarray(Image.fromarray(coarse).resize((n, n), Image.Resampling.BICUBIC))


def inside(distance: Array, softness: float = 0.0) -> Array:
    """Coverage in [0, 1] of a shape given by its distance; its edge is a drawn pixel wide, or `softness`."""
    return np.clip(0.5 - distance / max(softness, 2 / len(distance)), 0, 1)


def box(x: Array, y: Array, width: float, height: float) -> Array:
    """Distance to a rectangle around the origin (exact inside and beside, too small off the corners)."""
    return np.maximum(np.abs(x) - width / 2, np.abs(y) - height / 2)


def disc(x: Array, y: Array, radius: float, angle: float, size: float) -> Array:
    """Distance to a disc of radius `size` whose centre is given in polar coordinates."""
    return np.hypot(x - radius * math.cos(angle), y - radius * math.sin(angle)) - size


def paint(colour: Array, tone: Array, cover: Array) -> Array:
    """Lay a tone, (3,) or (N, N, 3), over a picture (N, N, 3) as far as it covers (N, N)."""
    rows, columns = np.flatnonzero(cover.any(axis=1)), np.flatnonzero(cover.any(axis=0))
    if not len(rows):
        return colour
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)  # most shapes are small
    colour = colour.copy()
    colour[window] += ((tone if tone.ndim == 1 else tone[window]) - colour[window]) * cover[window][..., None]
    return colour


def rim(distance: Array, width: float) -> Array:
    """Light on a bevelled edge: +1 where it faces the lamp, -1 where it turns away, 0 elsewhere."""
    down, right = np.gradient(distance, 2 / len(distance))
    facing = right * math.cos(LAMP) + down * math.sin(LAMP)
    return facing * np.exp(-((distance / width + 0.7) ** 2))


def shaded(colour: Array, distance: Array, depth: float, reach: float) -> Array:
    """Darken a picture under and beside a body, away from the lamp, by a factor of at most 1 - `depth`."""
    step = max(1, round(len(distance) * reach))
    shadow = ndimage.uniform_filter(np.roll(inside(distance), (step, step), (0, 1)), 2 * step + 1)
    return colour * (1 - depth * shadow[..., None])


def solid(colour: Array, distance: Array, tone: Array) -> Array:
    """Lay a body with a bevel and a shadow over a picture."""
    cover = inside(distance)
    colour = paint(shaded(colour, distance, 0.45, 1 / 64), tone, cover)
    return colour + (0.14 * rim(distance, 0.03) * cover)[..., None]


def displaced(x: Array, y: Array, flaw: Stream, least: float) -> tuple[Array, Array]:
    """Coordinates of a texture with a strip moved by `least` to 2.5 x `least`, mostly across itself."""
    a, b = thrown(x, y, flaw, 0.5, 0.6)
    strip = box(a, b, flaw.uniform(0.22, 0.45), flaw.uniform(0.6, 1.6)) < 0
    move = flaw.uniform(least, 2.5 * least) * sign(flaw)
    return x + move * strip, y + 0.6 * move * strip


def sign(flaw: Stream) -> int:
    """-1 or 1."""
    return 1 - 2 * int(flaw.integers(2))
