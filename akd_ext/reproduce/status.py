"""What `akd-reproduce` shows while runs are under way: one live line, or a plain one every minute without a terminal."""

from __future__ import annotations

import datetime
import shutil
import sys
import time
from collections.abc import Iterable
from typing import TextIO

from .jobs import Job, read
from .recipes import stages
from .time_left import TimeLeft

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


def _reached(job: Job, done: list[dict]) -> tuple[str, str, str]:
    """How far a run is: in words as ``akd-train``'s own line has them, in fewer characters, in the fewest."""
    if job.pretrained:
        return f"{job.label}: its test", f"{job.label} test", f"{job.label} test"
    if not done and not job.folder.results.exists():  # Python imports, the first batch is tried
        return f"{job.label}: starts", f"{job.label} starts", f"{job.label} starts"
    count = all_epochs(job)
    if not done:
        return f"{job.label}: in epoch 1/{count}", f"{job.label} 0/{count}", f"{job.label} 0/{count}"
    score, metrics = format_accuracy(done[-1]["val_accuracy"]), list(done[-1].get("val_metrics", ()))
    score = f"{metrics[0]} {score}" if metrics else f"{score} %"  # text has metrics, of which the first one chooses
    short = f"{job.label} {len(done)}/{count}"
    return f"{job.label}: epoch {len(done)}/{count}, val {score}", f"{short} {score}", short


def _seconds(epochs: list[dict]) -> list[float]:
    return [epoch.get("seconds", 0.0) for epoch in epochs]


def _within(width: int | None, head: str, runs: list[tuple[str, str, str]]) -> str:
    """The longest form of the runs that there is room for; if there is none for the shortest, as many runs as fit."""
    forms = [" | ".join([head, *form]) for form in zip(*runs, strict=True)] or [head]
    if width is None:
        return forms[0]
    for shown in range(len(runs) - 1, -1, -1):
        forms.append(" | ".join([head, *(run[-1] for run in runs[:shown]), f"{len(runs) - shown} more"]))
    return next((form for form in forms if len(form) <= width), head[:width])


class StatusLine:
    """Shows how far the runs are, and prints other lines without mixing them up with that.

    Args:
        jobs: all runs.
        at_once: how many of them run at a time.
        stream: where to; None: ``sys.stdout``.
    """

    def __init__(self, jobs: Iterable[Job], at_once: int, stream: TextIO | None = None):
        self._left, self._time_left = list(jobs), TimeLeft(at_once)
        self._all, self._stream = len(self._left), stream or sys.stdout
        self._live = self._stream.isatty()
        self._last_line = time.monotonic()
        self._drawn = False

    def print_line(self, text: str) -> None:
        """Print a line that stays."""
        # In one piece: print() writes text and newline apart, so two threads would mix their lines.
        self._stream.write(f"{self._erase()}{text}\n")
        self._stream.flush()

    def finished(self, job: Job, seconds: float | None) -> None:
        """A run is done, after so many seconds or, None, since long; ``[3/14]`` counts it."""
        self._left.remove(job)
        self._time_left.finish(job, _seconds(epochs_done(job)), seconds)

    @property
    def counter(self) -> str:
        return f"[{self._all - len(self._left)}/{self._all}]"

    def update(self, running: Iterable[Job]) -> None:
        """Draw the line anew, or print it if a minute has passed and there is no terminal."""
        text = self.text(running, shutil.get_terminal_size().columns - 1 if self._live else None)
        if self._live:
            self._stream.write(f"{self._erase()}{text}")
            self._stream.flush()
            self._drawn = True
        elif time.monotonic() - self._last_line >= EVERY:
            self._last_line = time.monotonic()
            self.print_line(text)

    def text(self, running: Iterable[Job], width: int | None = None) -> str:
        """Runs done, time left, each running run's epoch and validation; in ``width`` columns, if it is given."""
        runs = []
        for job in running:
            epochs = epochs_done(job)
            self._time_left.note(job, _seconds(epochs))
            runs.append(_reached(job, epochs))
        head = f"{self.counter[1:-1]} runs done"
        seconds = self._time_left.seconds({job: all_epochs(job) for job in self._left})
        if self._left and seconds is not None:
            head += f", about {datetime.timedelta(seconds=round(seconds))} left"
        return _within(width, head, runs)

    def close(self) -> None:
        """Leave no half line behind."""
        self._stream.write(self._erase())
        self._stream.flush()

    def _erase(self) -> str:
        drawn, self._drawn = self._drawn, False
        return "\r\x1b[K" if drawn else ""
