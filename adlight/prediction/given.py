"""Settings of a command in place of what a run has."""

from collections.abc import Mapping
from typing import Any


def set_given(target: Any, settings: Mapping[Any, Any], *names: str) -> None:
    """Set those attributes of an object that a command gives, which are not None."""
    for name in names:
        if settings[name] is not None:
            setattr(target, name, settings[name])
