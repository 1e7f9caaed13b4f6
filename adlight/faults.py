"""What does not fit a setting's type, as pydantic found it, in one line of ours."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic_core import ErrorDetails

from adlight.types import unknown_name

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
    "string_too_short": "be a text of at least {min_length} characters",
    "string_pattern_mismatch": "be a text that matches {pattern}",
    "multiple_argument_values": "be given once, by its name or in _args_",
    "unexpected_keyword_argument": "be left out, as there is no such setting",
}


def describe_faults(faults: Sequence[ErrorDetails], values: Mapping[str, Any], name: Callable[[str], str] = str) -> str:
    """Say in one line what does not fit: each setting, its value and what is allowed.

    Args:
        faults: of values and types compared by pydantic; the first of a location is the setting's name.
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
        return f"{name}={value if isinstance(value, str) else show(value)}: {said}"
    first, *others = dict.fromkeys(map(_allowed, faults))
    return f"{name} must {' or '.join([first, *(one.removeprefix('be ') for one in others)])}, got {show(value)}"


def _choices(fault: ErrorDetails) -> list[str]:
    return re.findall(r"'([^']*)'", str(fault["ctx"]["expected"])) if fault["type"] == "literal_error" else []


def _allowed(fault: ErrorDetails) -> str:
    context = fault.get("ctx", {})
    if context.get("class") in ("Sequence", "Path"):
        return "be a list" if context["class"] == "Sequence" else "be a path"
    if words := WORDS.get(fault["type"], LIMITS.get(fault["type"])):
        return words.format(**context).replace("be False", "be false")
    message = fault["msg"].removeprefix("Value error, ").removeprefix("Input should ")
    return message if fault["type"] == "value_error" or message.startswith("be ") else f"be another ({message})"
