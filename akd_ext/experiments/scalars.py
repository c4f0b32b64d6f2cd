"""``--tensorboard``: the same numbers as the bar and results.json, as scalars."""

from __future__ import annotations

import math

from .errors import ConfigError


class Scalars:
    """Writes to ``folder``; does nothing if it is None. What is there from step ``purge_step`` on is made anew.

    Raises:
        ConfigError: tensorboard is not installed.
    """

    def __init__(self, folder: str | None, purge_step: int | None = None):
        self._writer = None
        if folder is not None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ConfigError("--tensorboard: tensorboard is not installed; pip install tensorboard") from error
            self._writer = SummaryWriter(folder, purge_step=purge_step)

    def add(self, step: int, values: dict[str, float | None]) -> None:
        for name, value in values.items() if self._writer is not None else ():
            if value is not None and math.isfinite(value):
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
