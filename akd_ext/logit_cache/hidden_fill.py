"""How hidden states get into their file: what a fill gives is checked, and goes to the end as it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .file import DTYPES, Entry, Kind, header, write_at
from .fingerprint import raw_bytes
from .head import TeacherHead
from .samples import Coverage

Fill = Callable[[], Iterable[tuple[Tensor, Tensor, Tensor]]]

# More than anybody has: keeps room in the header, which is written last.
_MOST_TOKENS = 10**15


def _is_valid(tensors: Mapping[str, Entry], metadata: Mapping[str, str]) -> bool:
    spans, hidden = tensors["spans"], tensors["hidden"]
    if spans.dtype is not torch.int64 or len(spans.shape) != 2 or spans.shape[1] != 2:
        return False
    weight = tensors.get("head_weight", Entry(hidden.dtype, (1, hidden.shape[-1])))
    bias = tensors.get("head_bias", Entry(hidden.dtype, weight.shape[:1]))
    float(metadata.get("logit_scale", "1"))
    return (
        {*tensors} <= {"spans", "head_weight", "head_bias", "hidden"}
        and all(entry.dtype in DTYPES.values() for entry in (hidden, weight, bias))
        and len(hidden.shape) == len(weight.shape) == 2
        and hidden.shape[1] == weight.shape[1]
        and bias.shape == weight.shape[:1]
    )


KIND = Kind("akd_ext hidden state cache, version 1", "states", _is_valid)


def _collect(fill: Fill, num_samples: int, dtype: torch.dtype | None, begin: Callable) -> Tensor:
    """Checks what ``fill`` gives; ``begin(width, dtype)``, called once, returns ``append(rows)``. Returns the spans."""
    append, first, coverage, at = None, None, Coverage(num_samples), 0
    spans = torch.zeros(num_samples, 2, dtype=torch.int64)
    for given in fill():
        if len(given) != 3:
            raise ValueError(
                f"fill: it gave {len(given)} values; accepted: index, states, and lengths or an attention mask"
            )
        index, hidden, tokens = given
        index = torch.as_tensor(index).to("cpu", torch.int64)
        rows, lengths = _rows_of(index, hidden, tokens, dtype)
        made = rows.shape[1], rows.dtype
        if append is None:
            append, first = begin(*made), made
        elif made != first:
            raise ValueError(f"fill: states of width and dtype {made} came after {first}; accepted: all alike")
        coverage.add(index)
        ends = at + lengths.cumsum(0)
        spans[index] = torch.stack([ends - lengths, ends], 1)
        at = int(ends[-1])
        append(rows)
    coverage.check_complete()
    if not at:
        raise ValueError("fill: no sample has a token; accepted: at least one")
    return spans


def _rows_of(index: Tensor, hidden: Tensor, tokens: Any, dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
    """What is kept of ``hidden``, ``[tokens, H]``, and how much of each sample."""
    is_batch = isinstance(hidden, Tensor) and hidden.ndim == 3 and index.ndim == 1 and len(hidden) == len(index)
    if not is_batch or not hidden.numel() or (dtype or hidden.dtype) not in DTYPES.values():
        what = f"{list(hidden.shape)} of {hidden.dtype}" if isinstance(hidden, Tensor) else type(hidden).__name__
        raise ValueError(
            f"fill: indices {list(index.shape)} came with states {what}; accepted: [B] and [B, L, H] of "
            f"{', '.join(map(str, DTYPES.values()))}"
        )
    mask = torch.as_tensor(tokens)
    if mask.ndim == 1 and len(mask) == len(index):
        if mask.is_floating_point() or mask.dtype is torch.bool or mask.min() < 0 or mask.max() > hidden.shape[1]:
            raise ValueError(f"fill: lengths are {mask.tolist()}; accepted: integers from 0 to {hidden.shape[1]}")
        mask = torch.arange(hidden.shape[1], device=mask.device) < mask.unsqueeze(1)
    mask = as_mask("fill: the mask", mask, *hidden.shape[:2]).to(hidden.device)
    return hidden.detach()[mask].to("cpu", dtype or hidden.dtype).contiguous(), mask.sum(1).cpu()


def as_mask(name: str, mask: Any, *shape: int) -> Tensor:
    """bool ``[B, L]``; the lengths in ``shape`` are checked."""
    mask = torch.as_tensor(mask)
    is_mask = mask.ndim == 2 and mask.shape[: len(shape)] == shape and not mask.is_floating_point()
    if not is_mask or (mask.dtype is not torch.bool and ((mask != 0) & (mask != 1)).any()):
        wanted = ", ".join(map(str, (*shape, "L")[:2]))
        raise ValueError(
            f"{name} is {mask.dtype} {list(mask.shape)}; accepted: [{wanted}] of True and False, or 1 and 0"
        )
    return mask.bool()


def in_memory(fill: Fill, num_samples: int, dtype: torch.dtype | None, head: TeacherHead | None) -> tuple:
    parts: list[Tensor] = []

    def begin(width: int, dtype: torch.dtype) -> Callable[[Tensor], None]:
        _check_width(head, width)
        return parts.append

    spans = _collect(fill, num_samples, dtype, begin)
    return torch.cat(parts), spans


def _check_width(head: TeacherHead | None, width: int) -> None:
    if head is not None and head.weight.shape[1] != width:
        raise ValueError(f"head: its width is {head.weight.shape[1]}; accepted: {width}, that of the states")


def write(
    file: BinaryIO, identity: dict, fill: Fill, num_samples: int, dtype: torch.dtype | None, head: TeacherHead | None
) -> None:
    """The states go to the end of the file as they come; the header and the spans, of known sizes, come last."""
    writer = _Writer(file, identity, num_samples, head)
    writer.finish(_collect(fill, num_samples, dtype, writer.begin))


class _Writer:
    def __init__(self, file: BinaryIO, identity: dict, num_samples: int, head: TeacherHead | None) -> None:
        self._file, self._identity, self._samples, self._head = file, identity, num_samples, head
        self._stored = {} if head is None else {"head_weight": head.weight, "head_bias": head.bias}
        self._stored = {name: x.cpu().contiguous() for name, x in self._stored.items() if x is not None}

    def _header(self, tokens: int, room: int = 0) -> bytes:
        stored = {name: Entry(x.dtype, tuple(x.shape)) for name, x in self._stored.items()}
        spans, hidden = Entry(torch.int64, (self._samples, 2)), Entry(self._dtype, (tokens, self._width))
        scale = {"logit_scale": repr(self._head.logit_scale)} if stored else {}
        return header(KIND, self._identity, {"spans": spans, **stored, "hidden": hidden}, scale, room)

    def begin(self, width: int, dtype: torch.dtype) -> Callable[[Tensor], None]:
        _check_width(self._head, width)
        self._width, self._dtype = width, dtype
        self._room = len(self._header(_MOST_TOKENS))
        self._at = self._room + 16 * self._samples
        for tensor in self._stored.values():
            self._append(tensor)
        self._begin = self._at
        return self._append

    def _append(self, rows: Tensor) -> None:
        write_at(self._file, raw_bytes(rows), self._at)
        self._at += rows.nbytes

    def finish(self, spans: Tensor) -> None:
        tokens = (self._at - self._begin) // (self._width * self._dtype.itemsize)
        write_at(self._file, self._header(tokens, self._room), 0)
        write_at(self._file, raw_bytes(spans), self._room)
