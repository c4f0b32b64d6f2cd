"""KL over the teacher's top k, held in place over the rest of the vocabulary by the squared error."""

from __future__ import annotations

import numbers
from typing import Any

import torch
from torch import Tensor

from akd_ext.op import validation as _checks
from akd_ext.reference import kept_rows

from . import validation
from .loss import divided, linear_annealed_mse_loss
from .products import compute_dtype
from .sparse import GatheredLogits, LogNormalizer, teacher_topk


def linear_topk_kl_loss(
    student_hidden: Tensor,
    student_weight: Tensor,
    *,
    student_bias: Tensor | None = None,
    teacher_values: Tensor | None = None,
    teacher_indices: Tensor | None = None,
    teacher_log_normalizer: Tensor | None = None,
    teacher_hidden: Tensor | None = None,
    teacher_weight: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    k: int | None = None,
    temperature: float = 1.0,
    t: float | Tensor = 1.0,
    topk: float | Tensor = 1.0,
    anchor: float | Tensor = 0.0,
    phi: float | Tensor = 1.0,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    divisor: float | Tensor | None = None,
    anchor_options: dict[str, Any] | None = None,
) -> Tensor:
    """``topk * KL(teacher's top k || student) + anchor * mean squared error over the whole vocabulary``.

    Averaged over tokens. Only k rows of the student's head are gathered a token. KL over the top k alone leaves the
    rest of the vocabulary free, and the student drifts there; the anchor, :func:`akd_ext.linear_annealed_mse_loss`
    (``center=True``, ``reduction="batchmean"`` over the vocabulary's size), holds it.

    Args:
        student_hidden, student_weight, student_bias: as in :func:`akd_ext.linear_annealed_mse_loss`.
        teacher_values, teacher_indices: the teacher's k largest logits and their places (int64, none twice), ``(..., k)``,
            as caches hold them. Or ``k``, with ``teacher_hidden`` and ``teacher_weight``, from which they are computed.
        teacher_log_normalizer: the logsumexp of all of the teacher's logits divided by ``temperature``, ``(...)``. With
            it the remaining mass is one more class, exactly, on both sides: this needs the student's normaliser, a
            pass over its whole head in chunks. Without it both are normalised over the top k.
        teacher_hidden, teacher_weight, teacher_bias: for ``k`` and for ``anchor``.
        temperature: divides both logits in the KL part, which is then multiplied by its square (Hinton et al., 2015).
        t: TAID's interpolation: the target of the KL part is softmax((1 - t) z_s.detach() + t z_t); with
            ``teacher_log_normalizer`` only 1. See :class:`akd_ext.linear.AdaptiveInterpolation`.
        topk, anchor: weights of the two parts, numbers or 0-d tensors, so a schedule may change them.
        phi: of the anchor's target.
        mask, weight, divisor: as in :func:`akd_ext.annealed_mse_loss`; the divisor counts tokens.
            Where no token counts the loss is NaN and every gradient 0.
        anchor_options: more arguments of the anchor, such as ``center`` or ``teacher_gram``.

    Raises:
        TypeError, ValueError: an argument is not of the form above; the message names it.

    >>> hidden, head = torch.zeros(2, 3), torch.ones(5, 3)
    >>> values, indices = torch.zeros(2, 2), torch.tensor([[0, 1], [3, 4]])
    >>> linear_topk_kl_loss(hidden, head, teacher_values=values, teacher_indices=indices)
    tensor(0.)
    """
    validation.check_side("student", student_hidden, student_weight, student_bias)
    anchored = isinstance(anchor, Tensor) or anchor != 0
    _check_teacher(student_hidden, teacher_hidden, teacher_weight, teacher_bias, anchored or k is not None)
    if k is not None:
        if teacher_values is not None or teacher_indices is not None:
            raise ValueError("k is given beside teacher_values or teacher_indices; accepted: one of the two ways")
        teacher_values, teacher_indices = teacher_topk(teacher_hidden, teacher_weight, teacher_bias, k)
    _check_topk(student_hidden, student_weight, teacher_values, teacher_indices, teacher_log_normalizer, t)
    divisor = _check_counting(student_hidden, temperature, mask, weight, divisor)
    kept = kept_rows(mask, weight)
    if k is None:
        _check_repeated(teacher_indices, kept)
    hidden = _zeroed(student_hidden, kept)
    dtype = compute_dtype(hidden, student_weight, teacher_values)
    values = _zeroed(teacher_values.detach().to(dtype), kept)
    with torch.autocast(hidden.device.type, enabled=False):
        flat = hidden.reshape(-1, hidden.shape[-1]).to(dtype)
        indices = teacher_indices.reshape(flat.shape[0], teacher_indices.shape[-1])
        own = GatheredLogits.apply(flat, student_weight, student_bias, indices).reshape(values.shape) / temperature
        if teacher_log_normalizer is None:
            terms = _among_topk(own, values / temperature, t)
        else:
            log_normalizer = _zeroed(teacher_log_normalizer.detach().to(dtype), kept)
            tail = LogNormalizer.apply(flat, student_weight, student_bias, temperature, indices)
            terms = _with_remaining_mass(own, tail.reshape(own.shape[:-1]), values / temperature, log_normalizer)
        terms = _averaged(terms * temperature**2, kept, weight, divisor)
    loss = topk * terms
    if not anchored:
        return loss
    options = {"center": True, **(anchor_options or {})}
    classes = student_weight.shape[0] if options.get("student_ids") is None else len(options["student_ids"])
    per_token = classes if options.get("reduction", "mean") == "mean" else 1
    squares = linear_annealed_mse_loss(
        student_hidden, student_weight, teacher_hidden, teacher_weight, phi, student_bias=student_bias,
        teacher_bias=teacher_bias, mask=mask, weight=weight,
        divisor=None if divisor is None else divisor * per_token, **options,
    )  # fmt: skip
    return loss + anchor * squares


def _zeroed(tensor: Tensor, kept: Tensor | None) -> Tensor:
    """0 where a token does not count, whatever stands there; ``kept`` has the tensor's dimensions or one less."""
    if kept is None:
        return tensor
    kept = kept if kept.dim() == tensor.dim() else kept.unsqueeze(-1)
    return tensor.where(kept, tensor.new_zeros(()))


def _averaged(terms: Tensor, kept: Tensor | None, weight: Tensor | None, divisor: Tensor | None) -> Tensor:
    """Over tokens; where none counts NaN, with a gradient of 0."""
    zero, rows = terms.new_zeros(()), kept
    if kept is not None:
        terms = terms.where(kept, zero)
    if weight is not None:
        rows = weight.to(terms.dtype).where(kept, zero)
        terms = terms * rows
    if divisor is None:
        divisor = terms.numel() if rows is None else rows.sum()
    return divided(terms.sum(), divisor)


def _among_topk(own: Tensor, values: Tensor, t: float | Tensor) -> Tensor:
    if isinstance(t, Tensor) or t != 1.0:
        values = (1 - t) * own.detach() + t * values
    own, target = own.log_softmax(-1), values.log_softmax(-1)
    return (target.exp() * (target - own)).sum(-1)


def _with_remaining_mass(own: Tensor, tail: Tensor, values: Tensor, log_normalizer: Tensor) -> Tensor:
    """KL over k + 1 classes; ``tail``: the logsumexp of the student's other logits.

    Its own sum, because one minus the top k's probabilities has no digits left for a confident student.
    """
    normalizer = torch.logaddexp(own.logsumexp(-1), tail)
    own = own - normalizer.unsqueeze(-1)
    own_rest = (tail - normalizer).masked_fill(tail.isneginf(), 0.0)  # no other class, and no mass there
    target = values - log_normalizer.unsqueeze(-1)
    # Rounding may leave a sum of probabilities just above 1.
    rest = (-torch.expm1(target.logsumexp(-1))).clamp(min=0)
    return (target.exp() * (target - own)).sum(-1) + torch.special.xlogy(rest, rest) - rest * own_rest


def _check_counting(student_hidden, temperature, mask, weight, divisor) -> Tensor | None:
    if isinstance(temperature, bool) or not isinstance(temperature, numbers.Real) or not temperature > 0:
        raise ValueError(f"temperature is {temperature!r}; accepted: a number > 0")
    if mask is not None:
        _checks.check_mask(mask, student_hidden)
    if weight is not None:
        _checks.check_weight(weight, student_hidden)
    if divisor is not None:
        divisor = _checks.check_divisor(divisor, student_hidden)
    return divisor


def _check_teacher(student_hidden, hidden, weight, bias, needed: bool) -> None:
    if hidden is None or weight is None:
        if needed:
            raise ValueError("teacher_hidden or teacher_weight is missing; accepted: both, where k or anchor is given")
        return
    validation.check_side("teacher", hidden, weight, bias)
    validation.check_sides(student_hidden, hidden)


def _check_topk(hidden, weight, values, indices, log_normalizer, t) -> None:
    if values is None or indices is None:
        raise ValueError("teacher_values or teacher_indices is missing; accepted: both, or k with the teacher's states")
    validation.check_floating("teacher_values", values, "logits")
    if not isinstance(indices, Tensor) or indices.dtype is not torch.int64:
        raise TypeError(
            f"teacher_indices is {getattr(indices, 'dtype', type(indices))}; accepted: a torch.int64 tensor"
        )
    if values.shape != indices.shape or values.shape[:-1] != hidden.shape[:-1] or values.shape[-1] == 0:
        raise ValueError(
            f"teacher_values and teacher_indices have shapes {tuple(values.shape)} and {tuple(indices.shape)}; accepted: "
            f"{tuple(hidden.shape[:-1])} and k, for both"
        )
    if indices.is_cpu and indices.numel() and not torch.compiler.is_compiling():
        low, high = (int(x) for x in indices.aminmax())
        if low < 0 or high >= weight.shape[0]:
            raise ValueError(f"teacher_indices has entries {low} to {high}; accepted: 0 to {weight.shape[0] - 1}")
    if not isinstance(t, Tensor) and not (isinstance(t, numbers.Real) and 0 <= t <= 1):
        raise ValueError(f"t is {t!r}; accepted: a number from 0 to 1 or a 0-d tensor")
    if log_normalizer is not None:
        validation.check_floating("teacher_log_normalizer", log_normalizer, "log normalisers")
        if log_normalizer.shape != hidden.shape[:-1]:
            shape = tuple(log_normalizer.shape)
            raise ValueError(f"teacher_log_normalizer has shape {shape}; accepted: {tuple(hidden.shape[:-1])}")
        if isinstance(t, Tensor) or t != 1.0:
            raise ValueError("t is not 1 beside teacher_log_normalizer; accepted: one of the two")


def _check_repeated(indices: Tensor, kept: Tensor | None) -> None:
    """A class given twice would count twice. As other values: looked for where that waits for no device."""
    if not indices.is_cpu or torch.compiler.is_compiling():
        return
    ordered = indices.sort(-1).values
    repeated = (ordered[..., 1:] == ordered[..., :-1]).any(-1)
    if kept is not None:
        repeated = repeated & kept
    if repeated.any():
        where = repeated.nonzero()[0].tolist()
        raise ValueError(f"teacher_indices has a class twice, at token {where}; accepted: k different classes a token")
