"""Progress bars."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich import progress
from rich.console import Console

T = TypeVar("T")


def track(items: Iterable[T], title: str, total: int, least: int = 1) -> Iterator[T]:
    """Iterate with a progress bar, which vanishes at the end, if there are at least `least` items.

    Outside terminals and notebooks there is no bar, as Rich would leave an empty line.
    """
    console = Console(stderr=True)
    hidden = total < least or not (console.is_terminal or console.is_jupyter)
    yield from progress.track(items, title, total, console=console, transient=True, disable=hidden)
