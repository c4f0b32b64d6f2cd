"""Which temperature, and so which Phi, belongs to which epoch of stage I."""

from __future__ import annotations

import numbers

from akd_ext import annealing_functions
from akd_ext.annealing_functions import AnnealingFunction


class AnnealingSchedule:
    """Temperature and Phi for every epoch of stage I (Algorithm 1 of Annealing-KD, Jafari et al., EACL 2021).

    T goes from ``tau_max`` down to 1 in integer steps spread evenly over the epochs. With ``num_epochs = k * tau_max``
    every temperature lasts exactly k epochs, as in the paper; any other number works too, and the last epoch always has
    T = 1 and Phi = 1. The schedule holds no state, so a resumed run needs only its epoch number.

    Args:
        tau_max: maximum temperature, an integer >= 1.
        num_epochs: number of epochs (or of optimizer steps: the unit is yours), an integer >= 1.
        annealing: ``"linear"`` (equation 3), ``"cosine"``, ``"exponential"``, ``"step"`` or a callable
            ``(T, tau_max) -> Phi``, see :mod:`akd_ext.annealing_functions`.

    Raises:
        TypeError, ValueError: an argument is not of the form above.

    >>> schedule = AnnealingSchedule(tau_max=4, num_epochs=8)
    >>> [schedule.temperature(epoch) for epoch in range(8)]
    [4, 4, 3, 3, 2, 2, 1, 1]
    >>> schedule(0), schedule(7)
    ((4, 0.25), (1, 1.0))
    """

    def __init__(self, tau_max: int, num_epochs: int, annealing: str | AnnealingFunction = "linear") -> None:
        self._function = annealing_functions.get(annealing, tau_max)
        if isinstance(num_epochs, bool) or not isinstance(num_epochs, numbers.Integral):
            raise TypeError(f"num_epochs is {num_epochs!r} ({type(num_epochs).__name__}); accepted: an integer >= 1")
        if num_epochs < 1:
            raise ValueError(f"num_epochs is {num_epochs}; accepted: an integer >= 1")
        self.tau_max = int(tau_max)
        self.num_epochs = int(num_epochs)
        self.annealing = annealing

    def temperature(self, epoch: int) -> int:
        """T in ``epoch``, which counts from 0 to ``num_epochs - 1``.

        Raises:
            TypeError: ``epoch`` is no integer.
            ValueError: ``epoch`` lies outside the schedule.
        """
        if isinstance(epoch, bool) or not isinstance(epoch, numbers.Integral):
            raise TypeError(f"epoch is {epoch!r} ({type(epoch).__name__}); accepted: an integer")
        if not 0 <= epoch < self.num_epochs:
            raise ValueError(f"epoch is {epoch}; accepted: 0 to {self.num_epochs - 1}")
        epoch = int(epoch)
        if epoch == self.num_epochs - 1:
            return 1
        if self.num_epochs >= self.tau_max:
            return self.tau_max - epoch * self.tau_max // self.num_epochs
        # Fewer epochs than temperatures: some are left out, evenly, but never the two ends.
        span = self.num_epochs - 1
        return self.tau_max - (2 * epoch * (self.tau_max - 1) + span) // (2 * span)

    def phi(self, epoch: int) -> float:
        """Phi(T) in ``epoch``; raises as :meth:`temperature` does."""
        return float(self._function(self.temperature(epoch), self.tau_max))

    def __call__(self, epoch: int) -> tuple[int, float]:
        """``(T, Phi)`` in ``epoch``; raises as :meth:`temperature` does."""
        T = self.temperature(epoch)
        return T, float(self._function(T, self.tau_max))

    def __len__(self) -> int:
        return self.num_epochs

    def __repr__(self) -> str:
        return f"AnnealingSchedule(tau_max={self.tau_max}, num_epochs={self.num_epochs}, annealing={self.annealing!r})"
