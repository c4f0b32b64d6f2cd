"""Annealing functions Phi: how strongly the teacher's logits are scaled at temperature T.

Every function takes ``(T, tau_max)`` and returns Phi in [0, 1], with Phi = 1 at T = 1 and never growing with T
(Annealing-KD, Jafari et al., EACL 2021, equation 3 and the paragraph below it). To use your own, pass any such
callable, of ``(T, tau_max)`` or of ``T`` alone, wherever a name is accepted; :func:`get` checks it once, when it is
given.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import numbers
from collections.abc import Callable

AnnealingFunction = Callable[[int, int], float]


def linear(T: int, tau_max: int) -> float:
    """``1 - (T - 1) / tau_max``: equation 3 of the paper, from 1/tau_max up to 1.

    >>> [linear(T, 4) for T in (4, 3, 2, 1)]
    [0.25, 0.5, 0.75, 1.0]
    """
    return 1.0 - (T - 1) / tau_max


def cosine(T: int, tau_max: int) -> float:
    """``(1 + cos(pi (T - 1) / tau_max)) / 2``: slow at both ends, fast in the middle.

    >>> [round(cosine(T, 4), 3) for T in (4, 3, 2, 1)]
    [0.146, 0.5, 0.854, 1.0]
    """
    return 0.5 * (1.0 + math.cos(math.pi * (T - 1) / tau_max))


def exponential(T: int, tau_max: int) -> float:
    """``tau_max ** (-(T - 1) / (tau_max - 1))``: equal ratios between neighbours, the same two ends as ``linear``.

    >>> [round(exponential(T, 4), 3) for T in (4, 3, 2, 1)]
    [0.25, 0.397, 0.63, 1.0]
    """
    return 1.0 if tau_max == 1 else float(tau_max) ** (-(T - 1) / (tau_max - 1))


def step(T: int, tau_max: int) -> float:
    """One half in the hotter half of the temperatures, 1 in the cooler half.

    >>> [step(T, 4) for T in (4, 3, 2, 1)]
    [0.5, 0.5, 1.0, 1.0]
    """
    return 0.5 if 2 * T > tau_max + 1 else 1.0


# What a callable's rounding may miss the rules by. The value is then clamped.
TOLERANCE = 1e-6
NAMES: dict[str, AnnealingFunction] = {"linear": linear, "cosine": cosine, "exponential": exponential, "step": step}


def get(annealing: str | AnnealingFunction, tau_max: int) -> AnnealingFunction:
    """Look up an annealing function by name, or check one of your own.

    Args:
        annealing: ``"linear"``, ``"cosine"``, ``"exponential"``, ``"step"``, or a callable, ``(T, tau_max) -> Phi`` or
            ``T -> Phi``.
        tau_max: maximum temperature, an integer >= 1.

    Returns:
        A callable ``(T, tau_max) -> Phi``.

    Raises:
        TypeError: ``annealing`` is neither a string nor callable, ``tau_max`` is no integer, or the callable takes
            other arguments or returns no number.
        ValueError: the name is unknown, ``tau_max`` is below 1, or the callable leaves [0, 1], grows with T, or is not
            1 at T = 1.

    >>> get("linear", 10)(1, 10)
    1.0
    >>> get(lambda T, tau_max: 2.0, 10)
    Traceback (most recent call last):
    ...
    ValueError: annealing: Phi(T=1, tau_max=10) is 2.0, but Phi must lie in [0, 1]
    """
    check_tau_max(tau_max)
    if isinstance(annealing, str):
        if annealing not in NAMES:
            near = difflib.get_close_matches(annealing, NAMES, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"annealing is {annealing!r}{hint}; accepted: {', '.join(NAMES)}, or a callable")
        return NAMES[annealing]
    if not callable(annealing):
        accepted = f"{', '.join(NAMES)}, or a callable (T, tau_max) -> Phi"
        raise TypeError(f"annealing is a {type(annealing).__name__}; accepted: {accepted}")
    annealing = _with_two_arguments(annealing)
    exact = _check_callable(annealing, tau_max)
    return annealing if exact else functools.partial(_clamped, annealing)


def check_tau_max(tau_max: int) -> None:
    """Raise TypeError or ValueError unless ``tau_max`` is an integer >= 1."""
    if isinstance(tau_max, bool) or not isinstance(tau_max, numbers.Integral):
        raise TypeError(f"tau_max is {tau_max!r} ({type(tau_max).__name__}); accepted: an integer >= 1")
    if tau_max < 1:
        raise ValueError(f"tau_max is {tau_max}; accepted: an integer >= 1")


def _with_two_arguments(function: Callable) -> AnnealingFunction:
    try:
        signature = inspect.signature(function)
    except ValueError:  # some callables written in C have none
        return function
    for arguments, adapted in (((1, 1), function), ((1,), functools.partial(_without_tau_max, function))):
        try:
            signature.bind(*arguments)
            return adapted
        except TypeError:
            pass
    raise TypeError(f"annealing takes the arguments {signature}; accepted: (T, tau_max) or (T)")


def _clamped(function: AnnealingFunction, T: int, tau_max: int) -> float:
    # 1 at T = 1 exactly: a callable's own arithmetic may end at 0.9999999999999999.
    return 1.0 if T == 1 else min(max(float(function(T, tau_max)), 0.0), 1.0)


def _without_tau_max(function: Callable[[int], float], T: int, tau_max: int) -> float:
    return function(T)


def _check_callable(function: AnnealingFunction, tau_max: int) -> bool:
    """Returns whether every value is in [0, 1], and 1 at T = 1, without any tolerance."""
    exact = True
    colder = 1.0
    for T in range(1, tau_max + 1):
        value = function(T, tau_max)
        try:
            phi = float(value)
        except (TypeError, ValueError) as error:
            raise TypeError(f"annealing: Phi(T={T}, tau_max={tau_max}) is {value!r}, which is not a number") from error
        if not -TOLERANCE <= phi <= 1.0 + TOLERANCE:  # also catches NaN
            raise ValueError(f"annealing: Phi(T={T}, tau_max={tau_max}) is {phi}, but Phi must lie in [0, 1]")
        if T == 1 and abs(phi - 1.0) > TOLERANCE:
            raise ValueError(f"annealing: Phi(T=1, tau_max={tau_max}) is {phi}, but Phi must be 1 at T = 1")
        if phi > colder + TOLERANCE:
            raise ValueError(
                f"annealing: Phi grows from {colder} at T={T - 1} to {phi} at T={T} (tau_max={tau_max}), "
                "but Phi must never grow with T"
            )
        exact = exact and 0.0 <= phi <= 1.0 and (T > 1 or phi == 1.0)
        colder = phi
    return exact
