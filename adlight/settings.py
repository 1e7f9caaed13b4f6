"""Settings of constructors, checked by their annotations: what does not fit is refused before anything is built of it.

An annotation is the whole rule: `k: PositiveInt`, `topk: PositiveShare`, `reduce: Literal["mean", "max"]`. Nothing is
converted but an int to a float; NaN and infinity are no numbers, a bool is no int, and `no` in quotes is no switch.
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


Built = Annotated[T, SkipValidation, AfterValidator(_built)]  # of any class that does what the one named here does
Text = Annotated[str, AfterValidator(_filled)]
PathName = Annotated[str | Path, AfterValidator(_filled)]  # Path("") is the working directory, which nobody has named
Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]  # of an average: the share that is kept
Closing = Annotated[float, Field(ge=0, le=500)]  # pixels; the memory that it takes grows with its square
Depth = Annotated[int, Field(ge=1, le=10)]  # halvings of a grid, whose channels may double each time
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
    validated = validate_call(config=DEFERRED)(constructor)

    @functools.wraps(constructor)
    def call(*args: P.args, **settings: P.kwargs) -> R:
        try:
            return validated(*args, **settings)
        except ValidationError as error:
            if error.title != constructor.__qualname__:  # of something that the constructor calls
                raise
            names = list(inspect.signature(constructor).parameters)
            faults = [_name_place(fault, names) for fault in error.errors(include_url=False)]
            raise SettingsError(faults, dict(zip(names, args, strict=False)) | settings) from None

    setattr(call, MARK, True)
    return call


def is_checked(target: Any) -> bool:
    """Tell whether a class or function checks its arguments."""
    return hasattr(_function(target), MARK)


def types_of(target: Any) -> dict[str, TypeAdapter]:
    """Look up the types of a constructor's or a function's arguments, or of a TypedDict's entries, by name."""
    annotations = get_type_hints(_function(target), include_extras=True)
    return {name: TypeAdapter(annotation, config=DEFERRED) for name, annotation in annotations.items()}


def find_faults(types: Mapping[str, TypeAdapter], values: Mapping[str, Any]) -> list[ErrorDetails]:
    """Compare values with types by name, as `checked` does; values without one pass."""
    faults: list[ErrorDetails] = []
    for name in types.keys() & values.keys():
        try:
            types[name].validate_python(values[name])
        except ValidationError as error:
            faults += [{**fault, "loc": (name, *fault["loc"])} for fault in error.errors(include_url=False)]
    return faults


def receiver_of(target: Any) -> str | None:
    """Name the argument to which a checked constructor hands on what it does not take itself; None if there is none."""
    if is_checked(target):
        for annotation in get_type_hints(_function(target), include_extras=True).values():
            for one in getattr(annotation, "__metadata__", ()):
                if isinstance(one, ArgumentsOf):
                    return one.name
    return None


def _name_place(fault: ErrorDetails, names: Sequence[str]) -> ErrorDetails:
    first, *rest = fault["loc"]  # the number of an argument without a name
    return {**fault, "loc": (names[first] if isinstance(first, int) else first, *rest)}


def _function(target: Any) -> Any:
    if isinstance(target, functools.partial):
        return _function(target.func)
    return target.__init__ if inspect.isclass(target) and not is_typeddict(target) else target
