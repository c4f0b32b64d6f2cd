"""The mathematics of akd_ext in plain PyTorch: the specification, the fallback, and the oracle of the tests.

Nothing here is fused and everything is differentiable any number of times by autograd, on any device. The arguments
are those of :func:`akd_ext.annealed_mse_loss`, which checks them; nothing here does. Classes lie last.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

REDUCTIONS = ("mean", "batchmean", "sum", "none")


def accumulation_dtype(student: Tensor, teacher: Tensor) -> torch.dtype:
    """float64 when either tensor is, else float32: the dtype of the arithmetic and of the loss."""
    return torch.float64 if torch.float64 in (student.dtype, teacher.dtype) else torch.float32


def count(
    student: Tensor,
    teacher: Tensor,
    reduction: str,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    divisor: float | Tensor | None = None,
) -> int | float | Tensor:
    """What the sum of squares is divided by: ``divisor``, or rows times classes for ``mean``, rows for ``batchmean``, else 1.

    ``rows`` is the sum of the rows' weights, which are 1 unless given; masked rows have none. Where that depends on
    data the answer is a 0-d tensor on its device, so nothing waits for the device.
    """
    dtype = accumulation_dtype(student, teacher)
    if divisor is not None:
        return _to(divisor, dtype)  # on the CPU it goes with any device
    if reduction in ("sum", "none"):
        return 1
    if weight is not None:
        weight = _to(weight, dtype)
        rows = (weight if mask is None else weight.where(mask, weight.new_zeros(()))).sum()
    elif mask is not None:
        rows = mask.sum()
    else:
        rows = math.prod(student.shape[:-1])  # not .numel(), which makes a number of a symbolic size
    rows = rows * student.shape[-1] if reduction == "mean" else rows
    return _to(rows, dtype)  # torch.jit.trace makes tensors of sizes


def gradient_scale(
    student: Tensor,
    teacher: Tensor,
    reduction: str,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    divisor: float | Tensor | None = None,
) -> float | Tensor:
    """``2 / count``, and 0 when nothing counts: then every gradient is 0 and must stay so."""
    divisor = count(student, teacher, reduction, mask, weight, divisor)
    if isinstance(divisor, Tensor):
        return (2.0 / divisor).masked_fill(divisor == 0, 0.0)
    if isinstance(divisor, torch.SymInt):
        return 2.0 / torch.sym_max(divisor, 1)
    return 2.0 / divisor if divisor else 0.0


def kept_rows(mask: Tensor | None, weight: Tensor | None) -> Tensor | None:
    """Which rows count: those that neither the mask nor a weight of 0 leaves out; None when all do."""
    if weight is None:
        return mask
    return weight != 0 if mask is None else mask & (weight != 0)


def difference(
    student: Tensor, teacher: Tensor, phi: float | Tensor, mask: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """``student - phi * teacher`` in the accumulation dtype, exactly 0 in rows that do not count. Not weighted."""
    dtype = accumulation_dtype(student, teacher)
    if isinstance(phi, Tensor):
        phi = phi.to(student.device, dtype)
    diff = student.to(dtype) - phi * teacher.to(dtype)
    # A row that does not count may hold anything, NaN too: it must be replaced, not multiplied by 0.
    kept = kept_rows(mask, weight)
    return diff if kept is None else diff.where(kept.unsqueeze(-1), diff.new_zeros(()))


def weighted(terms: Tensor, weight: Tensor | None) -> Tensor:
    """``terms``, one for each element, times the weight of their row."""
    return terms if weight is None else terms * weight.unsqueeze(-1).to(terms.dtype)


def saturate_half(x: Tensor) -> Tensor:
    """Finite values beyond float16's largest number become that; infinity and NaN stay. csrc/annealed_mse.h says why."""
    return torch.where(x.isfinite(), x.clamp(-65504.0, 65504.0), x)


def annealed_mse(
    student: Tensor,
    teacher: Tensor,
    phi: float | Tensor,
    *,
    reduction: str = "mean",
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    divisor: float | Tensor | None = None,
) -> Tensor:
    """``sum of weight * (student - phi * teacher)^2 / count`` (equation 3 of Annealing-KD); see :func:`count`.

    >>> student, teacher = torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 2.0]])
    >>> annealed_mse(student, teacher, 0.5)
    tensor(0.5000)
    """
    squares = weighted(difference(student, teacher, phi, mask, weight).square(), weight)
    terms = squares if reduction == "none" else squares.sum()
    return _divided(terms, count(student, teacher, reduction, mask, weight, divisor))


def annealed_mse_gradient(
    student: Tensor,
    teacher: Tensor,
    phi: float | Tensor,
    *,
    reduction: str = "mean",
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    divisor: float | Tensor | None = None,
) -> Tensor:
    """The gradient of :func:`annealed_mse` by the student's logits, ``2 weight (student - phi * teacher) / count``."""
    scale = gradient_scale(student, teacher, reduction, mask, weight, divisor)
    return (scale * weighted(difference(student, teacher, phi, mask, weight), weight)).to(student.dtype)


def annealed_kl(
    student: Tensor,
    teacher: Tensor,
    phi: float | Tensor,
    *,
    reduction: str = "batchmean",
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    divisor: float | Tensor | None = None,
) -> Tensor:
    """``KL(softmax(phi * teacher) || softmax(student))``: the loss of the paper's ablation in Table 10.

    The student's logits are not scaled, as in stage I. ``batchmean`` averages over logit vectors, ``mean`` also over
    classes, ``none`` returns every term.

    >>> logits = torch.tensor([[1.0, 2.0]])
    >>> annealed_kl(logits, logits, 1.0)
    tensor(0.)
    """
    dtype = accumulation_dtype(student, teacher)
    if isinstance(phi, Tensor):
        phi = phi.to(student.device, dtype)
    logits, targets = student.to(dtype), phi * teacher.to(dtype)
    kept = kept_rows(mask, weight)
    if kept is not None:
        # Before the softmax, whose backward would carry a NaN of such a row on; two rows of zeros differ by 0.
        zero = logits.new_zeros(())
        logits, targets = logits.where(kept.unsqueeze(-1), zero), targets.where(kept.unsqueeze(-1), zero)
    log_student, log_teacher = F.log_softmax(logits, dim=-1), F.log_softmax(targets, dim=-1)
    terms = weighted(F.kl_div(log_student, log_teacher, reduction="none", log_target=True), weight)
    terms = terms if reduction == "none" else terms.sum()
    return _divided(terms, count(student, teacher, reduction, mask, weight, divisor))


def _to(number: float | Tensor, dtype: torch.dtype) -> float | Tensor:
    # opcheck takes a .to() that has nothing to do for an op that returns its input.
    return number.to(dtype) if isinstance(number, Tensor) and number.dtype is not dtype else number


def _divided(terms: Tensor, divisor: float | Tensor) -> Tensor:
    if isinstance(divisor, (int, float)) and divisor == 0:  # NaN or inf, as for a tensor
        divisor = terms.new_zeros(())
    return terms / divisor if not isinstance(divisor, int) or divisor != 1 else terms
