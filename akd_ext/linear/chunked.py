"""The direct way: logits of a few tokens at a time through the fused op, both gradients made in the same pass."""

from __future__ import annotations

import torch
from torch import Tensor

from akd_ext.loss import annealed_mse_loss
from akd_ext.op.autograd import REDUCTION, _is_plain, annealed_mse
from akd_ext.op.private_torch import graph_is_kept

from .heads import Heads
from .products import without_autocast

# Elements of a chunk of logits; three such buffers live at a time.
CHUNK = 2**24
FEWEST_TOKENS = 64


def chunk_tokens(classes: int) -> int:
    return max(FEWEST_TOKENS, CHUNK // max(classes, 1))


class ChunkedMSE(torch.autograd.Function):
    """As `gram.GramMSE`; the gradients are made in forward, for an upstream gradient of 1, and scaled in backward."""

    @staticmethod
    @without_autocast
    def forward(ctx, student, weight, bias, teacher, phi, rows, divisor, heads, wanted):
        heads = heads.detached()
        # Whole heads in the dtype of the arithmetic: views, unless they are of 16 bits, have a bias or a map.
        student_head = heads.student_rows(0, heads.classes)
        teacher_head = heads.teacher_rows(0, heads.classes)
        roots = None if heads.class_weight is None else heads.class_weight.to(heads.dtype).sqrt()
        by_hidden, by_head, _ = wanted
        hidden_gradient = torch.empty_like(student) if by_hidden else None
        gradient = torch.zeros_like(student_head) if by_head else None
        loss, size = student.new_zeros(()), chunk_tokens(heads.classes)
        for start in range(0, max(1, student.shape[0]), size):  # without tokens one empty chunk, for its NaN
            part = slice(start, start + size)
            h, t = student[part], teacher[part]
            logits = _logits(h, student_head, heads.center, roots)
            targets = _logits(t, teacher_head, heads.center, roots)
            weights = None if rows is None else rows[part]
            chunk_loss, slope = _loss_and_slope(logits, targets, phi, weights, divisor, by_hidden or by_head)
            loss = loss + chunk_loss
            if slope is None:
                continue
            if roots is not None:
                slope.mul_(roots)
            if heads.center:  # also of the weighted slopes: the mean of the logits moves with every one of them
                slope.sub_(slope.mean(-1, keepdim=True))
            if by_hidden:
                hidden_gradient[part] = slope @ student_head
            if by_head:
                gradient.addmm_(slope.t(), h)
        ctx.gradients = _of_inputs(heads, hidden_gradient, gradient, wanted)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    @without_autocast
    def backward(ctx, upstream):
        gradients = ctx.gradients
        if gradients is None:
            raise RuntimeError("the gradients of this loss have been handed out; accepted: backward(retain_graph=True)")
        if not _is_plain(upstream) or graph_is_kept():
            gradients = [None if x is None else (x * upstream).to(x.dtype) for x in gradients]
        else:
            ctx.gradients = None  # nobody else holds them: they become the parameters' gradients as they are
            if not upstream.is_cpu or upstream.item() != 1.0:
                gradients = [None if x is None else x.mul_(upstream) for x in gradients]
        return *gradients, *[None] * 6


def _logits(hidden: Tensor, head: Tensor, center: bool, roots: Tensor | None) -> Tensor:
    logits = hidden @ head.t()
    if center:
        logits.sub_(logits.mean(-1, keepdim=True))
    return logits if roots is None else logits.mul_(roots)


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


def _of_inputs(heads: Heads, hidden_gradient, gradient, wanted) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """By hidden states, head and bias, each of the shape and dtype of its input."""
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
        found.append(part.to(like.dtype).contiguous())
    return hidden_gradient, *found
