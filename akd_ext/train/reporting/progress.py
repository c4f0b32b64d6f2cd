"""The progress bar: one for the whole run, so that its time left is the run's."""

from __future__ import annotations

import datetime
import sys
import time
from typing import Any

from tqdm import tqdm

_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


class Progress:
    """Counts steps over all epochs. Shown on a terminal only; in a pipe or file the log lines have to do."""

    def __init__(self, total: int, *, enabled: bool = True):
        # smoothing=0: the mean over the run so far, which includes the validations, predicts the end best.
        self._bar = tqdm(total=total, disable=None if enabled else True, file=sys.stderr, bar_format=_FORMAT,
                         dynamic_ncols=True, smoothing=0, leave=False, delay=1e-9)  # fmt: skip
        self._start, self._steps, self._total, self._before = time.perf_counter(), 0, total, 0
        self.shown = not self._bar.disable

    def describe(self, text: str) -> None:
        self._bar.set_description_str(text, refresh=False)

    def show(self, **values: Any) -> None:
        self._bar.set_postfix_str(", ".join(f"{name} {value}" for name, value in values.items()), refresh=False)

    def step(self) -> None:
        self._steps += 1
        self._bar.update()

    def set_total(self, total: int) -> None:
        self._total = self._bar.total = total

    def go_on_at(self, step: int) -> None:
        """Steps that another process has made: they count, but not for the speed."""
        self._before = self._bar.initial = self._bar.n = step

    def left(self) -> str:
        """Time left, as h:mm:ss."""
        spent = time.perf_counter() - self._start
        seconds = spent / max(self._steps, 1) * max(self._total - self._before - self._steps, 0)
        return str(datetime.timedelta(seconds=round(seconds)))

    def close(self) -> None:
        self._bar.close()
