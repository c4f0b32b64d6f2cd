"""The two ways a run can end badly, and the search for what the user probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfigError(Exception):
    """What the user wrote cannot work: a bad flag, a bad YAML file, a missing file. Exit code 2, one sentence."""


class RunError(Exception):
    """The configuration was fine but the run was not: a NaN loss, say. Exit code 1, one sentence."""


def nearest(name: object, choices: Iterable[object]) -> str | None:
    """The choice that looks most like ``name``, ignoring case; None when there is nothing to choose from.

    >>> nearest("weightedsumlos", ["MSELoss", "WeightedSumLoss"])
    'WeightedSumLoss'
    """
    by_lower = {str(choice).lower(): str(choice) for choice in sorted(map(str, choices), reverse=True)}
    found = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.0)
    return by_lower[found[0]] if found else None


def resembles(name: object, choices: Iterable[object], cutoff: float = 0.8) -> str | None:
    """Like `nearest`, but only a choice so close that ``name`` must be a typing error."""
    found = difflib.get_close_matches(str(name).lower(), [str(choice) for choice in choices], n=1, cutoff=cutoff)
    return found[0] if found else None


def one_sentence(error: BaseException, limit: int = 300) -> str:
    """An exception's message on one line; PyTorch's own messages can run over pages."""
    text = str(error)
    if "\nOriginal Traceback" in text:  # of a DataLoader worker: what counts stands at its end
        text = f"{text.partition('.')[0]}: {text.strip().splitlines()[-1]}"
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3].rstrip() + "..."
