"""A few logits a token, and the normaliser of all of them, in bounded memory."""

from __future__ import annotations

import torch
from torch import Tensor

from .chunked import chunk_tokens
from .products import compute_dtype, first_order, without_autocast

# Elements of gathered rows of a head at a time.
GATHERED = 2**22


class GatheredLogits(torch.autograd.Function):
    """``hidden @ weight[indices].T + bias[indices]``: hidden ``[N, H]``, indices ``[N, k]``, result ``[N, k]``."""

    @staticmethod
    @without_autocast
    def forward(ctx, hidden, weight, bias, indices):
        ctx.save_for_backward(hidden, weight, bias, indices)
        parts = [
            torch.bmm(_rows(weight, indices[part], hidden.dtype), hidden[part].unsqueeze(2)).squeeze(2)
            for part in _parts(indices, weight)
        ]
        logits = torch.cat(parts) if parts else hidden.new_empty(indices.shape)
        return logits if bias is None else logits + bias.to(hidden.dtype)[indices]

    @staticmethod
    @first_order
    def backward(ctx, upstream):
        hidden, weight, bias, indices = ctx.saved_tensors
        by_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        by_weight = torch.zeros_like(weight, dtype=hidden.dtype) if ctx.needs_input_grad[1] else None
        for part in _parts(indices, weight):
            slope = upstream[part]
            if by_hidden is not None:
                rows = _rows(weight, indices[part], hidden.dtype)
                by_hidden[part] = torch.bmm(slope.unsqueeze(1), rows).squeeze(1)
            if by_weight is not None:
                rows = slope.unsqueeze(2) * hidden[part].unsqueeze(1)
                _add_rows(by_weight, indices[part].flatten(), rows.flatten(0, 1))
        by_bias = None
        if bias is not None and ctx.needs_input_grad[2]:
            by_bias = upstream.new_zeros(bias.shape)
            _add_rows(by_bias, indices.flatten(), upstream.flatten())
            by_bias = by_bias.to(bias.dtype)
        return by_hidden, None if by_weight is None else by_weight.to(weight.dtype), by_bias, None


def _parts(indices: Tensor, weight: Tensor):
    size = max(1, GATHERED // max(1, indices.shape[1] * weight.shape[1]))
    return [slice(start, start + size) for start in range(0, indices.shape[0], size)]


def _add_rows(out: Tensor, places: Tensor, rows: Tensor) -> None:
    """In an order that is the same at every call: on a CPU index_put_ has none, on a GPU, where it sorts, index_add_."""
    if out.is_cpu:
        out.index_add_(0, places, rows)
    else:
        out.index_put_((places,), rows, accumulate=True)


def _rows(weight: Tensor, indices: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.index_select(0, indices.flatten()).to(dtype).view(*indices.shape, -1)


class LogNormalizer(torch.autograd.Function):
    """logsumexp of ``(hidden @ weight.T + bias) / temperature`` over all classes but ``left_out`` ``[N, k]``: ``[N]``."""

    @staticmethod
    @without_autocast
    def forward(ctx, hidden, weight, bias, temperature, left_out):
        ctx.temperature = temperature
        head = _converted(weight, bias, hidden.dtype)
        parts = [
            _remaining(hidden[part], head, temperature, left_out[part]).logsumexp(1)
            for part in _token_parts(hidden, weight)
        ]
        found = torch.cat(parts) if parts else hidden.new_empty(0)
        ctx.save_for_backward(hidden, weight, bias, found, left_out)
        return found

    @staticmethod
    @first_order
    def backward(ctx, upstream):
        hidden, weight, bias, found, left_out = ctx.saved_tensors
        found = found.masked_fill(found.isneginf(), 0.0)  # nothing remains: shares of 0, not NaN
        by_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        by_weight = torch.zeros_like(weight, dtype=hidden.dtype) if ctx.needs_input_grad[1] else None
        by_bias = None
        if bias is not None and ctx.needs_input_grad[2]:
            by_bias = torch.zeros_like(bias, dtype=hidden.dtype)
        head = _converted(weight, bias, hidden.dtype)
        for part in _token_parts(hidden, weight):
            shares = _remaining(hidden[part], head, ctx.temperature, left_out[part])
            shares.sub_(found[part].unsqueeze(1)).exp_()
            shares.mul_((upstream[part] / ctx.temperature).unsqueeze(1))
            if by_hidden is not None:
                by_hidden[part] = shares @ head[0]
            if by_weight is not None:
                by_weight.addmm_(shares.t(), hidden[part])
            if by_bias is not None:
                by_bias.add_(shares.sum(0))
        by_weight = None if by_weight is None else by_weight.to(weight.dtype)
        return by_hidden, by_weight, None if by_bias is None else by_bias.to(bias.dtype), None, None


def _token_parts(hidden: Tensor, weight: Tensor):
    size = chunk_tokens(weight.shape[0])
    return [slice(start, start + size) for start in range(0, hidden.shape[0], size)]


def _converted(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """A head in the dtype of the arithmetic: once for all chunks of tokens."""
    return weight.to(dtype), None if bias is None else bias.to(dtype)


def _logits(hidden: Tensor, head: tuple[Tensor, Tensor | None], temperature: float) -> Tensor:
    weight, bias = head
    logits = hidden @ weight.t()
    if bias is not None:
        logits.add_(bias)
    return logits.div_(temperature)


def _remaining(hidden, head, temperature: float, left_out: Tensor) -> Tensor:
    return _logits(hidden, head, temperature).scatter_(1, left_out, -torch.inf)


@torch.no_grad()
def teacher_topk(hidden: Tensor, weight: Tensor, bias: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    """The k largest logits of every token and their places, ``(..., k)``."""
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= weight.shape[0]:
        raise ValueError(f"k is {k!r}; accepted: an integer from 1 to the vocabulary's {weight.shape[0]}")
    dtype = compute_dtype(hidden, weight)
    flat = hidden.reshape(-1, hidden.shape[-1]).to(dtype)
    head = _converted(weight, bias, dtype)
    with torch.autocast(hidden.device.type, enabled=False):  # or the logits had 8 bits, and neighbours were the same
        found = [_logits(flat[part], head, 1.0).topk(k, -1) for part in _token_parts(flat, weight)]
    shape = (*hidden.shape[:-1], k)
    if not found:
        return flat.new_empty(shape), torch.empty(shape, dtype=torch.int64, device=flat.device)
    return torch.cat([x.values for x in found]).view(shape), torch.cat([x.indices for x in found]).view(shape)
