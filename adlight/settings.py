"""Check the arguments of constructors against their annotations, before anything is built.

The annotation is the complete rule: `k: PositiveInt`, `topk: PositiveShare`, `reduce: Literal["mean", "max"]`. Nothing
is converted except integers to floats: NaN and infinity are not accepted as numbers, nor a bool as an integer, nor a
string as a bool.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar, get_type_hints, is_typeddict

from pydantic import AfterValidator, ConfigDict, Field, SkipValidation, TypeAdapter, ValidationError, validate_call
from pydantic_core import ErrorDetails

from adlight.faults import describe_faults

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)
DEFERRED = ConfigDict(**STRICT, defer_build=True)
MARK = "__settings_are_checked__"


def _filled(text: str | Path) -> str | Path:
    if not str(text).strip():
        raise ValueError("not be empty")
    return text


def _one_or_three(channels: int) -> int:
    if channels not in (1, 3):
        raise ValueError("be 1 (grey) or 3")
    return channels


def _built(part: Any) -> Any:
    if part is None or isinstance(part, bool | int | float | str | list | tuple | dict):
        raise ValueError("be a node with _target_")
    return part


Built = Annotated[T, SkipValidation, AfterValidator(_built)]  # an object of any class with the interface of T
Text = Annotated[str, AfterValidator(_filled)]
PathName = Annotated[str | Path, AfterValidator(_filled)]  # not empty, as Path("") is the working directory
Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]  # fraction of a moving average that an update keeps
Closing = Annotated[float, Field(ge=0, le=500)]  # pixels; the memory that it takes grows with its square
Depth = Annotated[int, Field(ge=1, le=10)]  # halvings of a grid, whose channels may double each time
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Channels = Annotated[int, AfterValidator(_one_or_three)]  # Literal[1, 3] would accept true


class ArgumentsOf:
    """Marks `**settings: Annotated[Any, ArgumentsOf("make")]`, which a constructor passes on to its argument `make`."""

    def __init__(self, name: str) -> None:
        self.name = name


class SettingsError(ValueError):
    """Arguments that do not fit the annotations of a constructor, as pydantic's faults; the message is one line."""

    def __init__(self, faults: Sequence[ErrorDetails], values: Mapping[str, Any]) -> None:
        super().__init__(describe_faults(faults, values))
        self.faults, self.values = faults, values


def checked(constructor: Callable[P, R]) -> Callable[P, R]:
    """Decorate a constructor to check its arguments against its annotations.

    It then raises a `SettingsError`, a ValueError, that names each argument that does not fit.
    """
    validated = validate_call(config=DEFERRED)(constructor)

    @functools.wraps(constructor)
    def call(*args: P.args, **settings: P.kwargs) -> R:
        try:
            return validated(*args, **settings)
        except ValidationError as error:
            if error.title != constructor.__qualname__:  # raised inside the constructor
                raise
            names = list(inspect.signature(constructor).parameters)
            faults = [_name_location(fault, names) for fault in error.errors(include_url=False)]
            raise SettingsError(faults, dict(zip(names, args, strict=False)) | settings) from None

    setattr(call, MARK, True)
    return call


def is_checked(target: Any) -> bool:
    """Return whether a class or function checks its arguments."""
    return hasattr(_function(target), MARK)


def types_of(target: Any) -> dict[str, TypeAdapter]:
    """Return the types of the arguments of a constructor or function, or of the entries of a TypedDict, by name."""
    annotations = get_type_hints(_function(target), include_extras=True)
    return {name: TypeAdapter(annotation, config=DEFERRED) for name, annotation in annotations.items()}


def find_faults(types: Mapping[str, TypeAdapter], values: Mapping[str, Any]) -> list[ErrorDetails]:
    """Compare values with their types, as `checked` does; values without a type pass."""
    faults: list[ErrorDetails] = []
    for name in types.keys() & values.keys():
        try:
            types[name].validate_python(values[name])
        except ValidationError as error:
            faults += [{**fault, "loc": (name, *fault["loc"])} for fault in error.errors(include_url=False)]
    return faults


def receiver_of(target: Any) -> str | None:
    """Return the argument to which a checked constructor passes on other settings; None if there is none."""
    if is_checked(target):
        for annotation in get_type_hints(_function(target), include_extras=True).values():
            for mark in getattr(annotation, "__metadata__", ()):
                if isinstance(mark, ArgumentsOf):
                    return mark.name
    return None


def _name_location(fault: ErrorDetails, names: Sequence[str]) -> ErrorDetails:
    first, *rest = fault["loc"]  # `first` is a number for positional arguments
    return {**fault, "loc": (names[first] if isinstance(first, int) else first, *rest)}


def _function(target: Any) -> Any:
    if isinstance(target, functools.partial):
        return _function(target.func)
    return target.__init__ if inspect.isclass(target) and not is_typeddict(target) else target
