"""Writes nested dicts as torchdistill YAML: block style, torchdistill's tags, comments.

PyYAML can dump tags but not comments, and a configuration without its reasons is not worth reading.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Tagged(NamedTuple):
    """``value`` behind a YAML tag of torchdistill, such as ``!import_call``."""

    tag: str
    value: Any


class Note(NamedTuple):
    """``value`` with a comment at the end of its line."""

    value: Any
    comment: str


def to_yaml(mapping: dict[str, Any]) -> str:
    """Return ``mapping`` as YAML text that ends in a newline.

    Keys are written as they are; strings are quoted. Top-level entries are set apart by an empty line.

    Example:
        >>> print(to_yaml({"train": {"num_epochs": Note(10, "one per temperature"), "lr": 0.1}}), end="")
        train:
          num_epochs: 10  # one per temperature
          lr: 0.1
    """
    return "\n".join("\n".join(_entry(key, value)) + "\n" for key, value in mapping.items())


def _entry(key: str, value: Any) -> list[str]:
    value, comment = value if isinstance(value, Note) else (value, "")
    tag, value = (" " + value.tag, value.value) if isinstance(value, Tagged) else ("", value)
    comment = f"  # {comment}" if comment else ""
    if isinstance(value, dict) and value:
        inner = [line for k, v in value.items() for line in _entry(k, v)]
        return [f"{key}:{tag}{comment}", *("  " + line for line in inner)]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        lines = [f"{key}:{comment}"]
        for item in value:
            first, *rest = [line for k, v in item.items() for line in _entry(k, v)]
            lines += [f"  - {first}", *("    " + line for line in rest)]
        return lines
    return [f"{key}:{tag} {_scalar(value)}{comment}"]


def _scalar(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "True", False: "False", None: "null"}[value]
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    if isinstance(value, float):
        text = repr(value)
        # YAML 1.1 reads 1e-05 as a string: it wants a dot.
        return text.replace("e", ".0e") if "e" in text and "." not in text else text
    if isinstance(value, list):
        return "[" + ", ".join(map(_scalar, value)) + "]"
    if isinstance(value, int):
        return str(value)
    if value == {}:
        return "{}"
    raise TypeError(f"to_yaml: cannot write a {type(value).__name__}: {value!r}")
