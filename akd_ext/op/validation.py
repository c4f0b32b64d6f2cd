"""The border: every argument of a public function is checked here, once, and nowhere deeper."""

from __future__ import annotations

import torch
from torch import Tensor

from akd_ext.reference import REDUCTIONS

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_logits(student: Tensor, teacher: Tensor) -> bool:
    """Returns whether one of them is of a subclass, such as DTensor."""
    subclass = False
    for name, tensor in (("student", student), ("teacher", teacher)):
        if type(tensor) is not Tensor:
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{name} is a {type(tensor).__name__}; accepted: a torch.Tensor of logits")
            subclass = True
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


def check_phi(phi: float | Tensor, student: Tensor) -> None:
    if isinstance(phi, Tensor):
        if phi.ndim != 0:
            raise ValueError(f"phi has shape {tuple(phi.shape)}; accepted: a number or a 0-d tensor")
        if phi.dtype not in FLOATING:
            raise TypeError(f"phi has dtype {phi.dtype}; accepted: {', '.join(map(str, FLOATING))}")
        if phi.layout is not torch.strided:
            raise TypeError(f"phi has layout {phi.layout}; accepted: torch.strided (a dense tensor)")
        if phi.requires_grad:
            raise ValueError("phi requires a gradient; accepted: phi.detach(), it is a schedule, not a parameter")
        if phi.is_cpu:
            # A value can be read only where there is one: not under a compiler, a transform or a fake tensor.
            if (
                torch.compiler.is_compiling()
                or torch._C._functorch.is_functorch_wrapped_tensor(phi)
                or type(phi) not in (Tensor, torch.nn.Parameter)
            ):
                return
            phi = phi.item()
        elif phi.device == student.device:
            return
        else:
            raise ValueError(f"phi is on {phi.device}; accepted: cpu or the student's device {student.device}")
    elif isinstance(phi, bool) or not isinstance(phi, (float, int)):
        raise TypeError(f"phi is a {type(phi).__name__}; accepted: a number in [0, 1] or a 0-d tensor")
    if not 0.0 <= phi <= 1.0:  # also catches NaN
        raise ValueError(f"phi is {phi}; accepted: 0 <= phi <= 1")


def check_reduction(reduction: str) -> None:
    if not isinstance(reduction, str):
        raise TypeError(f"reduction is a {type(reduction).__name__}; accepted: {', '.join(REDUCTIONS)}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}; accepted: {', '.join(REDUCTIONS)}")


def check_mask(mask: Tensor, student: Tensor) -> None:
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask is a {type(mask).__name__}; accepted: a bool torch.Tensor or None")
    if mask.dtype is not torch.bool:
        raise TypeError(f"mask has dtype {mask.dtype}; accepted: torch.bool (True keeps the row)")
    if mask.layout is not torch.strided:
        raise TypeError(f"mask has layout {mask.layout}; accepted: torch.strided (a dense tensor)")
    if mask.shape != student.shape[:-1]:
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}; accepted: {tuple(student.shape[:-1])}, an entry per logit vector"
        )
    if mask.device != student.device:
        raise ValueError(f"mask is on {mask.device}; accepted: the student's device {student.device}")
