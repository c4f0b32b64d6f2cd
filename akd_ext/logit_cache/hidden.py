"""A frozen language model's hidden states of a whole data set, token by token, in one file that is mapped into memory.

Logits are linear in hidden states, ``z = h W' + b``, so states and head give the exact logits at any temperature: H numbers
a token in place of V. The file is a safetensors file with the tensors ``spans`` (int64 ``[samples, 2]``: where a sample's
tokens begin and end), ``hidden`` (``[tokens, H]``, in the order in which they came) and, if it was given, the head.
"""

from __future__ import annotations

import functools
import logging
import numbers
import os
import time
from typing import Any

import torch
from torch import Tensor

from .file import unusable
from .fingerprint import as_json
from .head import TeacherHead, checked_head, with_head
from .hidden_fill import KIND, Fill, as_mask, in_memory, write
from .place import find_or_build, opened
from .samples import check_index, outside

logger = logging.getLogger(__name__)


class HiddenStateCache:
    """Hidden states by sample index, ragged: as many as the sample has tokens. Only what is asked for is read.

    Make one with :meth:`build_or_open`, or :meth:`open` an existing file. A worker process of a DataLoader gets the path,
    not the states.

    Attributes:
        hidden: ``[tokens, H]``, for a file mapped memory: what is written to it stays in this process.
        spans: int64 ``[samples, 2]``: sample i has ``hidden[spans[i, 0] : spans[i, 1]]``.
        identity: what the states were computed from, as given by the one who built it, and ``"head"``.
        head: a :class:`TeacherHead`: the weight ``[V, H]``, its bias and the factor of the logits; None if none was given.
        path: the file, or None for a cache in memory.

    >>> def fill():  # a teacher of width 2: sample 0 has two tokens, sample 1 one
    ...     states = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [0.0, 0.0]]])
    ...     yield torch.tensor([0, 1]), states, torch.tensor([2, 1])
    >>> cache = HiddenStateCache.build_or_open(None, {"teacher": "a formula"}, fill, num_samples=2)
    >>> cache[1].tolist()
    [[5.0, 6.0]]
    >>> cache.padded(torch.tensor([1, 0])).tolist()
    [[[5.0, 6.0], [0.0, 0.0]], [[1.0, 2.0], [3.0, 4.0]]]
    """

    def __init__(
        self, hidden: Tensor, spans: Tensor, identity: dict, head: TeacherHead | None = None, path: str | None = None
    ) -> None:
        self.hidden, self.spans, self.identity, self.head, self.path = hidden, spans, identity, head, path
        self._head_beside: TeacherHead | None = None  # not in the file, so a copy in a worker has to be given it

    @classmethod
    def build_or_open(
        cls,
        place: str | os.PathLike | None,
        identity: dict,
        fill: Fill,
        *,
        num_samples: int,
        dtype: torch.dtype | None = None,
        head: tuple | None = None,
    ) -> HiddenStateCache:
        """The cache of ``identity``: opened where it exists, else built from ``fill()``.

        Of several processes that ask at the same time, one builds and the others wait for it; nobody sees half a file,
        also when the builder is killed. What ``fill`` gives goes to the file batch by batch.

        Args:
            place: a file, if it ends in ``.safetensors``; a folder for any number of caches, each under a name made
                from its identity; or None for memory only.
            identity: a dict that JSON can hold. Put into it everything the states depend on:
                :func:`akd_ext.logit_cache.describe_language_model` says it for a Hugging Face model.
            fill: called if there is no such cache. Gives triples of indices, int64 ``[B]``; hidden states ``[B, L, H]``,
                what the head is applied to; and which of them to keep: int64 ``[B]``, the first so many of each sample,
                or ``[B, L]`` of True and False (or 1 and 0), an attention mask with padding on any side.
                Every index of 0..num_samples-1 once, in any order; :func:`akd_ext.logit_cache.hidden_states_of` makes them.
            num_samples: the number of samples in the data set.
            dtype: what to store; ``None`` keeps the teacher's own, so that nothing is rounded. Where a folder is to
                hold both, put it into ``identity`` as well.
            head: the teacher's head, ``(weight [V, H], bias [V] or None, logit_scale)``, e.g. from
                :func:`akd_ext.linear.output_head`. It is described in the identity under ``"head"`` and stored beside the
                states, so that the file is all that a loss needs.

        Raises:
            LogitCacheError: the file is damaged or of another identity; the message lists the keys that differ.
            TypeError, ValueError: ``identity`` or ``head`` is not of the form above, or ``fill`` gave something else.
            OSError: the place cannot be written to. Nothing half-written is left.
        """
        start = time.perf_counter()
        head = None if head is None else checked_head(head)
        identity = with_head(as_json(identity), head)
        rest = {"fill": fill, "num_samples": num_samples, "dtype": dtype, "head": head}
        if place is None:
            cache = cls(*in_memory(**rest), identity, head)
        else:
            path = find_or_build(place, KIND, identity, functools.partial(write, identity=identity, **rest))
            cache = cls.open(path, identity)
            if len(cache) != num_samples or dtype not in (None, cache.hidden.dtype):
                wanted = f"{num_samples} samples in {dtype or 'any dtype'}"
                raise unusable(cache.path, f"it holds {cache}; wanted: {wanted}")
            # A file by somebody who did not have the head stored: its bytes are in the identity.
            if cache.head is None:
                cache.head = cache._head_beside = head
        where = cache.path or "memory"
        logger.info("teacher states: %s in %s, ready after %.3g s", cache, where, time.perf_counter() - start)
        return cache

    @classmethod
    def open(cls, path: str | os.PathLike, identity: dict | None = None, *, verify: bool = True) -> HiddenStateCache:
        """The cache in the file ``path``.

        Args:
            path: the file.
            identity: what it must hold the states of, with ``"head"`` if a head was given; ``None`` takes any.
            verify: compare the checksum of the whole file: about a second per gigabyte.

        Raises:
            LogitCacheError: the file is no such cache, is cut off, was changed after it was written, or its identity
                differs; the message lists the keys that do.
            OSError: the file cannot be read.
        """
        file = opened(path, KIND, identity, verify)
        found = file.tensors()
        hidden, spans, head = found["hidden"], found["spans"], None
        if spans.min() < 0 or spans.max() > len(hidden) or (spans[:, 0] > spans[:, 1]).any():
            raise unusable(file.path, "its content has changed since it was written (tokens outside of the file)")
        if "head_weight" in found:
            head = TeacherHead(found["head_weight"], found.get("head_bias"), float(file.metadata["logit_scale"]))
        return cls(hidden, spans, file.identity, head, file.path)

    def to(self, device: torch.device | str) -> HiddenStateCache:
        """A copy whose states and head are on ``device``."""
        head = self.head and TeacherHead(*(x.to(device) if isinstance(x, Tensor) else x for x in self.head))
        return HiddenStateCache(self.hidden.to(device), self.spans, self.identity, head, self.path)

    def __getitem__(self, index: int | Tensor) -> Tensor | list[Tensor]:
        """The states ``[tokens, H]`` of one sample, or a list of such for int64 or int32 ``[B]``; nothing is copied.

        Raises:
            TypeError: ``index`` is not of that form.
            IndexError: an index is outside of the data set.
        """
        if isinstance(index, numbers.Integral):  # NumPy's, too
            return self[torch.tensor([int(index)])][0]
        check_index(index)
        index = index.to("cpu", torch.int64)
        if len(index) and (index.min() < 0 or index.max() >= len(self)):
            raise outside(index, len(self))
        return [self.hidden[begin:end] for begin, end in self.spans[index].tolist()]

    def padded(
        self,
        index: Tensor,
        length: int | None = None,
        device: torch.device | str | None = None,
        *,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The states of the samples ``index`` as a batch ``[B, L, H]``; zero where there are none.

        Args:
            index: int64 or int32 ``[B]``.
            length: L; a longer sample is cut off at its end, as tokenizers do it. ``None``: that of the longest sample.
            device: where to; ``None``: where the states are.
            mask: ``[B, L]``, True or 1 where a sample's tokens stand in the batch: its attention mask, whatever the side of
                the padding. ``None``: at the beginning.

        Raises:
            TypeError, IndexError: as ``cache[index]``.
            ValueError: ``mask`` is not of that form or has another number of tokens than the cache, or ``length`` is given
                as well.
        """
        check_index(index)  # one sample's states would be taken for a batch
        pieces = self[index]
        if mask is not None:
            mask = self._checked_mask(index, mask, length, pieces)
            length = mask.shape[1]
        elif length is None:
            length = max(map(len, pieces), default=0)
        device = self.hidden.device if device is None else torch.device(device)
        pinned = device.type == "cuda" and self.hidden.is_cpu  # so that the copy runs beside the host
        batch = self.hidden.new_zeros(len(pieces), length, self.hidden.shape[1])
        batch = batch.pin_memory() if pinned else batch
        for i, states in enumerate(pieces):
            if mask is None:
                batch[i, : len(states)] = states[:length]
            else:
                batch[i, mask[i]] = states
        return batch.to(device, non_blocking=pinned)

    def _checked_mask(self, index: Tensor, mask: Tensor, length: int | None, pieces: list[Tensor]) -> Tensor:
        if length is not None:
            raise ValueError("length and mask are both given; accepted: one of them, the mask says the length")
        mask = as_mask("mask", mask, len(pieces)).to(self.hidden.device)
        for sample, there, here in zip(index.tolist(), map(len, pieces), mask.sum(1).tolist(), strict=True):
            if there != here:
                raise ValueError(
                    f"mask: sample {sample} has {here} tokens in the batch and {there} in the cache; accepted: as many"
                )
        return mask

    @property
    def lengths(self) -> Tensor:
        """int64 ``[samples]``: the tokens of each sample."""
        return self.spans[:, 1] - self.spans[:, 0]

    def __len__(self) -> int:
        return len(self.spans)

    def __str__(self) -> str:
        tokens, width = self.hidden.shape
        dtype, size = str(self.hidden.dtype).removeprefix("torch."), self.hidden.nbytes / 1e6
        return f"{len(self)} samples, {tokens} tokens x {width} {dtype} ({size:.3g} MB)"

    def __reduce__(self) -> Any:
        if self.path is None or not self.hidden.is_cpu:
            return HiddenStateCache, (self.hidden, self.spans, self.identity, self.head, self.path)
        beside = self._head_beside
        state = None if beside is None else {"head": beside, "_head_beside": beside}
        return functools.partial(HiddenStateCache.open, verify=False), (self.path, self.identity), state
