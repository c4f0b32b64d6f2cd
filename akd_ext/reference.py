"""The mathematics of akd_ext in plain PyTorch: the specification, the fallback, and the oracle of the tests.

Nothing here is fused and everything is differentiable any number of times by autograd, on any device.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

REDUCTIONS = ("mean", "batchmean", "sum", "none")


def accumulation_dtype(student: Tensor, teacher: Tensor) -> torch.dtype:
    """float64 when either tensor is, else float32: the dtype of the arithmetic and of the loss."""
    return torch.float64 if torch.float64 in (student.dtype, teacher.dtype) else torch.float32


def count(student: Tensor, teacher: Tensor, reduction: str, mask: Tensor | None) -> int | Tensor:
    """What the summed squares are divided by: elements for ``mean``, logit vectors for ``batchmean``, 1 otherwise.

    Masked rows do not count. With a mask the answer is a 0-d tensor on its device, so nothing waits for the device.
    """
    if reduction in ("sum", "none"):
        return 1
    classes = student.shape[-1]
    if mask is None:
        rows = student.shape[:-1].numel()
    else:
        rows = mask.sum().to(accumulation_dtype(student, teacher))
    return rows * classes if reduction == "mean" else rows


def gradient_scale(student: Tensor, teacher: Tensor, reduction: str, mask: Tensor | None) -> float | Tensor:
    """``2 / count``, finite when nothing counts: then every gradient is 0 and must stay so."""
    divisor = count(student, teacher, reduction, mask)
    return 2.0 / (divisor.clamp(min=1) if isinstance(divisor, Tensor) else max(divisor, 1))


def difference(student: Tensor, teacher: Tensor, phi: float | Tensor, mask: Tensor | None) -> Tensor:
    """``student - phi * teacher`` in the accumulation dtype, exactly 0 in masked rows."""
    dtype = accumulation_dtype(student, teacher)
    if isinstance(phi, Tensor):
        phi = phi.to(student.device, dtype)
    diff = student.to(dtype) - phi * teacher.to(dtype)
    # A masked row may hold anything, NaN too: it must be replaced, not multiplied by 0.
    return diff if mask is None else diff.where(mask.unsqueeze(-1), diff.new_zeros(()))


def annealed_mse(
    student: Tensor, teacher: Tensor, phi: float | Tensor, *, reduction: str = "mean", mask: Tensor | None = None
) -> Tensor:
    """``|| student - phi * teacher ||^2`` (equation 3 of Annealing-KD), reduced.

    Arguments, shapes and dtypes are those of :func:`akd_ext.annealed_mse_loss`, which checks them; this does not.

    >>> student, teacher = torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 2.0]])
    >>> annealed_mse(student, teacher, 0.5)
    tensor(0.5000)
    """
    squares = difference(student, teacher, phi, mask).square()
    if reduction == "none":
        return squares
    return squares.sum() / count(student, teacher, reduction, mask)


def annealed_mse_gradient(
    student: Tensor, teacher: Tensor, phi: float | Tensor, *, reduction: str = "mean", mask: Tensor | None = None
) -> Tensor:
    """The gradient of :func:`annealed_mse` by the student's logits, ``2 (student - phi * teacher) / count``."""
    scale = gradient_scale(student, teacher, reduction, mask)
    return (scale * difference(student, teacher, phi, mask)).to(student.dtype)


def annealed_kl(
    student: Tensor, teacher: Tensor, phi: float | Tensor, *, reduction: str = "batchmean", mask: Tensor | None = None
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
    if mask is not None:
        # Before the softmax, whose backward would carry a NaN of a masked row on; two rows of zeros differ by 0.
        zero = logits.new_zeros(())
        logits, targets = logits.where(mask.unsqueeze(-1), zero), targets.where(mask.unsqueeze(-1), zero)
    log_student, log_teacher = F.log_softmax(logits, dim=-1), F.log_softmax(targets, dim=-1)
    terms = F.kl_div(log_student, log_teacher, reduction="none", log_target=True)
    if reduction == "none":
        return terms
    return terms.sum() / count(student, teacher, reduction, mask)
