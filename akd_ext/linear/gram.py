"""The Gram way: ``|P a + Q b|^2 = a'PP a + 2 a'PQ b + b'QQ b`` with Gram matrices PP = P'P, PQ = P'Q, QQ = Q'Q.

A token costs O(H (H + Ht)) in place of O(V (H + Ht)); the matrices are made once a step, whatever the number of tokens.
The gradient by the student's hidden state is ``2 (PP a + PQ b)``, that by its head ``2 (P M_a + Q M_b)`` with the moments
``M_a = sum a h_s'`` and ``M_b = sum b h_s'`` over all tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import validation
from .heads import Heads, can_be_saved, coordinates
from .products import add_matmul, first_order, matmul, without_autocast

# A symmetric matrix is made in strips of this many columns, and only from the diagonal on.
STRIP = 256


class TeacherGram(NamedTuple):
    """The Gram matrix of a frozen teacher's head, and what it was made for: see :func:`teacher_gram`."""

    matrix: Tensor
    classes: int
    center: bool
    weighted: bool


class Grams(NamedTuple):
    """Of P and Q, and the means that were taken out of them; None also where the Gram matrix was there already."""

    pp: Tensor
    pq: Tensor
    qq: Tensor
    means: tuple[Tensor, Tensor] | None


class Moments:
    """M_a and M_b, summed over micro-batches; made when the first one comes."""

    def __init__(self) -> None:
        self.sums: tuple[Tensor, Tensor] | None = None
        self.is_closed = False

    def add(self, a: Tensor, b: Tensor) -> None:
        if self.is_closed:  # nobody would make the head's gradient of them any more
            raise RuntimeError("backward() comes after the accumulate() block of its loss; accepted: backward() inside")
        if self.sums is None:
            self.sums = a, b
        else:
            for mine, new in zip(self.sums, (a, b), strict=True):
                mine.add_(new)


def teacher_gram(
    teacher_weight: Tensor,
    teacher_bias: Tensor | None = None,
    *,
    center: bool = False,
    class_weight: Tensor | None = None,
    teacher_ids: Tensor | None = None,
    student_has_bias: bool = False,
) -> TeacherGram:
    """The Gram matrix of a frozen teacher's head, ``[Ht, Ht]``, for every later call of the linear losses.

    Give ``center``, ``class_weight`` and ``teacher_ids`` as the losses get them. With a bias on either side the matrix has
    one more row and column.

    >>> teacher_gram(torch.eye(3)).matrix.shape
    torch.Size([3, 3])
    """
    validation.check_head("teacher", teacher_weight, teacher_bias)
    bias = teacher_bias
    if bias is None and student_has_bias:
        bias = teacher_weight.new_zeros(teacher_weight.shape[0])
    heads = Heads(
        teacher_weight, teacher_weight, student_bias=bias, teacher_bias=bias, student_ids=teacher_ids,
        teacher_ids=teacher_ids, class_weight=class_weight, center=center, shared=True,
    ).detached()  # fmt: skip
    validation.check_heads(heads)
    with torch.no_grad(), torch.autocast(teacher_weight.device.type, enabled=False):
        return TeacherGram(grams(heads).pp, heads.classes, center, class_weight is not None)


def grams(heads: Heads, known: TeacherGram | None = None) -> Grams:
    """All three; ``known``: that of the teacher, which the difference basis has no use for."""
    if known is not None and heads.basis == "shared":
        empty = known.matrix.new_empty(known.matrix.shape[0], 0)
        return Grams(known.matrix, empty, known.matrix.new_empty(0, 0), None)
    means = heads.means()
    with_qq = heads.basis == "difference" or (heads.basis == "plain" and known is None)
    pp = pq = qq = None
    for block in heads.blocks():
        p, q = heads.basis_rows(*block, means)
        weights = heads.weights(*block)
        weighted_p, weighted_q = (p, q) if weights is None else (p * weights, q * weights)
        pp = _add_symmetric(pp, weighted_p, p, heads.split)
        if q.shape[1]:
            pq = p.new_zeros(p.shape[1], q.shape[1]) if pq is None else pq
            add_matmul(pq, weighted_p.t(), q, heads.split)
            if with_qq:
                qq = _add_symmetric(qq, weighted_q, q, heads.split)
    pp = _mirrored(pp)
    pq = pp.new_empty(pp.shape[0], 0) if pq is None else pq
    qq = _mirrored(qq) if with_qq else pp.new_empty(0, 0)
    if heads.reduce is not None:
        pp, pq, qq = (heads.reduce(x) if x.numel() else x for x in (pp, pq, qq))
    if heads.basis == "plain" and known is not None:
        qq = known.matrix
    return Grams(pp, pq, qq, means)


def _add_symmetric(total: Tensor | None, left: Tensor, right: Tensor, split: bool) -> Tensor:
    """``total + left' right`` where that is symmetric: its upper strips alone, see :func:`_mirrored`."""
    width = right.shape[1]
    total = right.new_zeros(width, width) if total is None else total
    for start in range(0, width, STRIP):
        stop = start + STRIP
        add_matmul(total[start:stop, start:], left[:, start:stop].t(), right[:, start:], split)
    return total


def _mirrored(upper: Tensor) -> Tensor:
    return upper.triu() + upper.triu(1).t()


def head_gradient(heads: Heads, means, moments: tuple[Tensor, Tensor], out_weight: Tensor, out_bias: Tensor | None):
    """Adds ``P M_a + Q M_b`` (times the classes' weights) to ``out_weight``, its last column to ``out_bias``."""
    if means is None:
        means = heads.means()
    # Without weights the rows of a centred head's gradient sum to 0 by themselves.
    project = heads.center and heads.class_weight is not None
    total = None
    for start, stop in heads.blocks():
        p, q = heads.basis_rows(start, stop, means)
        rows = matmul(p, moments[0], heads.split)
        if q.shape[1]:
            add_matmul(rows, q, moments[1], heads.split)
        if heads.class_weight is not None:
            rows.mul_(heads.weights(start, stop))
        if project:
            total = rows.sum(0) if total is None else total + rows.sum(0)
        _put(heads, start, stop, rows, out_weight, out_bias)
    if project:
        total = total if heads.reduce is None else heads.reduce(total)
        shift = (total / heads.all_classes).neg_()
        for start, stop in heads.blocks():
            rows = shift.expand(stop - start, -1)
            _put(heads, start, stop, rows, out_weight, out_bias)


def _put(heads, start, stop, rows, out_weight, out_bias) -> None:
    width = heads.student_weight.shape[1]
    for out, part in ((out_weight, rows[:, :width]), (out_bias, rows[:, -1])):
        if out is None:
            continue
        part = part.to(out.dtype)
        if heads.student_ids is None:
            out[start:stop].add_(part)
        else:
            out.index_add_(0, heads.student_ids[start:stop], part)


class GramMSE(torch.autograd.Function):
    """``sum_n rows_n |d_n|^2`` of tokens with augmented hidden states; gradients by student hidden states, head and bias."""

    @staticmethod
    @without_autocast
    def forward(ctx, student, weight, bias, teacher, phi, rows, heads, made, moments):
        heads = heads.detached()
        a, b = coordinates(heads.basis, student, teacher, phi)
        split = heads.split
        half = matmul(a, made.pp, split)
        norms = (half * a).sum(1)
        if b.shape[1]:
            norms += matmul(b, made.qq, split).mul_(b).sum(1)
            cross = matmul(b, made.pq.t(), split)
            half += cross
            norms += 2 * cross.mul_(a).sum(1)
        ctx.heads, ctx.means, ctx.moments = heads, made.means, moments
        # a and b are made again in backward: they are as large as the hidden states, which somebody holds anyway. phi is
        # copied, since a schedule may have moved on by then.
        ctx.phi = phi.clone() if isinstance(phi, Tensor) else phi
        by_head = moments is not None or any(ctx.needs_input_grad[1:3])
        ctx.inference = None if can_be_saved(teacher) else teacher
        states = (student, None if ctx.inference is not None else teacher) if by_head else (None, None)
        ctx.save_for_backward(rows, half, *states, *(heads.to_save() if any(ctx.needs_input_grad[1:3]) else ()))
        return _row_sum(norms if rows is None else norms * rows)

    @staticmethod
    @first_order
    def backward(ctx, upstream):
        rows, half, student, teacher, *_ = ctx.saved_tensors
        heads = ctx.heads
        factor = 2 * upstream if rows is None else (2 * upstream * rows).unsqueeze(1)
        by_weight = by_bias = None
        if ctx.moments is not None or ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            moments = _moments(heads, student, teacher if ctx.inference is None else ctx.inference, ctx.phi, factor)
            if ctx.moments is not None:
                ctx.moments.add(*moments)
            else:
                if heads.average is not None:
                    moments = tuple(heads.average(x) for x in moments)
                by_weight = torch.zeros_like(heads.student_weight) if ctx.needs_input_grad[1] else None
                by_bias = torch.zeros_like(heads.student_bias) if ctx.needs_input_grad[2] else None
                head_gradient(heads, ctx.means, moments, by_weight, by_bias)
        by_hidden = half * factor if ctx.needs_input_grad[0] else None  # after the largest buffers are gone
        return by_hidden, by_weight, by_bias, *[None] * 6


def _moments(heads: Heads, student: Tensor, teacher: Tensor, phi, factor: Tensor) -> tuple[Tensor, Tensor]:
    a, b = coordinates(heads.basis, student, teacher, phi)
    scaled = student * factor
    return matmul(a.t(), scaled, heads.split), matmul(b.t(), scaled, heads.split)


def _row_sum(values: Tensor) -> Tensor:
    # Thousands of tokens whose errors cancel: float64 where the device has it.
    if values.device.type == "mps":
        return values.sum()
    return values.to(torch.float64).sum().to(values.dtype)
