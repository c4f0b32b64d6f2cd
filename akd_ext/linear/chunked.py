"""The direct way: logits of a block of tokens and classes at a time through the fused op, with both gradients.

Blocks are cut along the classes first: a block's rows of the head's gradient are then complete after one product. Cut
along the tokens, the whole gradient, a gigabyte for a large vocabulary, would be read and written again for every chunk.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from akd_ext.loss import annealed_mse_loss
from akd_ext.op.autograd import REDUCTION, _is_plain, annealed_mse
from akd_ext.op.private_torch import graph_is_kept

from .heads import Heads
from .products import first_order, without_autocast

# Elements of a block of logits; three such buffers live at a time. On a CPU they should stay in the last-level cache: 2^20 was
# 10 to 16 % faster than 2^22 at 128 tokens (H 512) and 256 (H 2,048). A GPU wants large matrices; that size is not measured.
CHUNK, CPU_CHUNK = 2**24, 2**20
MOST_TOKENS = 2048
# Elements of a chunk of logits that has all classes, as a softmax needs. For every chunk the whole gradient of the head is
# read and written again: not too small.
SOFTMAX_CHUNK = 2**24
FEWEST_TOKENS = 64


def chunk_tokens(classes: int) -> int:
    """Tokens of a chunk that has all classes, for losses that need a token's logits at once."""
    return max(FEWEST_TOKENS, SOFTMAX_CHUNK // max(classes, 1))


def blocks(count: int, size: int) -> list[slice]:
    """One empty block of nothing, so that a loss over no tokens is made, and is NaN."""
    return [slice(start, min(start + size, count)) for start in range(0, max(count, 1), size)]


def _block_classes(student: Tensor, teacher: Tensor) -> int:
    """Classes of a block: its logits have a bounded size, and so do its rows of the heads, which may have to be copied."""
    logits = CPU_CHUNK if student.device.type == "cpu" else CHUNK
    tokens = max(1, min(student.shape[0], MOST_TOKENS))
    return max(1, min(logits // tokens, CHUNK // max(student.shape[1], teacher.shape[1])))


class ChunkedMSE(torch.autograd.Function):
    """As `gram.GramMSE`; the gradients are made in forward, for an upstream gradient of 1, and scaled in backward."""

    @staticmethod
    @without_autocast
    def forward(ctx, student, weight, bias, teacher, phi, rows, divisor, heads, wanted):
        heads = dataclasses.replace(heads.detached(), plain=True)
        by_hidden, by_head, _ = wanted
        hidden_gradient = torch.zeros_like(student) if by_hidden else None
        gradient = student.new_zeros(heads.classes, student.shape[1]) if by_head else None
        loss, means = student.new_zeros(()), heads.means()
        tokens = blocks(student.shape[0], MOST_TOKENS)
        for some in blocks(heads.classes, _block_classes(student, teacher)):
            student_rows, teacher_rows = heads.basis_rows(some.start, some.stop, means)
            roots = heads.weights(some.start, some.stop)
            roots = None if roots is None else roots.sqrt().t()
            for part in tokens:
                logits, targets = student[part] @ student_rows.t(), teacher[part] @ teacher_rows.t()
                if roots is not None:
                    logits, targets = logits.mul_(roots), targets.mul_(roots)
                weights = None if rows is None else rows[part]
                block_loss, slope = _loss_and_slope(logits, targets, phi, weights, divisor, by_hidden or by_head)
                loss = loss + block_loss
                if slope is None:
                    continue
                if roots is not None:
                    slope.mul_(roots)
                if by_hidden:
                    hidden_gradient[part].addmm_(slope, student_rows)
                if by_head:
                    gradient[some].addmm_(slope.t(), student[part])
        if by_head and heads.center:  # the mean that is taken out of all rows depends on each of them
            gradient.sub_(gradient.mean(0))
        ctx.gradients = of_inputs(heads, hidden_gradient, gradient, wanted)
        return loss

    @staticmethod
    @first_order
    def backward(ctx, upstream):
        return *handed_out(ctx, upstream), *[None] * 6


def handed_out(ctx, upstream: Tensor) -> list[Tensor | None]:
    """``ctx.gradients``, made in forward for an upstream gradient of 1, times the real one."""
    gradients = ctx.gradients
    if gradients is None:
        raise RuntimeError("the gradients of this loss have been handed out; accepted: backward(retain_graph=True)")
    if not _is_plain(upstream) or graph_is_kept():
        return [None if x is None else (x * upstream).to(x.dtype) for x in gradients]
    ctx.gradients = None  # nobody else holds them: they become the parameters' gradients as they are
    if upstream.is_cpu and upstream.item() == 1.0:
        return list(gradients)
    return [None if x is None else x.mul_(upstream) for x in gradients]


def _loss_and_slope(logits, targets, phi, weights, divisor, with_slope) -> tuple[Tensor, Tensor | None]:
    """The fused op's loss of a chunk, and its gradient by the logits."""
    if not with_slope:
        return annealed_mse_loss(logits, targets, phi, reduction="sum", weight=weights, divisor=divisor), None
    if torch.compiler.is_compiling():
        phi_tensor, phi = (phi, 0.0) if isinstance(phi, Tensor) else (None, phi)
        return annealed_mse(logits, targets, phi_tensor, phi, None, weights, divisor, REDUCTION["sum"], True)
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        loss = annealed_mse_loss(leaf, targets, phi, reduction="sum", weight=weights, divisor=divisor)
        (slope,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), slope


def of_inputs(heads: Heads, hidden_gradient, gradient, wanted) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """By hidden states, head and bias, each of the shape of its input, and of its dtype unless that is float16."""
    if gradient is None:
        return hidden_gradient, None, None
    width = heads.student_weight.shape[1]
    weight_part, bias_part = gradient[:, :width], gradient[:, width] if heads.biased else None
    found = []
    for part, like, want in (
        (weight_part, heads.student_weight, wanted[1]),
        (bias_part, heads.student_bias, wanted[2]),
    ):
        if not want or like is None:
            found.append(None)
            continue
        if heads.student_ids is not None:
            part = torch.zeros_like(like, dtype=heads.dtype).index_add_(0, heads.student_ids, part)
        # float16's small numbers wait for the upstream gradient, which may scale the loss; autograd converts them then.
        found.append(part.to(like.dtype if like.dtype is not torch.float16 else part.dtype).contiguous())
    return hidden_gradient, *found
