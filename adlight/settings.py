"""Settings of constructors, checked by their annotations: what does not fit is refused before anything is built of it.

An annotation is the whole rule: `k: PositiveInt`, `topk: PositiveShare`, `reduce: Literal["mean", "max"]`. Nothing is
converted but an int to a float; NaN and infinity are no numbers, a bool is no int, and `no` in quotes is no switch.
"""

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar, get_type_hints

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, validate_call
from pydantic_core import ErrorDetails

from adlight.types import unknown_name

P = ParamSpec("P")
R = TypeVar("R")
STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)
MARK = "__settings_are_checked__"


def _filled(text: str | Path) -> str | Path:
    if not str(text).strip():
        raise ValueError("not be empty")
    return text


def _one_or_three(channels: int) -> int:
    if channels not in (1, 3):
        raise ValueError("be 1 (grey) or 3")
    return channels


Text = Annotated[str, AfterValidator(_filled)]
PathName = Annotated[str | Path, AfterValidator(_filled)]  # Path("") is the working directory, which nobody has named
Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]  # of an average: the share that is kept
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Channels = Annotated[int, AfterValidator(_one_or_three)]  # a Literal[1, 3] would take true


class ArgumentsOf:
    """Marks `**settings: Annotated[Any, ArgumentsOf("make")]`, which a constructor hands on to its argument `make`.

    Args:
        name: of that argument.
    """

    def __init__(self, name: str) -> None:
        self.name = name


class SettingsError(ValueError):
    """Arguments that do not fit a constructor's annotations, in one line.

    Args:
        faults: what does not fit.
        values: of the settings at fault, by name.
    """

    def __init__(self, faults: Sequence[ErrorDetails], values: Mapping[str, Any]) -> None:
        super().__init__(describe_faults(faults, values))
        self.faults, self.values = faults, values


def checked(constructor: Callable[P, R]) -> Callable[P, R]:
    """Check a constructor's arguments against its annotations whenever it is called.

    It then raises a `SettingsError`, which is a ValueError, that names each argument that does not fit.
    """
    validated = validate_call(config=ConfigDict(**STRICT, defer_build=True))(constructor)

    @functools.wraps(constructor)
    def call(*args: P.args, **settings: P.kwargs) -> R:
        try:
            return validated(*args, **settings)
        except ValidationError as error:
            if error.title != constructor.__qualname__:  # of something that the constructor calls
                raise
            values = dict(zip(inspect.signature(constructor).parameters, args, strict=False)) | settings
            raise SettingsError(error.errors(include_url=False), values) from None

    setattr(call, MARK, True)
    return call


def is_checked(target: Any) -> bool:
    """Tell whether a class or function checks its arguments."""
    return hasattr(_function(target), MARK)


def annotations_of(target: Any) -> dict[str, Any]:
    """Look up the annotations of a constructor's or a function's arguments, by name."""
    return get_type_hints(_function(target), include_extras=True)


def find_faults(annotations: Mapping[str, Any], values: Mapping[str, Any]) -> list[ErrorDetails]:
    """Compare values with annotations by name, as `checked` does; values without one pass."""
    return [
        {**fault, "loc": (name, *fault["loc"])}
        for name, value in values.items()
        if name in annotations
        for fault in _faults(annotations[name], value)
    ]


def describe_faults(faults: Sequence[ErrorDetails], values: Mapping[str, Any], name: Callable[[str], str] = str) -> str:
    """Say in one line what does not fit: each setting, its value and what is allowed.

    Args:
        faults: from `find_faults`.
        values: of the settings, by name.
        name: makes a setting's full name of an argument's.
    """
    grouped: dict[str, list[ErrorDetails]] = {}  # each member of a union has its own fault
    for fault in faults:
        grouped.setdefault(str(fault["loc"][0]), []).append(fault)
    return "; ".join(_describe(found, values, name(argument)) for argument, found in grouped.items())


def show(value: Any) -> str:
    """Write a value as it stands in a config."""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _function(target: Any) -> Any:
    if isinstance(target, functools.partial):
        return _function(target.func)
    return target.__init__ if inspect.isclass(target) else target


def _faults(annotation: Any, value: Any) -> list[ErrorDetails]:
    try:
        TypeAdapter(annotation, config=STRICT).validate_python(value)
    except ValidationError as error:
        return error.errors(include_url=False)
    return []


def _describe(faults: Sequence[ErrorDetails], values: Mapping[str, Any], name: str) -> str:
    """Describe the faults of one argument; where it may be of several types, those of the type that it has."""
    faults = [fault for fault in faults if fault["type"] not in WORDS] or faults
    (argument, *place), kinds = faults[0]["loc"], {fault["type"] for fault in faults}
    if kinds <= {"missing_argument", "missing_keyword_only_argument"}:
        return f"{name} must be given"
    choices = [choice for fault in faults for choice in _choices(fault)]
    if "[key]" in place:
        return unknown_name(f"setting in {name}", str(place[0]), choices)
    value = values.get(str(argument), faults[0]["input"])
    for part in place if len(faults) == 1 else ():  # the part of a list or of settings by name
        if part in (value if isinstance(value, Mapping) else range(len(value)) if isinstance(value, list) else ()):
            name, value = f"{name}.{part}", value[part]
    if isinstance(value, str) and len(choices) > 1 and kinds <= {"literal_error", "none_required"}:
        return unknown_name(name, value, choices)
    if kinds == {"value_error"} and not (said := _allowed(faults[0])).startswith(("be ", "not be ")):
        return f"{name}={value}: {said}"
    return f"{name} must {' or '.join(dict.fromkeys(map(_allowed, faults)))}, got {show(value)}"


def _choices(fault: ErrorDetails) -> list[str]:
    return re.findall(r"'([^']*)'", str(fault["ctx"]["expected"])) if fault["type"] == "literal_error" else []


WORDS = {  # of faults that say that a value is of another type
    "none_required": "be null",
    "bool_type": "be true or false",
    "int_type": "be an integer",
    "float_type": "be a number",
    "string_type": "be a text",
    "list_type": "be a list",
    "sequence_str": "be a list",
    "dict_type": "be settings by name",
    "callable_type": "be a node with _target_",
    "is_instance_of": "be a node with _target_ that makes {class}",
    "literal_error": "be {expected}",
}
LIMITS = {
    "greater_than": "be > {gt:g}",
    "greater_than_equal": "be >= {ge:g}",
    "less_than": "be < {lt:g}",
    "less_than_equal": "be <= {le:g}",
    "too_short": "be a list of at least {min_length}",
    "too_long": "be a list of at most {max_length}",
    "unexpected_keyword_argument": "be left out, as there is no such setting",
}


def _allowed(fault: ErrorDetails) -> str:
    context = fault.get("ctx", {})
    if context.get("class") in ("Sequence", "Path"):
        return "be a list" if context["class"] == "Sequence" else "be a path"
    if words := WORDS.get(fault["type"], LIMITS.get(fault["type"])):
        return words.format(**context)
    return fault["msg"].removeprefix("Value error, ").removeprefix("Input should ")
