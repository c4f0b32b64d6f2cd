"""KL divergence over a whole vocabulary, logits of a few tokens at a time; both gradients are made in the same pass.

With ``q = softmax(z / tau)`` the gradient by the student's logits z, for the target p, is

======= ================= ===============================
        a token's loss    gradient
======= ================= ===============================
forward tau^2 KL(p || q)  tau (q - p)
reverse tau^2 KL(q || p)  tau q (log q - log p - KL)
======= ================= ===============================
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .chunked import chunk_tokens, handed_out, of_inputs
from .products import first_order, without_autocast

# A scale of 0 for the teacher would make 0 * -inf = NaN of a class that is impossible; with this one it stays impossible.
LEAST_SCALE = 1e-30


class Target(NamedTuple):
    """``(1 - label_weight) softmax((teacher_scale z_t + student_scale z_s) / temperature) + label_weight onehot(labels)``.

    0-d tensors in the dtype of the arithmetic. None: 0, the part is left out.
    """

    teacher_scale: Tensor
    student_scale: Tensor | None
    label_weight: Tensor | None
    temperature: Tensor
    reverse: bool


class ChunkedKL(torch.autograd.Function):
    """As `chunked.ChunkedMSE`. ``teacher``: None where the labels alone are the target; ``labels``: None without them."""

    @staticmethod
    @without_autocast
    def forward(ctx, student, weight, bias, teacher, labels, rows, divisor, heads, target, wanted):
        heads = heads.detached()
        student_head = heads.student_rows(0, heads.classes)
        teacher_head = None if teacher is None else heads.teacher_rows(0, heads.classes)
        by_hidden, by_head, _ = wanted
        hidden_gradient = torch.empty_like(student) if by_hidden else None
        gradient = torch.zeros_like(student_head) if by_head else None
        temperature, size = target.temperature, chunk_tokens(heads.classes)
        # Where nothing counts every gradient is 0.
        factor = (temperature / divisor).masked_fill(divisor == 0, 0.0)
        loss = student.new_zeros(())
        for start in range(0, student.shape[0], size):
            part = slice(start, start + size)
            log_q = ((student[part] / temperature) @ student_head.t()).log_softmax(-1)
            log_s = None if teacher is None else _log_teacher(teacher[part], teacher_head, log_q, target)
            of_chunk = None if labels is None else labels[part].unsqueeze(1)
            divergence = _reverse if target.reverse else _forward
            terms, slope = divergence(log_q, log_s, of_chunk, target.label_weight, heads.biased, by_hidden or by_head)
            weights = None if rows is None else rows[part]
            if weights is not None:
                terms = _product(weights, terms)
            loss = loss + terms.sum()
            if slope is None:
                continue
            slope.mul_(factor if weights is None else (factor * weights).unsqueeze(1))
            if by_hidden:
                hidden_gradient[part] = slope @ student_head
            if by_head:
                gradient.addmm_(slope.t(), student[part])
        ctx.gradients = of_inputs(heads, hidden_gradient, gradient, wanted)
        return (loss * temperature.square() / divisor).masked_fill(divisor == 0, torch.nan)

    @staticmethod
    @first_order
    def backward(ctx, upstream):
        return *handed_out(ctx, upstream), *[None] * 7


def _log_teacher(hidden: Tensor, head: Tensor, log_q: Tensor, target: Target) -> Tensor:
    """The target without the labels. ``log_q`` stands for the student's logits: softmax ignores what it took from them."""
    logits = (hidden * (target.teacher_scale.clamp(min=LEAST_SCALE) / target.temperature)) @ head.t()
    scale = target.student_scale
    if scale is not None:
        logits.add_((log_q * scale).masked_fill_(scale == 0, 0.0))  # 0 * -inf
    return logits.log_softmax(-1)


def _product(p: Tensor, values: Tensor) -> Tensor:
    """``p * values`` that is 0 where p is, whatever the value."""
    return (p * values).masked_fill_(p == 0, 0.0)


def _forward(log_q, log_s, labels, label_weight, impossible: bool, with_slope: bool) -> tuple[Tensor, Tensor | None]:
    """KL(p || q) of every token, and q - p; the first two are overwritten. ``impossible``: logits may be -inf."""
    if log_s is None:
        terms = -log_q.gather(1, labels).squeeze(1)
        return terms, _less(log_q.exp_(), labels, 1.0) if with_slope else None
    s = log_s.exp()
    at_labels = None if labels is None else [x.gather(1, labels).squeeze(1) for x in (log_q, log_s, s)]
    differences = log_s.sub_(log_q).mul_(s)
    if impossible:
        differences.masked_fill_(s == 0, 0.0)
    terms = differences.sum(1)
    if labels is not None:
        terms = _with_labels(terms, *at_labels, label_weight)
    if not with_slope:
        return terms, None
    q = log_q.exp_()
    if labels is None:
        return terms, q.sub_(s)
    return terms, _less(q.sub_(s.mul_(1 - label_weight)), labels, label_weight)


def _less(values: Tensor, labels: Tensor, amount: float | Tensor) -> Tensor:
    """``values`` with ``amount`` taken off at the labels."""
    return values.scatter_(1, labels, values.gather(1, labels) - amount)


def _with_labels(kl: Tensor, log_q: Tensor, log_s: Tensor, s: Tensor, label_weight: Tensor) -> Tensor:
    """KL((1 - w) s + w onehot || q) from KL(s || q) and what log q, log s and s are at the labels."""
    rest = 1 - label_weight
    p = rest * s + label_weight
    others = rest * (kl - _product(s, log_s - log_q)) + torch.xlogy(rest, rest) * (1 - s)
    return others.masked_fill(rest == 0, 0.0) + torch.xlogy(p, p) - _product(p, log_q)


def _reverse(log_q, log_s, labels, label_weight, impossible: bool, with_slope: bool) -> tuple[Tensor, Tensor | None]:
    """KL(q || p) of every token, and q (log q - log p - KL); the first two are overwritten."""
    log_p = log_s
    if labels is not None:
        log_rest = torch.log1p(-label_weight)
        at_labels = torch.logaddexp(log_s.gather(1, labels) + log_rest, label_weight.log())
        log_p = log_s.add_(log_rest).scatter_(1, labels, at_labels)
    q = log_q.exp()
    differences = log_q.sub_(log_p).mul_(q)
    if impossible:
        differences.masked_fill_(q == 0, 0.0)
    terms = differences.sum(1)
    return terms, differences.addcmul_(q, terms.unsqueeze(1), value=-1) if with_slope else None
