"""The border: every argument of a public function is checked here, once, and nowhere deeper."""

from __future__ import annotations

import numbers

import torch
from torch import Tensor

from akd_ext.reference import REDUCTIONS

from . import private_torch as _private

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
COUNTING = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
# How far beyond [0, 1] a number may lie: what a schedule's arithmetic leaves. It is taken for 0 or 1.
PHI_TOLERANCE = 1e-6


def check_logits(student: Tensor, teacher: Tensor) -> bool:
    """Returns whether one of them is of a subclass, such as DTensor."""
    subclass = False
    for name, tensor in (("student", student), ("teacher", teacher)):
        if type(tensor) is not Tensor:
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{name} is a {type(tensor).__name__}; accepted: a torch.Tensor of logits")
            subclass = True
        if tensor.is_nested:
            raise TypeError(f"{name} is a nested tensor; accepted: a dense tensor, with mask= for its rows")
        if tensor.dtype not in FLOATING:
            raise TypeError(f"{name} has dtype {tensor.dtype}; accepted: {', '.join(map(str, FLOATING))}")
        if tensor.layout is not torch.strided:
            raise TypeError(f"{name} has layout {tensor.layout}; accepted: torch.strided (a dense tensor)")
    if student.ndim == 0:
        raise ValueError("student has shape (); accepted: (..., classes), at least one dimension")
    if student.shape != teacher.shape:
        raise ValueError(
            f"teacher has shape {tuple(teacher.shape)}; accepted: the student's shape {tuple(student.shape)}, "
            "nothing is broadcast"
        )
    if student.device != teacher.device:
        raise ValueError(f"teacher is on {teacher.device}; accepted: the student's device {student.device}")
    return subclass


def check_phi(phi: float | Tensor, student: Tensor) -> float | Tensor:
    """Returns it: a number as a float in [0, 1], a tensor as it is."""
    if isinstance(phi, Tensor):
        value = check_scalar("phi", phi, student)
        if phi.requires_grad:
            raise ValueError("phi requires a gradient; accepted: phi.detach(), it is a schedule, not a parameter")
        if phi.dtype not in FLOATING:
            raise TypeError(f"phi has dtype {phi.dtype}; accepted: {', '.join(map(str, FLOATING))}")
        if value is None:
            return phi
    elif is_real(phi):
        value = phi
    else:
        raise TypeError(f"phi is a {type(phi).__name__}; accepted: a number in [0, 1] or a 0-d tensor")
    if not -PHI_TOLERANCE <= value <= 1.0 + PHI_TOLERANCE:  # also catches NaN
        raise ValueError(f"phi is {value}; accepted: 0 <= phi <= 1")
    return phi if isinstance(phi, Tensor) else min(max(float(phi), 0.0), 1.0)


def check_divisor(divisor: float | Tensor, student: Tensor) -> Tensor:
    """Returns it as a 0-d floating tensor."""
    if isinstance(divisor, Tensor):
        value = check_scalar("divisor", divisor, student)
        if divisor.requires_grad:
            raise ValueError("divisor requires a gradient; accepted: divisor.detach()")
        if divisor.dtype not in FLOATING:
            if divisor.dtype not in COUNTING:
                raise TypeError(f"divisor has dtype {divisor.dtype}; accepted: a floating or an integer dtype")
            divisor = divisor.to(torch.float32 if divisor.device.type == "mps" else torch.float64)
    elif isinstance(divisor, (torch.SymInt, torch.SymFloat)):
        value = None
    elif is_real(divisor):
        value = divisor
    else:
        raise TypeError(f"divisor is a {type(divisor).__name__}; accepted: a number >= 0 or a 0-d tensor")
    if value is not None and not 0 <= value < float("inf"):  # also catches NaN
        raise ValueError(f"divisor is {value}; accepted: a finite number >= 0")
    return divisor if isinstance(divisor, Tensor) else torch.full((), divisor, dtype=torch.float64)


def is_real(value) -> bool:
    # numbers.Real: NumPy's scalars, too. The exact types first, because asking an abstract class takes longer.
    return type(value) in (float, int) or (isinstance(value, numbers.Real) and not isinstance(value, bool))


def check_scalar(name: str, tensor: Tensor, student: Tensor) -> float | None:
    """The value of a 0-d tensor, None where it cannot be read without waiting for a device, or not at all."""
    if tensor.ndim != 0:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; accepted: a number or a 0-d tensor")
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name} has layout {tensor.layout}; accepted: torch.strided (a dense tensor)")
    if not tensor.is_cpu:
        if tensor.device == student.device:
            return None
        raise ValueError(f"{name} is on {tensor.device}; accepted: cpu or the student's device {student.device}")
    # A value can be read only where there is one: not under a compiler, a transform or a fake tensor.
    if torch.compiler.is_compiling() or _private.is_wrapped(tensor) or type(tensor) not in (Tensor, torch.nn.Parameter):
        return None
    value = tensor.item()
    return value.real if isinstance(value, complex) else value


def check_reduction(reduction: str) -> None:
    if not isinstance(reduction, str):
        raise TypeError(f"reduction is a {type(reduction).__name__}; accepted: {', '.join(REDUCTIONS)}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}; accepted: {', '.join(REDUCTIONS)}")


def check_mask(mask: Tensor, student: Tensor, class_dim: int = -1) -> None:
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask is a {type(mask).__name__}; accepted: a bool torch.Tensor or None")
    if mask.dtype is not torch.bool:
        raise TypeError(f"mask has dtype {mask.dtype}; accepted: torch.bool (True keeps the row)")
    _check_per_row("mask", mask, student, class_dim)


def check_weight(weight: Tensor, student: Tensor, class_dim: int = -1) -> None:
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight is a {type(weight).__name__}; accepted: a floating torch.Tensor or None")
    if weight.dtype not in FLOATING:
        raise TypeError(f"weight has dtype {weight.dtype}; accepted: {', '.join(map(str, FLOATING))}")
    _check_per_row("weight", weight, student, class_dim)
    if weight.requires_grad:
        raise ValueError("weight requires a gradient; accepted: weight.detach(), the loss has no gradient by it")


def check_counting(
    student: Tensor, class_dim: int, mask: Tensor | None, weight: Tensor | None, divisor: float | Tensor | None
) -> tuple[int, Tensor | None]:
    """What decides how rows count. Returns ``class_dim`` counted from the end, and the divisor as a 0-d tensor."""
    class_dim = check_class_dim(class_dim, student)
    if mask is not None:
        check_mask(mask, student, class_dim)
    if weight is not None:
        check_weight(weight, student, class_dim)
    return class_dim, None if divisor is None else check_divisor(divisor, student)


def _check_per_row(name: str, tensor: Tensor, student: Tensor, class_dim: int) -> None:
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name} has layout {tensor.layout}; accepted: torch.strided (a dense tensor)")
    shape = list(student.shape)
    del shape[class_dim]
    if list(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; accepted: {tuple(shape)}, an entry per logit vector")
    if tensor.device != student.device:
        raise ValueError(f"{name} is on {tensor.device}; accepted: the student's device {student.device}")


def check_class_dim(class_dim: int, student: Tensor) -> int:
    """Returns it counted from the end: -1 is the last dimension."""
    # The exact type first, because asking an abstract class takes longer.
    if type(class_dim) is not int and (isinstance(class_dim, bool) or not isinstance(class_dim, numbers.Integral)):
        raise TypeError(f"class_dim is a {type(class_dim).__name__}; accepted: an integer")
    dims = student.ndim
    if not -dims <= class_dim < dims:
        raise ValueError(f"class_dim is {class_dim}; accepted: {-dims} to {dims - 1} for logits of {dims} dimensions")
    return int(class_dim) - dims if class_dim >= 0 else int(class_dim)
