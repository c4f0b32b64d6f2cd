"""Single values of a YAML: numbers, and the arguments of what a key names."""

from __future__ import annotations

import dis
import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# By the name of a type in `schema`: what a value must be, in words, and whether it is.
TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "count": ("a whole number from 1", lambda value: type(value) is int and value >= 1),
    "whole number": ("a whole number", lambda value: type(value) is int),
    "number": ("a number", _is_number),
    "positive number": ("a number above 0", lambda value: _is_number(value) and 0 < value < math.inf),
    "numbers": ("a number, or a list of them", lambda value: _is_number(value) or _is_list_of(_is_number, value)),
    "whole numbers": (
        "a list of whole numbers from 0, such as [150, 225]",
        lambda value: _is_list_of(lambda item: type(item) is int and item >= 0, value),
    ),
    "flag": ("True or False", lambda value: isinstance(value, bool)),
    "list": ("a list", lambda value: isinstance(value, list)),
}


def _is_list_of(is_valid: Callable[[Any], bool], value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(map(is_valid, value))


def type_of_argument(parameter: inspect.Parameter) -> str | None:
    """The name in `TYPES` of what an argument takes, by its annotation or its default; None if neither tells."""
    annotation = parameter.annotation
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    if annotation is parameter.empty:
        text = {bool: "bool", float: "float"}.get(type(parameter.default), "")
    if text in ("Iterable[int]", "list[int]"):
        return "whole numbers"
    if text.startswith("float") or text.startswith("list[float]"):
        return "numbers" if "list" in text else "number"
    return {"int": "whole number", "int | None": "whole number", "bool": "flag"}.get(text)


def number_in_text(value: Any) -> float | None:
    """The number that YAML reads as text, for want of a dot: ``1e-3``.

    >>> number_in_text("1e-3"), number_in_text("sum"), number_in_text(0.1)
    (0.001, None, None)
    """
    is_meant = isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value)
    return float(value) if is_meant else None


@dataclass(frozen=True)
class Arguments:
    """What a function takes by name."""

    named: dict[str, inspect.Parameter]
    required: tuple[str, ...]
    takes_any: bool  # it has **kwargs
    drops_others: bool  # ... and never looks at them
    takes_more: bool  # it has *args


def arguments_of(function: Any, given: int) -> Arguments | None:
    """The arguments that are left when ``given`` have been passed; None for a function built in C, which has no list."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None
    kinds = {parameter.kind for parameter in parameters}
    by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)][given:]
    return Arguments(
        named={parameter.name: parameter for parameter in by_name},
        required=tuple(p.name for p in by_name if p.default is p.empty),
        takes_any=inspect.Parameter.VAR_KEYWORD in kinds,
        drops_others=any(p.kind is p.VAR_KEYWORD and not _looks_at(function, p.name) for p in parameters),
        takes_more=inspect.Parameter.VAR_POSITIONAL in kinds,
    )


def _looks_at(function: Any, name: str) -> bool:
    """Whether the code of a function, or of a class's ``__init__``, ever reads its argument ``name``."""
    function = inspect.unwrap(function.__init__ if inspect.isclass(function) else function)
    code = getattr(function, "__code__", None)
    if code is None:
        return True  # nobody knows
    reads = (i.argval for i in dis.get_instructions(code) if i.opname.startswith("LOAD"))
    return name in code.co_cellvars or any(name == read or (isinstance(read, tuple) and name in read) for read in reads)
