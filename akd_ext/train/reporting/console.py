"""Where log lines go: short ones to the console without tearing the progress bar, all of them to the files."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from .folding import folded

LOGGERS = ("akd_ext.train", "akd_ext.logit_cache")
_FORMAT = "%(asctime)s\t%(levelname)s\t%(name)s\t%(message)s"  # torchdistill's own, for tools that read its logs


class _Console(logging.Handler):
    """Our own lines, and everybody's warnings. ``step_lines``: also the lines between epochs, if there is no bar."""

    def __init__(self, quiet: bool):
        super().__init__(logging.INFO)
        self.quiet, self.step_lines = quiet, True

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "file_only", False):
            return
        loud = record.levelno >= logging.WARNING
        mine = record.name.startswith(LOGGERS) and not self.quiet
        if getattr(record, "step_line", False) and not self.step_lines:
            mine = False
        if loud or mine:
            text = record.getMessage()
            tqdm.write(folded(f"{record.levelname.lower()}: {text}" if loud else text, sys.stderr), file=sys.stderr)


class _Buffer(logging.Handler):
    """Keeps the first lines until the log file may exist: a bad configuration must not touch an old run's folder."""

    def __init__(self):
        super().__init__(logging.INFO)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


class _File(logging.FileHandler):
    """A log file. When it cannot be written the run ends: logging itself would print a traceback for every line."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        logging.getLogger().removeHandler(self)  # once
        raise OSError(error.errno, error.strerror, self.baseFilename) from error

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what it could not write it has reported
            super().close()


class Logs:
    def __init__(self, quiet: bool):
        self.console, self._buffer = _Console(quiet), _Buffer()
        self.handlers: list[logging.Handler] = [self.console, self._buffer]
        self.files: list[str] = []

    def open(self, *paths: str | None, go_on: bool = False) -> None:
        """Starts the log files, or goes on with them, and writes into them what was logged before."""
        root = logging.getLogger()
        for path in filter(None, paths):
            path = os.path.expanduser(path)
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            handler = _File(path, mode="a" if go_on else "w", encoding="utf-8")
            self.handlers.append(handler)
            handler.setLevel(logging.INFO)
            handler.setFormatter(logging.Formatter(_FORMAT))
            for record in self._buffer.records:
                handler.handle(record)
            root.addHandler(handler)
            self.files.append(path)
        root.removeHandler(self._buffer)
        self._buffer.records.clear()


@contextmanager
def logging_set_up(quiet: bool = False) -> Iterator[Logs]:
    """Takes over logging for one run and gives it back, so that runs can follow each other in one process."""
    root, logs = logging.getLogger(), Logs(quiet)
    level = root.level
    for handler in logs.handlers:
        root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield logs
    finally:
        logging.captureWarnings(False)
        root.setLevel(level)
        for handler in logs.handlers:
            root.removeHandler(handler)
            handler.close()
