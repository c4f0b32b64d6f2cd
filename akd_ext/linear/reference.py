"""The specification of the linear losses: through full logits, in plain PyTorch. The oracle of the tests.

Nothing is checked here, nothing is fused, and memory is tokens times vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from akd_ext.reference import kept_rows

from .products import compute_dtype


def logits(hidden: Tensor, weight: Tensor, bias: Tensor | None = None, scale: float = 1.0, ids=None) -> Tensor:
    """``scale * (hidden @ weight.T + bias)`` in float32 or float64; of the classes ``ids``."""
    dtype = compute_dtype(hidden, weight)
    found = F.linear(hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)) * scale
    return found if ids is None else found[..., ids]


def centered(values: Tensor) -> Tensor:
    return values - values.mean(-1, keepdim=True)


def linear_annealed_mse(
    student_hidden, student_weight, teacher_hidden, teacher_weight, phi, *, student_bias=None, teacher_bias=None,
    reduction="mean", mask=None, weight=None, divisor=None, center=False, class_weight=None, logit_scale=1.0,
    teacher_logit_scale=1.0, student_ids=None, teacher_ids=None,
) -> Tensor:  # fmt: skip
    """Arguments are those of :func:`akd_ext.linear_annealed_mse_loss`, which checks them."""
    student = logits(student_hidden, student_weight, student_bias, logit_scale, student_ids)
    teacher = logits(teacher_hidden, teacher_weight, teacher_bias, teacher_logit_scale, teacher_ids)
    if center:
        student, teacher = centered(student), centered(teacher)
    squares = (student - phi * teacher).square()
    if class_weight is not None:
        squares = squares * class_weight
    return reduced(squares.sum(-1), student.shape[-1], reduction, mask, weight, divisor)


def reduced(per_token: Tensor, classes: int, reduction: str, mask, weight, divisor) -> Tensor:
    """The sum of the tokens that count, divided as :func:`akd_ext.annealed_mse_loss` divides."""
    kept = kept_rows(mask, weight)
    if kept is not None:
        per_token = per_token.where(kept, per_token.new_zeros(()))
    weights = torch.ones_like(per_token) if weight is None else weight.to(per_token.dtype)
    if mask is not None:
        weights = weights * mask
    total = (per_token * weights).sum()
    if divisor is not None:
        return total / divisor
    return total / {"sum": 1, "batchmean": weights.sum(), "mean": weights.sum() * classes}[reduction]


def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """One minus the cosine similarity of the logits of every token."""
    return 1 - F.cosine_similarity(student, teacher, dim=-1)


def standardized(values: Tensor) -> Tensor:
    """Z-scores over the vocabulary (Sun et al., CVPR 2024)."""
    return centered(values) / values.std(-1, unbiased=False, keepdim=True)


def margin_mse(student: Tensor, teacher: Tensor, phi: float = 1.0) -> Tensor:
    """The mean over all pairs of classes of ``((s_i - s_j) - phi (t_i - t_j))^2``, of every token."""
    difference = student - phi * teacher
    return (difference.unsqueeze(-1) - difference.unsqueeze(-2)).square().mean((-2, -1))


def topk_kl(student: Tensor, values: Tensor, indices: Tensor, log_normalizer=None, temperature=1.0, t=1.0) -> Tensor:
    """KL of every token over the teacher's top k, from the student's full logits; see `topk.linear_topk_kl_loss`."""
    student = student / temperature
    chosen, values = student.gather(-1, indices), values / temperature
    if t != 1.0:
        values = (1 - t) * chosen.detach() + t * values
    if log_normalizer is None:
        own, target = chosen.log_softmax(-1), values.log_softmax(-1)
        return (target.exp() * (target - own)).sum(-1)
    own = chosen - student.logsumexp(-1, keepdim=True)
    target = values - log_normalizer.unsqueeze(-1)
    rest = -torch.expm1(target.logsumexp(-1)), -torch.expm1(own.logsumexp(-1))
    return (target.exp() * (target - own)).sum(-1) + torch.special.xlogy(rest[0], rest[0]) - rest[0] * rest[1].log()


def scheduled_kl(
    student_hidden, student_weight, teacher_hidden=None, teacher_weight=None, *, teacher_scale=1.0, student_scale=0.0,
    label_weight=0.0, temperature=1.0, labels=None, direction="forward", student_bias=None, teacher_bias=None,
    reduction="batchmean", mask=None, weight=None, divisor=None, logit_scale=1.0, teacher_logit_scale=1.0,
    ignore_index=-100,
) -> Tensor:  # fmt: skip
    """Arguments are those of :func:`akd_ext.linear_scheduled_kl_loss`, which checks them."""
    student = logits(student_hidden, student_weight, student_bias, logit_scale)
    target = torch.zeros_like(student)
    if teacher_hidden is not None:
        teacher = logits(teacher_hidden, teacher_weight, teacher_bias, teacher_logit_scale)
        mixed = teacher_scale * teacher + (student_scale * student.detach() if student_scale else 0.0)
        target = (1 - label_weight) * (mixed / temperature).softmax(-1)
    if labels is not None:
        counted = labels != ignore_index
        mask = counted if mask is None else mask & counted
        target = target + label_weight * F.one_hot(labels.where(counted, 0), student.shape[-1])
    own = (student / temperature).log_softmax(-1)
    measured, other = (target, own) if direction == "forward" else (own.exp(), target.log())
    entropy = torch.xlogy(target, target) if direction == "forward" else own.exp() * own
    # A class without mass adds nothing, however small its probability is on the other side.
    terms = (entropy - measured * other).where(measured != 0, 0.0).sum(-1) * temperature**2
    return reduced(terms, student.shape[-1], reduction, mask, weight, divisor)
