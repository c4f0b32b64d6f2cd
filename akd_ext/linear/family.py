"""Losses that are functions of three numbers a token: ``|z_s|^2``, ``<z_s, z_t>`` and ``|z_t|^2`` over the vocabulary."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import validation
from .gram import TeacherGram, grams, head_gradient
from .heads import can_be_saved
from .loss import Tokens, check_teacher_gram, divided, linear_annealed_mse_loss, make_heads
from .products import first_order, matmul, without_autocast

# As torch.nn.functional.cosine_similarity.
EPS = 1e-8


class InnerProducts(NamedTuple):
    student: Tensor
    cross: Tensor
    teacher: Tensor


def linear_inner_products(
    student_hidden: Tensor, student_weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor, **options: Any
) -> InnerProducts:
    """``|z_s|^2``, ``<z_s, z_t>``, ``|z_t|^2`` of every token, shape ``(...)``; differentiable by the student.

    ``options``: ``student_bias``, ``teacher_bias``, ``center``, ``class_weight``, ``logit_scale``, ``teacher_logit_scale``,
    ``teacher_gram``, ``student_ids``, ``teacher_ids`` as in :func:`akd_ext.linear_annealed_mse_loss`.

    >>> linear_inner_products(torch.ones(2), torch.eye(2), torch.ones(2), torch.eye(2)).cross
    tensor(2.)
    """
    found, _ = _products(student_hidden, student_weight, teacher_hidden, teacher_weight, {}, options)
    return InnerProducts(*(x.reshape(student_hidden.shape[:-1]) for x in found))


def linear_cosine_loss(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    divisor: float | Tensor | None = None,
    **options: Any,
) -> Tensor:
    """One minus the cosine similarity of the logits, averaged over tokens; with ``center=True`` Pearson's correlation.

    ``mask``, ``weight``, ``divisor`` as in :func:`akd_ext.annealed_mse_loss`, ``options`` as in
    :func:`linear_inner_products`.

    >>> head = torch.eye(2)
    >>> linear_cosine_loss(torch.tensor([[3.0, 0.0]]), head, torch.tensor([[0.0, 2.0]]), head)
    tensor(1.)
    """
    counting = {"mask": mask, "weight": weight, "divisor": divisor}
    found, tokens = _products(student_hidden, student_weight, teacher_hidden, teacher_weight, counting, options)
    return _averaged(1 - _cosine(found), tokens)


def linear_standardized_mse_loss(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    divisor: float | Tensor | None = None,
    **options: Any,
) -> Tensor:
    """The mean squared difference of z-scored logits (Logit Standardization, Sun et al., CVPR 2024), over tokens and classes.

    Arguments as in :func:`linear_cosine_loss`; ``center`` and ``class_weight`` are not accepted, the z-score has its own.

    >>> head = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> linear_standardized_mse_loss(torch.tensor([[3.0, 0.0]]), head, torch.tensor([[5.0, 1.0]]), head)
    tensor(0.)
    """
    for name in ("center", "class_weight"):
        if name in options:
            raise TypeError(f"{name} is given; accepted: neither center nor class_weight, the z-score has its own")
    counting = {"mask": mask, "weight": weight, "divisor": divisor}
    options = {**options, "center": True}
    found, tokens = _products(student_hidden, student_weight, teacher_hidden, teacher_weight, counting, options)
    return _averaged(2 - 2 * _cosine(found), tokens)


def linear_margin_mse_loss(*arguments: Any, **options: Any) -> Tensor:
    """Margin-MSE over all pairs of classes: the mean of ``((s_i - s_j) - phi (t_i - t_j))^2`` over tokens and pairs.

    Twice the centred squared error. Arguments as in :func:`akd_ext.linear_annealed_mse_loss`, without ``center``,
    ``class_weight`` and ``reduction``.

    >>> hidden, head = torch.tensor([[1.0, 2.0]]), torch.eye(2)
    >>> linear_margin_mse_loss(hidden, head, hidden, head, 0.0)
    tensor(0.5000)
    """
    for name in ("center", "class_weight", "reduction"):
        if name in options:
            raise TypeError(f"{name} is given; accepted: none, all pairs count alike and the mean is taken")
    return 2 * linear_annealed_mse_loss(*arguments, center=True, **options)


def _cosine(found: InnerProducts) -> Tensor:
    return found.cross / (found.student.clamp(min=EPS**2) * found.teacher.clamp(min=EPS**2)).sqrt()


def _averaged(values: Tensor, tokens: Tokens) -> Tensor:
    return divided((values if tokens.rows is None else values * tokens.rows).sum(), tokens.divisor)


def _products(student_hidden, student_weight, teacher_hidden, teacher_weight, counting, options):
    options = dict(options)
    scales = options.pop("logit_scale", 1.0), options.pop("teacher_logit_scale", 1.0)
    known: TeacherGram | None = options.pop("teacher_gram", None)
    names = ("student_bias", "teacher_bias", "student_ids", "teacher_ids", "class_weight", "center")
    chosen = {name: options.pop(name, False if name == "center" else None) for name in names}
    if options:
        raise TypeError(f"there is no argument {sorted(options)[0]!r}")
    validation.check_rest("batchmean", "gram", scales, None)
    validation.check_side("student", student_hidden, student_weight, chosen["student_bias"])
    validation.check_side("teacher", teacher_hidden, teacher_weight, chosen["teacher_bias"])
    validation.check_sides(student_hidden, teacher_hidden)
    heads = replace(make_heads(student_weight, teacher_weight, **chosen), plain=True)
    check_teacher_gram(known, heads)
    tokens = Tokens(student_hidden, teacher_hidden, heads, scales)
    tokens.count("batchmean", *(counting.get(name) for name in ("mask", "weight", "divisor")))
    heads = tokens.heads
    with torch.autocast(student_hidden.device.type, enabled=False):
        with torch.no_grad():
            made = grams(heads.detached(), known)
        found = _InnerProducts.apply(
            tokens.student, heads.student_weight, heads.student_bias, tokens.teacher, heads, made
        )  # fmt: skip
    return InnerProducts(*found), tokens


class _InnerProducts(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(ctx, student, weight, bias, teacher, heads, made):
        heads = heads.detached()
        own = matmul(student, made.pp, heads.split)
        cross = matmul(teacher, made.pq.t(), heads.split)
        theirs = matmul(teacher, made.qq.to(teacher.dtype), heads.split)
        ctx.heads, ctx.means = heads, made.means
        saved = heads.to_save() if any(ctx.needs_input_grad[1:3]) else ()
        ctx.inference = None if can_be_saved(teacher) else teacher
        ctx.save_for_backward(student, teacher if ctx.inference is None else None, own, cross, *saved)
        return (own * student).sum(1), (cross * student).sum(1), (theirs * teacher).sum(1)

    @staticmethod
    @first_order
    def backward(ctx, by_own, by_cross, _):
        student, teacher, own, cross, *_ = ctx.saved_tensors
        teacher = teacher if ctx.inference is None else ctx.inference
        heads = ctx.heads
        by_own, by_cross = 2 * by_own.unsqueeze(1), by_cross.unsqueeze(1)
        by_hidden = by_own * own + by_cross * cross if ctx.needs_input_grad[0] else None
        by_weight = by_bias = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            moments = (
                matmul((student * by_own).t(), student, heads.split),
                matmul((teacher * by_cross).t(), student, heads.split),
            )
            if heads.average is not None:
                moments = tuple(heads.average(x) for x in moments)
            by_weight = torch.zeros_like(heads.student_weight) if ctx.needs_input_grad[1] else None
            by_bias = torch.zeros_like(heads.student_bias) if ctx.needs_input_grad[2] else None
            head_gradient(heads, ctx.means, moments, by_weight, by_bias)
        return by_hidden, by_weight, by_bias, None, None, None
