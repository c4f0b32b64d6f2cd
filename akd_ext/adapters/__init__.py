"""Thin adapters that plug the loss of stage I into other training libraries, a module for each.

| module                          | library                     | what it gives                                    |
|---------------------------------|-----------------------------|--------------------------------------------------|
| ``akd_ext.adapters.transformers`` | Hugging Face transformers | ``AnnealingTrainer``, ``AnnealingCallback``      |
|                                 |                             | ``CausalLMAnnealingTrainer`` for language models |
| ``akd_ext.adapters.lightning``  | Lightning                   | ``AnnealingCallback``                            |
| ``akd_ext.adapters.modelopt``   | NVIDIA ModelOpt             | ``AnnealingKDLoss``, a criterion for ``kd_loss`` |
| ``akd_ext.adapters.textbrewer`` | TextBrewer                  | ``annealing``, arguments for its configuration   |

Each module needs its library; this package needs none. In all of them the temperature is computed from the trainer's
own progress, so a resumed run needs nothing that was not saved anyway. Stage II is plain training with the labels.

In: the library's trainer and an ``akd_ext.AnnealingKDLoss``. Out: that loss at the right temperature.
May import: the root API, ``akd_ext.linear``, ``akd_ext.logit_cache``, and each module its own library; no other room.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

UNITS = ("epoch", "step")


@contextmanager
def needs(library: str) -> Iterator[None]:
    """Around the import of ``library``: what is missing is said with the command that installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"akd_ext.adapters.{library} is an adapter for {library}; {error.name} is not installed: "
            f"pip install '.[{library}]' in a clone of akd_ext, or pip install {library}",
            name=error.name,
        ) from error


def check_unit(unit: str) -> str:
    """``unit``, if the schedule can count in it. Raises ValueError if not."""
    if unit not in UNITS:
        raise ValueError(f"unit is {unit!r}; accepted: {', '.join(map(repr, UNITS))}")
    return unit


def warn_of_few_epochs(num_epochs: int, tau_max: int) -> None:
    """Says that temperatures are left out, all but T = 1 where there is one epoch only."""
    if num_epochs < tau_max:
        warnings.warn(
            f"the training ends within epoch {num_epochs}, so T takes {num_epochs} of tau_max = {tau_max} values; "
            "unit='step' takes all that the steps allow",
            stacklevel=2,
        )
