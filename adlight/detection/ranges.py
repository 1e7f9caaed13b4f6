"""Refusals of numbers that are out of range; no range has NaN or infinity in it."""

import math


def check_range(name: str, value: float, least: float = 0.0, most: float = math.inf, *, above: bool = False) -> None:
    """Refuse a number that is less than `least` (or not above it) or greater than `most`.

    Raises:
        ValueError: it is, or it is no number.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not least <= value <= most or (above and value == least):
        end = f" and at most {most:g}" if most < math.inf else ""
        raise ValueError(f"{name} {value} must be a number {'above' if above else 'of at least'} {least:g}{end}")


def check_integer(name: str, value: int, least: int) -> None:
    """Refuse what is not a whole number of at least `least`.

    Raises:
        ValueError: it is not; 10.0 neither, as `1e1` on a command line is.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} {value} must be a whole number of at least {least}")
