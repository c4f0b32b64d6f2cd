"""TAID's interpolation between student and teacher, and how it grows by itself."""

from __future__ import annotations

import math

from torch import Tensor


class AdaptiveInterpolation:
    """The t of TAID (Temporally Adaptive Interpolated Distillation, ICLR 2025), updated once a step from the loss.

    The relative fall of the loss, smoothed by ``momentum``, drives t: ``t += step_size * sigmoid(fall) * (1 - t)``, never
    behind the straight line from ``start`` to ``end`` over ``num_steps``, never beyond ``end``.

    >>> t = AdaptiveInterpolation(num_steps=10, start=0.2)
    >>> t.update(2.0), t.update(1.0) > 0.2
    (0.2, True)
    """

    def __init__(
        self, num_steps: int, *, start: float = 0.4, end: float = 1.0, step_size: float = 5e-4, momentum: float = 0.99
    ) -> None:
        if not isinstance(num_steps, int) or num_steps < 1:
            raise ValueError(f"num_steps is {num_steps!r}; accepted: an integer >= 1")
        if not 0.0 <= start <= end <= 1.0:
            raise ValueError(f"start and end are {start} and {end}; accepted: 0 <= start <= end <= 1")
        self.num_steps, self.start, self.end = num_steps, start, end
        self.step_size, self.momentum = step_size, momentum
        self.value, self._step, self._fall = start, 0, 0.0
        self._before: float | None = None

    def update(self, loss: float | Tensor) -> float:
        """Tell the loss of a step; returns the t of the next one.

        A loss that is not finite, as of a batch in which no token counts, tells nothing: t stays on its line.
        """
        loss = float(loss)
        self._step += 1
        if not math.isfinite(loss):
            return self._move_to(self.value)
        if self._before is not None:
            fall = (self._before - loss) / (self._before + 1e-15)
            self._fall = self.momentum * self._fall + (1 - self.momentum) * fall
            # tanh, because exp() of a loss that rises from 0 would be beyond all numbers.
            sigmoid = (1 + math.tanh(self._fall / 2)) / 2
            self._move_to(self.value + self.step_size * sigmoid * (1 - self.value))
        self._before = loss
        return self.value

    def _move_to(self, grown: float) -> float:
        line = self.start + (self.end - self.start) * min(self._step / self.num_steps, 1.0)
        self.value = min(self.end, max(line, grown))
        return self.value

    def state_dict(self) -> dict[str, float | int | None]:
        return {"value": self.value, "step": self._step, "fall": self._fall, "before": self._before}

    def load_state_dict(self, state: dict[str, float | int | None]) -> None:
        self.value, self._step, self._fall, self._before = (state[k] for k in ("value", "step", "fall", "before"))
