"""The same op as a straightforward Triton kernel: the stand-in for what Triton loss libraries do.

One program a block, the gradient stored in the forward pass, the partial sums added up by a second kernel; backward
compares the upstream gradient with 1, which waits for the device, and multiplies where it differs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096


@triton.jit
def _forward(student, teacher, gradient, partial, kept, phi, scale, numel, classes,
             WITH_GRADIENT: tl.constexpr, WITH_MASK: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    block = tl.program_id(0).to(tl.int64)
    at = block * BLOCK + tl.arange(0, BLOCK)
    inside = at < numel
    if WITH_MASK:
        inside = inside & (tl.load(kept + at // classes, mask=inside, other=0) != 0)
        scale = tl.load(scale)
    s = tl.load(student + at, mask=inside, other=0.0).to(tl.float32)
    t = tl.load(teacher + at, mask=inside, other=0.0).to(tl.float32)
    difference = s - phi * t
    if WITH_GRADIENT:
        tl.store(gradient + at, (difference * scale).to(gradient.dtype.element_ty), mask=at < numel)
    tl.store(partial + block, tl.sum(difference * difference))


class _AnnealedMSE(torch.autograd.Function):
    @staticmethod
    def forward(ctx, student, teacher, phi, mask):
        blocks = triton.cdiv(student.numel(), BLOCK)
        with_gradient = ctx.needs_input_grad[0]
        gradient = torch.empty_like(student) if with_gradient else student
        partial = torch.empty(blocks, dtype=torch.float32, device=student.device)
        count = student.numel() if mask is None else mask.sum() * student.shape[-1]
        kept = student if mask is None else mask.view(torch.uint8)
        _forward[(blocks,)](
            student, teacher, gradient, partial, kept, phi, 2.0 / count, student.numel(), student.shape[-1],
            WITH_GRADIENT=with_gradient, WITH_MASK=mask is not None, BLOCK=BLOCK, num_warps=8,
        )  # fmt: skip
        ctx.gradient = gradient
        return partial.sum() / count

    @staticmethod
    def backward(ctx, upstream):
        if torch.equal(upstream, torch.ones_like(upstream)):
            return ctx.gradient, None, None, None
        return (ctx.gradient * upstream).to(ctx.gradient.dtype), None, None, None


def annealed_mse(student: Tensor, teacher: Tensor, phi: float, mask: Tensor | None = None) -> Tensor:
    """``mean((student - phi * teacher)^2)`` over the rows that ``mask`` keeps; contiguous CUDA tensors (..., classes)."""
    return _AnnealedMSE.apply(student, teacher, phi, mask)
