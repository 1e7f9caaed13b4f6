"""Settings checked by their annotations: what passes, what does not, and the one line that says so."""

import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, PositiveInt

from adlight.settings import ArgumentsOf, Channels, PathName, Seed, SettingsError, Share, Text, checked, is_checked

Size = PositiveInt | Annotated[Sequence[PositiveInt], Field(min_length=2, max_length=2)]


class Part:
    """Something that another constructor takes."""


class Example:
    @checked
    def __init__(
        self,
        share: Share = 0.5,
        count: PositiveInt = 1,
        switch: bool = False,
        how: Literal["mean", "max"] = "mean",
        size: Size | None = None,
        channels: Channels = 3,
        seed: Seed = 0,
        folder: PathName = "here",
        name: Text | None = None,
        weights: dict[Literal["a", "b"], float] | None = None,
        part: Part | None = None,
        make: Callable[..., Any] = Part,
    ) -> None:
        self.settings = dict(locals())


@pytest.mark.parametrize(
    "settings",
    [
        *({"share": 0}, {"share": 1}, {"count": 1}, {"switch": True}, {"how": "max"}, {"size": 3}, {"size": [3, 4]}),
        *({"size": (3, 4)}, {"channels": 1}, {"seed": 2**32 - 1}, {"folder": "a\udc80"}, {"folder": Path("x")}),
        *({"name": "x"}, {"weights": {"a": 1, "b": -2.5}}, {"part": Part()}, {"make": lambda: None}),
    ],
)
def test_what_fits_passes_unchanged(settings):
    made = Example(**settings)
    assert all(made.settings[name] == value for name, value in settings.items())
    assert made.settings["part"] is settings.get("part")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        *(("share", value, "share must be") for value in (-0.1, 1.1, math.nan, math.inf, -math.inf, True, "0.5", None)),
        *(("count", value, "count must be") for value in (0, 10.0, True, "3", math.nan, [1])),
        *(("switch", value, "switch must be true or false") for value in ("no", "true", 0, 1, None)),
        *(("size", value, "size") for value in (0, [3], [3, 4, 5], [3, 0], [3, 2.5], "33", True, 2.5)),
        *(("channels", value, "channels must be 1") for value in (2, 0, -1)),
        *(("channels", value, "channels must be an integer") for value in (True, 3.0)),
        *(("seed", value, "seed must be") for value in (-1, 2**32, 1e99, 1.5, None)),
        *(("folder", value, "folder must not be empty") for value in ("", "  ")),
        *(("name", "", "name must not be empty"), ("how", "men", "did you mean mean?"), ("how", 3, "'max'")),
        *(
            ("weights", {"a": "x"}, "weights.a must be a number"),
            ("weights", {"c": 1}, "setting in weights 'c' (there are: a, b)"),
        ),
        *(("part", 3, "part must be a node with _target_ that makes Part"), ("make", 3, "make must be")),
    ],
    ids=str,
)
def test_anything_else_is_one_line_with_name_and_value(name, value, said):
    with pytest.raises(SettingsError) as caught:
        Example(**{name: value})
    line = str(caught.value)
    shown = value[next(iter(value))] if isinstance(value, dict) else value
    assert isinstance(caught.value, ValueError) and said in line and "\n" not in line
    assert any(text in line for text in (str(shown), str(shown).lower(), "null", "got 0", "got 2.5", "(there are"))


def test_several_are_said_at_once():
    with pytest.raises(SettingsError, match=r"count .*0.*; seed .*-1"):
        Example(count=0, seed=-1)


def test_the_signature_stays():
    parameters = inspect.signature(Example).parameters
    assert list(parameters)[:3] == ["share", "count", "switch"] and parameters["share"].default == 0.5
    assert is_checked(Example) and not is_checked(Part)
    with pytest.raises(ValueError, match="nonsense"):
        Example(nonsense=1)


def test_errors_of_the_body_stay_what_they_are():
    class Careful:
        @checked
        def __init__(self, make: Annotated[Any, ArgumentsOf("make")] = None) -> None:
            Example(count=0) if make is None else make()

    def broken():
        raise ValueError("of the body")

    with pytest.raises(SettingsError, match=r"^count "):
        Careful()
    with pytest.raises(ValueError, match=r"^of the body$"):
        Careful(broken)
