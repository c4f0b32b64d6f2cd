"""What a cache was computed from, as a dict that JSON can hold; and how two of them differ, in words."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any


def as_json(identity: dict) -> dict:
    """``identity`` as it comes back from a JSON file; TypeError if it cannot."""
    if not isinstance(identity, dict):
        raise TypeError(f"identity is a {type(identity).__name__}; accepted: a dict")
    try:
        return json.loads(json.dumps(identity))
    except (TypeError, ValueError) as error:
        raise TypeError(f"identity: {error}; accepted: what JSON can hold") from error


def short_name(identity: dict) -> str:
    """16 hexadecimal digits, the same for equal identities whatever the order of their keys."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def differences(found: dict, wanted: dict) -> list[str]:
    """A clause for each key that differs.

    >>> differences({"teacher": {"weights": "ab"}, "samples": 5}, {"teacher": {"weights": "cd"}, "samples": 5})
    ["teacher.weights is 'ab' there and 'cd' here"]
    """
    there, here = _flat(found), _flat(wanted)
    keys = [key for key in {**here, **there} if there.get(key) != here.get(key)]
    return [f"{key} is {_cut(there.get(key), here.get(key))} there and {_cut(here.get(key), there.get(key))} here"
            for key in keys]  # fmt: skip


def _flat(tree: dict, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _cut(value: Any, other: Any, width: int = 40) -> str:
    """``value``, if it is long from a little before the place where it begins to differ from ``other``.

    >>> _cut("Compose(ToTensor(), Normalize(0.5))", "Compose(ToTensor(), Normalize(0.6))", width=12)
    "...alize(0.5))'"
    """
    text, common = repr(value), len(os.path.commonprefix([repr(value), repr(other)]))
    start = max(0, min(common - 6, len(text) - width))
    return ("..." if start else "") + text[start : start + width] + ("..." if start + width < len(text) else "")
