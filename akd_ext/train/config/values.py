"""Single values of a YAML: numbers, and the arguments of what a key names."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# By the name of a type in `schema`: what a value must be, in words, and whether it is.
TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "count": ("a whole number from 1", lambda value: type(value) is int and value >= 1),
    "number": ("a number", _is_number),
}


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
        takes_more=inspect.Parameter.VAR_POSITIONAL in kinds,
    )
