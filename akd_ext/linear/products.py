"""Matrix products whose result is float32 (or float64) from the product on, whatever the inputs.

Near its teacher a student's loss is a small difference of large numbers: a Gram matrix with the 8 bits of bfloat16, or
the 10 of TF32, would leave nothing of it. Where full float32 products are slow (GPUs), a float32 factor is split into two
bfloat16 ones, ``x = hi + lo``, and ``hi hi + hi lo + lo hi`` keeps 16 bits at the speed of three bfloat16 products.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from akd_ext.op.private_torch import constant_when_compiled


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 when one of the tensors is, else float32."""
    return torch.float64 if any(tensor.dtype is torch.float64 for tensor in tensors) else torch.float32


def splits(device: torch.device, dtypes: tuple[torch.dtype, ...]) -> bool:
    """Whether products are made of bfloat16 halves: on a GPU, for inputs of 16 bits, or where float32 means TF32."""
    if device.type != "cuda":
        return False
    low = any(dtype in (torch.bfloat16, torch.float16) for dtype in dtypes)
    return low or float32_is_rounded()


@constant_when_compiled
def float32_is_rounded() -> bool:
    """Whether a GPU's products round float32 to TF32: asked so that either of torch's ways to set that is heard.

    ``get_float32_matmul_precision`` raises once ``torch.backends.fp32_precision`` was set, as transformers does for ``tf32=True``.
    """
    return torch.backends.cuda.matmul.fp32_precision not in ("ieee", "none")


def matmul(a: Tensor, b: Tensor, split: bool = False) -> Tensor:
    """``a @ b`` of two float32 or two float64 matrices."""
    if not split or a.dtype is torch.float64:
        return torch.mm(a, b)
    (a_high, a_low), (b_high, b_low) = _halves(a), _halves(b)
    return _exact(a_high, b_high) + (_exact(a_high, b_low) + _exact(a_low, b_high))


def add_matmul(total: Tensor, a: Tensor, b: Tensor, split: bool = False) -> Tensor:
    """Adds ``a @ b`` to ``total``."""
    if not split or a.dtype is torch.float64:
        return total.addmm_(a, b)
    return total.add_(matmul(a, b, split))


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    high = x.to(torch.bfloat16)
    return high, (x - high.to(x.dtype)).to(torch.bfloat16)


def _exact(a: Tensor, b: Tensor) -> Tensor:
    # The product of two bfloat16 numbers is exact in float32; only the sum is rounded.
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a.float(), b.float())


def without_autocast(method: Callable) -> Callable:
    """For forward and backward of an autograd.Function: autocast would round the products to 16 bits."""

    @functools.wraps(method)
    def wrapped(ctx: Any, first: Tensor, *rest: Any) -> Any:
        with torch.autocast(first.device.type, enabled=False):
            return method(ctx, first, *rest)

    return wrapped


def first_order(backward: Callable) -> Callable:
    """For a backward that is no operation autograd could differentiate: to be asked for that is an error, not silence."""
    once = torch.autograd.function.once_differentiable(without_autocast(backward))

    @functools.wraps(backward)
    def wrapped(ctx: Any, *upstream: Tensor) -> Any:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "backward(create_graph=True) reached a linear loss, which has no second derivative; accepted: "
                "create_graph=False, or the loss of the logits"
            )
        return once(ctx, *upstream)

    return wrapped
