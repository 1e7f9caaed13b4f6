"""Settings of a command in the place of what a run has."""

from typing import Any

from omegaconf import DictConfig


def set_given(target: Any, config: DictConfig, *names: str) -> None:
    """Set those attributes of an object that a command's config gives, which are not null."""
    for name in names:
        if config[name] is not None:
            setattr(target, name, config[name])
