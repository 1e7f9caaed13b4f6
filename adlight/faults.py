"""Describe settings that do not fit their types in one line, from pydantic's errors."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic_core import ErrorDetails

from adlight.types import unknown_name

WORDS = {  # of faults about the type of a value
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
    """Describe in one line which settings do not fit, with their values and the allowed ones.

    Args:
        faults: errors of pydantic, whose locations begin with the name of an argument.
        values: values of the arguments, by name.
        name: returns the full name of a setting, given the name of an argument.
    """
    grouped: dict[str, list[ErrorDetails]] = {}  # each member of a union has its own fault
    for fault in faults:
        grouped.setdefault(str(fault["loc"][0]), []).append(fault)
    return "; ".join(_describe(group, values, name(argument)) for argument, group in grouped.items())


def _format_value(value: Any) -> str:
    # as it is written in a config
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _describe(faults: Sequence[ErrorDetails], values: Mapping[str, Any], name: str) -> str:
    """Describe the faults of an argument; for a union, only the faults of the type that the value has."""
    faults = [fault for fault in faults if fault["type"] not in WORDS] or faults
    (argument, *place), kinds = faults[0]["loc"], {fault["type"] for fault in faults}
    if kinds <= {"missing_argument", "missing_keyword_only_argument"}:
        return f"{name} must be given"
    choices = [choice for fault in faults for choice in _choices(fault)]
    if "[key]" in place:
        return unknown_name(f"setting in {name}", str(place[0]), choices)
    value = values.get(str(argument), faults[0]["input"])
    if len(faults) == 1:
        name, value = _find_item(name, value, place)
    if isinstance(value, str) and len(choices) > 1 and kinds <= {"literal_error", "none_required"}:
        return unknown_name(name, value, choices)
    if kinds == {"value_error"} and not (message := _allowed(faults[0])).startswith(("be ", "not be ")):
        return f"{name}={value if isinstance(value, str) else _format_value(value)}: {message}"
    first, *others = dict.fromkeys(map(_allowed, faults))
    allowed = " or ".join([first, *(other.removeprefix("be ") for other in others)])
    return f"{name} must {allowed}, got {_format_value(value)}"


def _find_item(name: str, value: Any, place: Sequence[int | str]) -> tuple[str, Any]:
    """Find the item of a list or mapping that is at fault. -> its name and value."""
    for part in place:
        items = range(len(value)) if isinstance(value, list) else value if isinstance(value, Mapping) else ()
        if part in items:
            name, value = f"{name}.{part}", value[part]
    return name, value


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
