"""``--tensorboard``: the same numbers as the bar and results.json, as scalars."""

from __future__ import annotations

import math
import threading

from akd_ext.filesystem import errors_name_path
from akd_ext.train.system.errors import ConfigError


class TensorBoardLogger:
    """Writes to ``folder``; does nothing if it is None. What is there from step ``purge_step`` on is made anew.

    Raises:
        ConfigError: tensorboard is not installed.
        OSError: the folder cannot be written to; also later, from `add` and `close`.
    """

    def __init__(self, folder: str | None, purge_step: int | None = None):
        self._writer, self._folder = None, folder
        if folder is not None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ConfigError("--tensorboard: tensorboard is not installed; pip install tensorboard") from error
            with errors_name_path(folder):
                self._writer = SummaryWriter(folder, purge_step=purge_step)
            self._excepthook, threading.excepthook = threading.excepthook, self._on_thread_end

    def add(self, step: int, values: dict[str, float | None]) -> None:
        for name, value in values.items() if self._writer is not None else ():
            if value is not None and math.isfinite(value):
                with errors_name_path(self._folder):
                    self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes what is left; a second time does nothing."""
        writer, self._writer = self._writer, None
        if writer is not None:
            try:
                with errors_name_path(self._folder):
                    writer.close()
            finally:
                threading.excepthook = self._excepthook

    def _on_thread_end(self, args: threading.ExceptHookArgs) -> None:
        """tensorboard's thread hands its error to the next `add` or `close`; Python would print a traceback as well."""
        if not type(args.thread).__module__.startswith("tensorboard."):
            self._excepthook(args)
