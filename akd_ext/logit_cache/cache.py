"""A frozen teacher's logits of a whole dataset, computed once, in one file that is mapped into memory.

Annealing-KD scales the teacher's logits by Phi(T) (equation 3), so one pass serves every temperature. The file is a
safetensors file with one tensor, ``logits``; its metadata hold the identity: what the logits were computed from.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .file import DTYPES, Entry, Kind, LogitCacheError, header, unusable, write_at
from .fingerprint import as_json, raw_bytes
from .place import find_or_build, opened
from .samples import Coverage, check_index, outside

__all__ = ["LogitCache", "LogitCacheError"]

logger = logging.getLogger(__name__)

_KIND = Kind(
    "akd_ext logit cache, version 1",
    "logits",
    lambda tensors, metadata: (
        [*tensors] == ["logits"]
        and tensors["logits"].dtype in DTYPES.values()
        and metadata["output"] in ("tensor", "logits")
    ),
)

Fill = Callable[[], Iterable[tuple[Tensor, Any]]]


class LogitCache:
    """Logits by sample index; ``cache[index]`` reads the rows of ``index`` and nothing else.

    Make one with :meth:`build_or_open`, or :meth:`open` an existing file.

    Attributes:
        logits: ``[samples, ...]``, for a file mapped memory: what is written to it stays in this process.
        identity: what the logits were computed from, as given by the one who built it.
        output: ``"logits"`` if the teacher returned an object with ``.logits``, as Hugging Face's models do, or
            ``"tensor"``.
        path: the file, or None for a cache in memory.

    >>> def fill():  # a teacher with one feature and two classes
    ...     yield torch.tensor([0, 1, 2]), torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])
    >>> cache = LogitCache.build_or_open(None, {"teacher": "a formula"}, fill, num_samples=3)
    >>> cache[torch.tensor([2, 0])].tolist()
    [[4.0, 5.0], [0.0, 1.0]]
    """

    def __init__(self, logits: Tensor, identity: dict, output: str = "tensor", path: str | None = None) -> None:
        self.logits, self.identity, self.output, self.path = logits, identity, output, path

    @classmethod
    def build_or_open(
        cls,
        place: str | os.PathLike | None,
        identity: dict,
        fill: Fill,
        *,
        num_samples: int,
        dtype: torch.dtype | None = None,
    ) -> LogitCache:
        """The cache of ``identity``: opened where it exists, else built from ``fill()``.

        Of several processes that ask at the same time, one builds and the others wait for it; nobody sees half a file,
        also when the builder is killed.

        Args:
            place: a file, if it ends in ``.safetensors``; a folder for any number of caches, each under a name made
                from its identity; or None for memory only.
            identity: a dict that JSON can hold. Put into it everything the logits depend on:
                :func:`akd_ext.logit_cache.fingerprint.describe_teacher` and ``describe_dataset`` say most of it; for text, add
                tokenizer, length and task.
            fill: called if there is no such cache. Gives pairs of indices, int64 ``[B]``, and the teacher's output for
                them, ``[B, ...]`` or an object with such ``.logits``; every index of 0..num_samples-1 once, in any
                order.
            num_samples: the number of samples in the dataset.
            dtype: what to store; ``None`` keeps the teacher's own, so that nothing is rounded. Where a folder is to
                hold both, put it into ``identity`` as well.

        Raises:
            LogitCacheError: the file is damaged or of another identity.
            TypeError, ValueError: ``identity`` is not of the form above, or ``fill`` gave something else.
            OSError: the place cannot be written to. Nothing half-written is left.
        """
        identity, start = as_json(identity), time.perf_counter()
        if place is None:
            cache = cls._build_in_memory(identity, fill, num_samples, dtype)
        else:
            write = functools.partial(_write, identity=identity, fill=fill, num_samples=num_samples, dtype=dtype)
            cache = cls.open(find_or_build(place, _KIND, identity, write), identity)
            if len(cache) != num_samples or dtype not in (None, cache.logits.dtype):
                wanted = f"{num_samples} samples in {dtype or 'any dtype'}"
                raise unusable(cache.path, f"it holds {cache}; wanted: {wanted}")
        where = cache.path or "memory"
        logger.info("teacher logits: %s in %s, ready after %.3g s", cache, where, time.perf_counter() - start)
        return cache

    @classmethod
    def _build_in_memory(cls, identity: dict, fill: Fill, num_samples: int, dtype: torch.dtype | None) -> LogitCache:
        made: list[Any] = []

        def begin(shape: tuple[int, ...], dtype: torch.dtype, output: str) -> Callable[[Tensor, Tensor], None]:
            made.extend([torch.empty(shape, dtype=dtype), identity, output])
            return made[0].__setitem__

        _collect(fill, num_samples, dtype, begin)
        return cls(*made)

    @classmethod
    def open(cls, path: str | os.PathLike, identity: dict | None = None, *, verify: bool = True) -> LogitCache:
        """The cache in the file ``path``.

        Args:
            path: the file.
            identity: what it must hold the logits of; ``None`` takes any.
            verify: compare the checksum of the whole file: about a second per gigabyte.

        Raises:
            LogitCacheError: the file is no cache, is cut off, was changed after it was written, or its identity
                differs; the message lists the keys that do.
            OSError: the file cannot be read.
        """
        file = opened(path, _KIND, identity, verify)
        return cls(file.tensors()["logits"], file.identity, file.metadata["output"], file.path)

    def to(self, device: torch.device | str) -> LogitCache:
        """A copy whose logits are on ``device`` (itself if they are already)."""
        return LogitCache(self.logits.to(device), self.identity, self.output, self.path)

    def __getitem__(self, index: Tensor) -> Tensor:
        """The logits ``[B, ...]`` of the samples ``index``, int64 or int32 ``[B]``, on the device of ``logits``.

        Raises:
            TypeError: ``index`` is not of that form.
            IndexError: an index is outside of the dataset (on an accelerator, whatever that does).
        """
        check_index(index)
        try:
            return self.logits.index_select(0, index.to(self.logits.device))
        except IndexError:
            raise outside(index, len(self)) from None

    def __len__(self) -> int:
        return len(self.logits)

    def __str__(self) -> str:
        shape = " x ".join(map(str, self.logits.shape))
        return f"{shape} {str(self.logits.dtype).removeprefix('torch.')} ({self.logits.nbytes / 1e6:.3g} MB)"


def logits_of(output: Any) -> tuple[Tensor, str]:
    """The logits in a teacher's output, and how they came: ``"tensor"`` or ``"logits"``."""
    if isinstance(output, Tensor):
        return output, "tensor"
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits, "logits"
    raise TypeError(f"the teacher's output is a {type(output).__name__}; accepted: a tensor, or an object with .logits")


def _collect(fill: Fill, num_samples: int, dtype: torch.dtype | None, begin: Callable) -> None:
    """Checks what ``fill`` gives. ``begin(shape, dtype, output)``, called once, returns ``put(index, rows)``."""
    put, first, coverage = None, None, Coverage(num_samples)
    for index, output in fill():
        logits, kind = logits_of(output)
        rows = logits.detach().to("cpu", dtype or logits.dtype).contiguous()
        index = torch.as_tensor(index).to("cpu", torch.int64)
        made = (tuple(rows.shape[1:]), rows.dtype, kind)
        if not rows.ndim or len(rows) != len(index) or not rows.numel() or rows.dtype not in DTYPES.values():
            raise ValueError(
                f"fill: {len(index)} indices came with logits {list(rows.shape)} of {rows.dtype}; accepted: a row for "
                f"each, of {', '.join(map(str, DTYPES.values()))}"
            )
        if put is None:
            put, first = begin((num_samples, *made[0]), *made[1:]), made
        elif made != first:
            raise ValueError(f"fill: a row of shape, dtype and kind {made} came after {first}; accepted: all alike")
        coverage.add(index)
        put(index, rows)
    coverage.check_complete()


def _write(file: BinaryIO, identity: dict, fill: Fill, num_samples: int, dtype: torch.dtype | None) -> None:
    def begin(shape: tuple[int, ...], dtype: torch.dtype, output: str) -> Callable[[Tensor, Tensor], None]:
        entry = Entry(dtype, shape)
        start = header(_KIND, identity, {"logits": entry}, {"output": output})
        write_at(file, start, 0)
        return functools.partial(_put, file, len(start), entry.nbytes // num_samples)

    _collect(fill, num_samples, dtype, begin)


def _put(file: BinaryIO, start: int, size: int, index: Tensor, rows: Tensor) -> None:
    """Writes rows of ``size`` bytes where they belong."""
    data, first = raw_bytes(rows), int(index[0])
    if torch.equal(index, torch.arange(first, first + len(index))):
        write_at(file, data, start + first * size)
        return
    for row, at in enumerate(index.tolist()):
        write_at(file, data[row * size : (row + 1) * size], start + at * size)
