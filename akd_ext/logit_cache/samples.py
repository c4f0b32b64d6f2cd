"""Which samples of a dataset: those that are asked for, and those that a fill has given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def check_index(index: Any) -> None:
    """TypeError, unless ``index`` is an int64 or int32 tensor ``[B]``."""
    if not isinstance(index, Tensor) or index.dtype not in (torch.int64, torch.int32) or index.ndim != 1:
        form = f"{index.dtype} {list(index.shape)}" if isinstance(index, Tensor) else type(index).__name__
        raise TypeError(f"index is {form}; accepted: an int64 or int32 tensor [B]")


def outside(index: Tensor, num_samples: int) -> IndexError:
    return IndexError(f"index holds {int(index.min())} to {int(index.max())}; accepted: 0 to {num_samples - 1}")


class Coverage:
    """That a fill gives each of ``num_samples`` samples once, in any order."""

    def __init__(self, num_samples: int) -> None:
        self._seen = torch.zeros(num_samples, dtype=torch.bool)

    def add(self, index: Tensor) -> None:
        """int64 ``[B]`` on the CPU, B > 0."""
        last = len(self._seen) - 1
        if index.min() < 0 or index.max() > last or self._seen[index].any() or len(index.unique()) < len(index):
            raise ValueError(f"fill: an index came twice or is outside of 0..{last}; accepted: each once")
        self._seen[index] = True

    def check_complete(self) -> None:
        if not len(self._seen) or not self._seen.all():
            given = int(self._seen.sum())
            raise ValueError(f"fill: it gave {given} samples; accepted: each of the {len(self._seen)} once")
