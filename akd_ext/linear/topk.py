"""KL over the teacher's top k, held in place over the rest of the vocabulary by the squared error."""

from __future__ import annotations

import numbers
from typing import Any, NamedTuple

import torch
from torch import Tensor

from akd_ext.op import validation as _checks
from akd_ext.reference import kept_rows

from . import validation
from .heads import whole
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
    logit_scale: float = 1.0,
    teacher_logit_scale: float = 1.0,
    anchor_options: dict[str, Any] | None = None,
) -> Tensor:
    """``topk * KL(teacher's top k || student) + anchor * mean squared error over the whole vocabulary``.

    Averaged over tokens. Only k rows of the student's head are gathered a token. KL over the top k alone leaves the
    rest of the vocabulary free, and the student drifts there; the anchor, :func:`akd_ext.linear_annealed_mse_loss`
    (``center=True``, ``reduction="batchmean"`` over the vocabulary's size), holds it.

    Args:
        student_hidden, student_weight, student_bias: as in :func:`akd_ext.linear_annealed_mse_loss`.
        teacher_values, teacher_indices: the teacher's k largest logits and their places (int64, none twice), ``(..., k)``,
            as caches hold them. Or ``k``, with ``teacher_hidden`` and ``teacher_weight`` (no more rows than the student's),
            from which they are computed.
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
        logit_scale, teacher_logit_scale: positive factors of the logits that hidden states give, where a model has such;
            ``teacher_values`` hold the teacher's already.
        anchor_options: more arguments of the anchor, such as ``center`` or ``teacher_gram``.

    Heads that are DTensors, cut by rows, are gathered for the KL, once; the student's gradient comes out cut as they are,
    the mean over the processes.

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
    divisor = _check_counting(student_hidden, temperature, mask, weight, divisor)
    kept = kept_rows(mask, weight)
    if k is None:
        _check_topk(student_hidden, student_weight, teacher_values, teacher_indices, kept)
    elif teacher_values is not None or teacher_indices is not None:
        raise ValueError("k is given beside teacher_values or teacher_indices; accepted: one of the two ways")
    else:
        _check_rows(student_weight, teacher_weight)
    _check_numbers(student_hidden, {"t": (t, 1.0), "topk": (topk, float("inf")), "anchor": (anchor, float("inf"))})
    _check_target(student_hidden, teacher_log_normalizer, t)
    _check_factors(logit_scale, teacher_logit_scale, anchor_options)
    tokens = _Tokens(
        student_hidden, teacher_hidden if anchored or k is not None else None, teacher_values, teacher_indices,
        teacher_log_normalizer, weight,
    ).counted(kept)  # fmt: skip
    if k is not None:
        values, indices = teacher_topk(tokens.teacher, whole(teacher_weight), whole(teacher_bias), k)
        tokens = tokens._replace(values=values * teacher_logit_scale, indices=indices)
    head = whole(student_weight), whole(student_bias)
    terms = _divergence(tokens, head, (temperature / logit_scale, temperature), t)
    loss = topk * _averaged(terms * temperature**2, tokens.kept, tokens.weight, divisor)
    if not anchored:
        return loss
    options = {"center": True, **(anchor_options or {})}
    classes = student_weight.shape[0] if options.get("student_ids") is None else len(options["student_ids"])
    per_token = classes if options.get("reduction", "mean") == "mean" else 1
    squares = linear_annealed_mse_loss(
        tokens.student, student_weight, tokens.teacher, teacher_weight, phi, student_bias=student_bias,
        teacher_bias=teacher_bias, mask=tokens.kept, weight=tokens.weight,
        divisor=None if divisor is None else divisor * per_token, logit_scale=logit_scale,
        teacher_logit_scale=teacher_logit_scale, **options,
    )  # fmt: skip
    return loss + anchor * squares


class _Tokens(NamedTuple):
    """What is read of each token. ``kept`` ``[N]``: which of them count, if not all."""

    student: Tensor
    teacher: Tensor | None
    values: Tensor | None
    indices: Tensor | None
    log_normalizer: Tensor | None
    weight: Tensor | None
    kept: Tensor | None = None

    def counted(self, kept: Tensor | None) -> _Tokens:
        """``[N, ...]``, of the tokens that count; in a compiled graph, which has fixed shapes, of all, 0 where one does not."""
        dims = self.student.dim() - 1
        tensors = [x if x is None else x.flatten(0, dims - 1) if dims else x.unsqueeze(0) for x in self[:-1]]
        if torch.compiler.is_compiling():
            if kept is None:
                return _Tokens(*tensors)
            kept = kept.flatten()
            found = [x if x is None else x.where(_like(kept, x), x.new_zeros(())) for x in tensors]
            return _Tokens(*found, kept)
        if kept is not None:
            chosen = kept.flatten().nonzero().squeeze(1)
            return _Tokens(*(x if x is None else x.index_select(0, chosen) for x in tensors))
        # What a teacher made in inference mode cannot be saved for a backward pass.
        return _Tokens(*(x.clone() if x is not None and x.is_inference() else x for x in tensors))


def _like(kept: Tensor, tensor: Tensor) -> Tensor:
    return kept.reshape(-1, *[1] * (tensor.dim() - 1))


def _divergence(
    tokens: _Tokens, head: tuple[Tensor, Tensor | None], temperatures: tuple[float, float], t: float | Tensor
) -> Tensor:
    """Of every token, ``[N]``, without the factor of the temperature; ``temperatures`` divide student's and teacher's."""
    dtype = compute_dtype(tokens.student, head[0], tokens.values)
    values = tokens.values.detach().to(dtype) / temperatures[1]
    with torch.autocast(values.device.type, enabled=False):
        hidden = tokens.student.to(dtype)
        own = GatheredLogits.apply(hidden, *head, tokens.indices) / temperatures[0]
        if tokens.log_normalizer is None:
            return _among_topk(own, values, t)
        tail = LogNormalizer.apply(hidden, *head, temperatures[0], tokens.indices)
        return _with_remaining_mass(own, tail, values, tokens.log_normalizer.detach().to(dtype))


def _averaged(terms: Tensor, kept: Tensor | None, weight: Tensor | None, divisor: Tensor | None) -> Tensor:
    """Over tokens; where none counts NaN, with a gradient of 0."""
    rows = kept
    if kept is not None:
        terms = terms.where(kept, terms.new_zeros(()))
    if weight is not None:
        rows = weight.to(terms.dtype)
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
    if isinstance(temperature, bool) or not isinstance(temperature, numbers.Real) or not 0 < temperature < float("inf"):
        raise ValueError(f"temperature is {temperature!r}; accepted: a finite number > 0")
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


def _check_topk(hidden: Tensor, weight: Tensor, values, indices, kept: Tensor | None) -> None:
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
    _check_indices(indices, weight.shape[0], kept)


def _check_rows(student: Tensor, teacher: Tensor) -> None:
    """Where the teacher's k are looked for: they may lie among rows that the student lacks."""
    if len(teacher) > len(student):
        raise ValueError(
            f"teacher_weight has {len(teacher)} rows, student_weight {len(student)}; accepted with k: no more than the "
            "student's. Where the others are padding, cut them: teacher_weight[:len(student_weight)]"
        )


def _check_indices(indices: Tensor, classes: int, kept: Tensor | None) -> None:
    """Of the tokens that count: others may have anything there. Only where looking waits for no device."""
    if not indices.is_cpu or torch.compiler.is_compiling():
        return
    kept = indices.new_ones(indices.shape[:-1], dtype=torch.bool) if kept is None else kept
    ordered = indices[kept].sort(-1).values
    if not ordered.numel():
        return
    low, high = (int(x) for x in ordered.aminmax())
    if low < 0 or high >= classes:
        raise ValueError(f"teacher_indices has entries {low} to {high}; accepted: 0 to {classes - 1}")
    repeated = (ordered[:, 1:] == ordered[:, :-1]).any(-1)  # it would count twice
    if repeated.any():
        where = kept.nonzero()[repeated.nonzero()[0, 0]].tolist()
        raise ValueError(f"teacher_indices has a class twice, at token {where}; accepted: k different classes a token")


def _check_numbers(hidden: Tensor, given: dict[str, tuple[float | Tensor, float]]) -> None:
    """Numbers or 0-d tensors, from 0 to the bound beside each; a tensor's value is looked at where that waits for no device."""
    for name, (number, most) in given.items():
        value = _checks.check_scalar(name, number, hidden) if isinstance(number, Tensor) else number
        if value is None:
            continue
        if not _checks.is_real(value) or not 0 <= value <= most or value == float("inf"):
            bounds = "from 0 to 1" if most == 1.0 else ">= 0"
            raise ValueError(f"{name} is {value!r}; accepted: a number {bounds} or a 0-d tensor")


def _check_target(hidden: Tensor, log_normalizer: Tensor | None, t: float | Tensor) -> None:
    if log_normalizer is not None:
        validation.check_floating("teacher_log_normalizer", log_normalizer, "log normalisers")
        if log_normalizer.shape != hidden.shape[:-1]:
            shape = tuple(log_normalizer.shape)
            raise ValueError(f"teacher_log_normalizer has shape {shape}; accepted: {tuple(hidden.shape[:-1])}")
        if isinstance(t, Tensor) or t != 1.0:
            raise ValueError("t is not 1 beside teacher_log_normalizer; accepted: one of the two")


def _check_factors(student: float, teacher: float, anchor_options: dict[str, Any] | None) -> None:
    for name, scale in (("logit_scale", student), ("teacher_logit_scale", teacher)):
        if not _checks.is_real(scale) or not 0 < scale < float("inf"):
            raise ValueError(f"{name} is {scale!r}; accepted: a finite number > 0")
        if name in (anchor_options or {}):
            raise ValueError(f"{name} is in anchor_options; accepted: as an argument, for both parts of the loss")
