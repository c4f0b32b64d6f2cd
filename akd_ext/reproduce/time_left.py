"""How long the runs of a table will still take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

from .jobs import Job


@dataclass
class _Run:
    began: float
    before: int  # epochs of an earlier process
    seconds: list[float]  # of every epoch
    outside: float | None = None  # seconds of this process that belong to no epoch
    finished: bool = False

    def spent(self, until: float) -> float:
        """Seconds outside the epochs that this process has finished."""
        return max(until - self.began - sum(self.seconds[self.before :]), 0.0)


class TimeLeft:
    """Estimates from what is seen of the runs.

    A run takes its epochs at its row's pace, and as long outside them (imports, first batch, tests, pictures) as finished runs took.
    A run's first epoch is no measure of pace: it may run the teacher, to keep its logits for all others.

    Args:
        at_once: how many runs run at a time.
    """

    def __init__(self, at_once: int):
        self._at_once = at_once
        self._runs: dict[Job, _Run] = {}

    def note(self, job: Job, seconds: list[float]) -> None:
        """A run is under way, with so many seconds for each epoch so far."""
        now = time.monotonic()
        run = self._runs.setdefault(job, _Run(now, len(seconds), seconds))
        run.before = min(run.before, len(seconds))
        more, run.seconds = len(seconds) > len(run.seconds), seconds
        if more:
            run.outside = run.spent(now)

    def finish(self, job: Job, seconds: list[float], wall: float | None) -> None:
        """A run is done: its epochs, and how long it took in all; None: it was done already."""
        now = time.monotonic()
        run = self._runs.setdefault(job, _Run(now, 0, seconds))
        run.seconds, run.finished, run.outside = seconds, True, None
        if wall is not None:
            run.outside = run.spent(run.began + wall)

    def seconds(self, left: Mapping[Job, int]) -> float | None:
        """Until all is done, for the runs that are left with their numbers of epochs; None: no pace is known yet.

        What has no pace yet is taken for the mean of the others. A run does not begin before its teacher has ended.
        """
        paces = self._paces()
        if not paces:
            return None
        mean, outside = statistics.fmean(paces.values()), self._outside()
        needed = {job: self._needed(job, n, paces.get((job.run, job.task), mean), outside) for job, n in left.items()}

        def until_end(job: Job | None) -> float:
            return needed[job] + until_end(job.teacher) if job in needed else 0.0

        return max(sum(needed.values()) / self._at_once, max(map(until_end, needed), default=0.0))

    def _paces(self) -> dict[tuple[str, str], float]:
        """Seconds an epoch, by row and task."""
        found: dict[tuple[str, str], list[float]] = {}
        for job, run in self._runs.items():
            if len(run.seconds) > 1 or (run.seconds and run.finished):
                found.setdefault((job.run, job.task), []).append(statistics.fmean(run.seconds[1:] or run.seconds))
        return {key: statistics.fmean(values) for key, values in found.items()}

    def _outside(self) -> float:
        """Of a run, in seconds: of those that are finished, else of those under way up to their last epoch."""
        known = [run for run in self._runs.values() if run.outside is not None]
        known = [run for run in known if run.finished] or known
        return statistics.fmean(run.outside for run in known) if known else 0.0

    def _needed(self, job: Job, epochs: int, pace: float, outside: float) -> float:
        run = self._runs.get(job)
        if run is None:
            return outside + epochs * pace
        rest = max(epochs - len(run.seconds), 0)
        # The epoch under way may take longer than its pace, those behind it are still to come.
        return max(outside + rest * pace - run.spent(time.monotonic()), (rest - 1) * pace, 0.0)
