"""torchdistill's ``KDLoss`` is another loss in its own GLUE script than here: the script hands it no targets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def remarks(criterion: Any) -> Iterator[str]:
    """A sentence for each ``KDLoss`` in a stage's ``criterion`` that reads the targets, with both formulas."""
    if isinstance(criterion, dict):
        if criterion.get("key") == "KDLoss":
            kwargs = criterion.get("kwargs") or {}
            alpha, temperature, beta = (kwargs.get(name) for name in ("alpha", "temperature", "beta"))
            if alpha:  # else it is the soft half alone in both
                beta = 1 - alpha if beta is None else beta
                yield (
                    f"KDLoss is {alpha:g} * cross entropy + {beta * temperature**2:g} * KL here (alpha CE + beta T^2 KL, T = "
                    f"{temperature:g}); torchdistill's own GLUE script passes targets=None, where it is 1 * KL alone: "
                    "losses of the two are not to be compared"
                )
        criterion = list(criterion.values())
    if isinstance(criterion, list):
        for part in criterion:
            yield from remarks(part)
