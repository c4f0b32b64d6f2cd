"""What `akd-reproduce` shows while runs are under way: one live line, or a plain one every minute without a terminal."""

from __future__ import annotations

import datetime
import shutil
import statistics
import sys
import time
from collections.abc import Iterable
from typing import TextIO

from .jobs import Job, read
from .recipes import stages

EVERY = 60.0  # seconds between two lines where there is no terminal


def format_accuracy(value: float | None) -> str:
    """In per cent with two decimals; what is not a number is written as None in ``results.json``."""
    return "NaN" if value is None else f"{value:.2f}"


def all_epochs(job: Job) -> int:
    """How many epochs a run has."""
    return 0 if job.pretrained else sum(stage.epochs for stage in stages(job.config, job.overrides))


def epochs_done(job: Job) -> list[dict]:
    """The epochs that a run has behind it, as ``results.json`` has them."""
    try:
        return read(job.folder.results)["epochs"]
    except (OSError, ValueError, KeyError):
        return []


def _reached(done: list[dict], count: int) -> str:
    """The last epoch that is done, as ``akd-train``'s own line has it."""
    if not done:
        return f"epoch 1/{count} begins"
    return f"epoch {len(done)}/{count}, validation {format_accuracy(done[-1]['val_accuracy'])}"


class StatusLine:
    """Shows how far the runs are, and prints other lines without mixing them up with that.

    Args:
        jobs: all runs.
        at_once: how many of them run at a time.
        stream: where to; None: ``sys.stdout``.
    """

    def __init__(self, jobs: Iterable[Job], at_once: int, stream: TextIO | None = None):
        self._left, self._at_once = list(jobs), at_once
        self._all, self._stream = len(self._left), stream or sys.stdout
        self._live = self._stream.isatty()
        self._seconds: dict[str, list[float]] = {}  # of the epochs, by row
        self._last_line = time.monotonic()
        self._drawn = False

    def print_line(self, text: str) -> None:
        """Print a line that stays."""
        # In one piece: print() writes text and newline apart, so two threads would mix their lines.
        self._stream.write(f"{self._erase()}{text}\n")
        self._stream.flush()

    def finished(self, job: Job) -> None:
        """A run is done; ``[3/14]`` counts it."""
        self._left.remove(job)
        self._note_seconds(job, epochs_done(job))

    @property
    def counter(self) -> str:
        return f"[{self._all - len(self._left)}/{self._all}]"

    def update(self, running: Iterable[Job]) -> None:
        """Draw the line anew, or print it if a minute has passed and there is no terminal."""
        if not self._live and time.monotonic() - self._last_line < EVERY:
            return
        self._last_line = time.monotonic()
        text = self.text(running)
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write(f"{self._erase()}{text if len(text) <= width else text[: width - 3] + '...'}")
            self._stream.flush()
            self._drawn = True
        else:
            self.print_line(text)

    def text(self, running: Iterable[Job]) -> str:
        """Runs done, each running run's epoch and validation, time left."""
        parts, done = [f"{self.counter[1:-1]} runs done"], {}
        for job in running:
            epochs = done[job] = epochs_done(job)
            self._note_seconds(job, epochs)
            if job.pretrained:
                parts.append(f"{job.label}: its test")
            else:
                parts.append(f"{job.label}: {_reached(epochs, all_epochs(job))}")
        seconds = self._time_left({job: len(epochs) for job, epochs in done.items()})
        if seconds is not None:
            parts.append(f"about {datetime.timedelta(seconds=round(seconds))} left")
        return " | ".join(parts)

    def close(self) -> None:
        """Leave no half line behind."""
        self._stream.write(self._erase())
        self._stream.flush()

    def _erase(self) -> str:
        drawn, self._drawn = self._drawn, False
        return "\r\x1b[K" if drawn else ""

    def _note_seconds(self, job: Job, epochs: list[dict]) -> None:
        if epochs:
            self._seconds[job.run] = [epoch.get("seconds", 0.0) for epoch in epochs]

    def _time_left(self, done: dict[Job, int]) -> float | None:
        """A row that has not run yet is taken for the mean of those that have."""
        if not self._seconds:
            return None
        each = {run: statistics.fmean(seconds) for run, seconds in self._seconds.items()}
        mean = statistics.fmean(each.values())
        needed = [each.get(job.run, mean) * max(all_epochs(job) - done.get(job, 0), 0) for job in self._left]
        return max(sum(needed) / self._at_once, max(needed, default=0.0))
