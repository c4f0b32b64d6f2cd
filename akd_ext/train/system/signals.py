"""SIGTERM and Ctrl-C: between two steps, not in the middle of one."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
# How long a DataLoader's worker outlives a SIGTERM that was sent to all processes: its batch may still be needed.
_WORKER_SECONDS = 30


class Stopped(KeyboardInterrupt):
    """The run was asked to stop. No Exception: what handles errors on the way must not swallow it."""


class Stop:
    """While it is open, a signal raises `Stopped`; with ``deferred`` the first one is only noted, in ``asked``.

    A second Ctrl-C raises `Stopped` wherever it comes. A second SIGTERM does not: a terminal sends Ctrl-C to all
    processes, and ``akd-reproduce`` then sends SIGTERM after it.

    Attributes:
        deferred: whoever sets it looks at ``asked`` between two steps.
        asked: what the user is told that stopped the run; None: nothing has.
        saved: from where the same command would go on; None: there is nothing to go on from.
    """

    def __init__(self) -> None:
        self.asked: str | None = None
        self.saved: str | None = None
        self.deferred = False
        self._interrupts, self._before = 0, {}

    def __enter__(self) -> Stop:
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():  # handlers can only be set there
            self._before = {number: signal.signal(number, self._handle) for number in NAMES}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set from Python

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked worker: its process decides, by closing the loader
            if number == signal.SIGTERM:
                signal.alarm(_WORKER_SECONDS)
            return
        self._interrupts += number == signal.SIGINT
        first, self.asked = self.asked is None, self.asked or NAMES[signal.Signals(number)]
        if not self.deferred or self._interrupts > 1:
            raise Stopped(self.asked)
        if first:
            # Not print: a handler may interrupt one.
            os.write(2, b"\nakd-train: finishing the step and saving; Ctrl-C again stops at once\n")
