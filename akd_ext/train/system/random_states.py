"""Random numbers that are drawn on the side and leave no trace."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy
import torch


@contextlib.contextmanager
def random_states_put_back() -> Iterator[None]:
    """Within it Python, NumPy and PyTorch draw as they like; after it they go on as if nothing had been drawn."""
    states = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []):
            yield
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])
