"""The border of the linear losses: every argument is checked here, once."""

from __future__ import annotations

import numbers

import torch
from torch import Tensor

from akd_ext.op import validation as _checks

from .heads import Heads

IMPLEMENTATIONS = ("auto", "gram", "chunked")
REDUCTIONS = ("mean", "batchmean", "sum")


def check_floating(name: str, tensor: Tensor, what: str) -> None:
    if not isinstance(tensor, Tensor):
        hint = "; pass the .weight of a layer" if isinstance(tensor, torch.nn.Module) else ""
        raise TypeError(f"{name} is a {type(tensor).__name__}; accepted: a torch.Tensor of {what}{hint}")
    if tensor.dtype not in _checks.FLOATING:
        raise TypeError(f"{name} has dtype {tensor.dtype}; accepted: {', '.join(map(str, _checks.FLOATING))}")
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name} has layout {tensor.layout}; accepted: torch.strided (a dense tensor)")


def check_side(role: str, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Hidden states, head and bias of the student or the teacher."""
    check_floating(f"{role}_hidden", hidden, "hidden states")
    check_head(role, weight, bias)
    if hidden.ndim == 0 or hidden.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"{role}_hidden has shape {tuple(hidden.shape)}; accepted: (..., {weight.shape[1]}), as {role}_weight has"
        )
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.device != hidden.device:
            raise ValueError(f"{role}_{name} is on {tensor.device}; accepted: {role}_hidden's device {hidden.device}")


def check_head(role: str, weight: Tensor, bias: Tensor | None) -> None:
    check_floating(f"{role}_weight", weight, "an output head, (vocabulary, hidden)")
    if weight.ndim != 2 or weight.shape[0] == 0:
        raise ValueError(f"{role}_weight has shape {tuple(weight.shape)}; accepted: (vocabulary, hidden)")
    if bias is not None:
        check_floating(f"{role}_bias", bias, "biases")
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"{role}_bias has shape {tuple(bias.shape)}; accepted: ({weight.shape[0]},)")


def check_sides(student_hidden: Tensor, teacher_hidden: Tensor) -> None:
    if student_hidden.shape[:-1] != teacher_hidden.shape[:-1]:
        raise ValueError(
            f"teacher_hidden has shape {tuple(teacher_hidden.shape)}; accepted: {tuple(student_hidden.shape[:-1])} and "
            "the teacher's width, a hidden state for each of the student's"
        )
    if student_hidden.device != teacher_hidden.device:
        raise ValueError(f"teacher_hidden is on {teacher_hidden.device}; accepted: {student_hidden.device}")


def check_heads(heads: Heads) -> None:
    """The map between the vocabularies and the weights of the classes."""
    if (heads.student_ids is None) != (heads.teacher_ids is None):
        raise ValueError("only one of student_ids and teacher_ids is given; accepted: both, or neither")
    if heads.student_ids is None:
        student, teacher = heads.student_weight.shape[0], heads.teacher_weight.shape[0]
        if student != teacher:
            raise ValueError(
                f"the vocabularies have {student} and {teacher} entries; accepted: equal ones, or a map (student_ids and "
                f"teacher_ids; torch.arange({min(student, teacher)}) for both where the longer head is only padded)"
            )
    else:
        for role in ("student", "teacher"):
            _check_ids(f"{role}_ids", getattr(heads, f"{role}_ids"), getattr(heads, f"{role}_weight"))
        if heads.student_ids.shape != heads.teacher_ids.shape:
            raise ValueError(
                f"teacher_ids has shape {tuple(heads.teacher_ids.shape)}; accepted: that of student_ids, "
                f"{tuple(heads.student_ids.shape)}"
            )
    if heads.class_weight is not None:
        check_floating("class_weight", heads.class_weight, "weights of classes")
        if heads.class_weight.shape != (heads.classes,):
            raise ValueError(f"class_weight has shape {tuple(heads.class_weight.shape)}; accepted: ({heads.classes},)")
        if heads.class_weight.requires_grad:
            raise ValueError("class_weight requires a gradient; accepted: class_weight.detach()")
        if type(heads.class_weight) is Tensor and heads.class_weight.is_cpu and not torch.compiler.is_compiling():
            if heads.class_weight.min() < 0:
                raise ValueError(f"class_weight has an entry {heads.class_weight.min().item()}; accepted: none below 0")
    for name in ("teacher_weight", "teacher_bias"):
        tensor = getattr(heads, name)
        if tensor is not None and tensor.requires_grad and not heads.shared:
            raise ValueError(f"{name} requires a gradient; accepted: {name}.detach(), the teacher is frozen")


def _check_ids(name: str, ids: Tensor, weight: Tensor) -> None:
    if not isinstance(ids, Tensor) or ids.dtype is not torch.int64 or ids.ndim != 1:
        what = f"{ids.dtype} of shape {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise TypeError(f"{name} is a {what}; accepted: a torch.int64 tensor with one dimension, rows of the head")
    if ids.device != weight.device:
        raise ValueError(f"{name} is on {ids.device}; accepted: the head's device {weight.device}")
    if ids.is_cpu and not torch.compiler.is_compiling() and len(ids):
        low, high = (int(x) for x in ids.aminmax())
        if low < 0 or high >= weight.shape[0]:
            raise ValueError(f"{name} has entries from {low} to {high}; accepted: 0 to {weight.shape[0] - 1}")


_SCALES = {
    "teacher_scale": ("a finite number >= 0", lambda x: 0 <= x < float("inf")),
    "student_scale": ("a finite number >= 0", lambda x: 0 <= x < float("inf")),
    "label_weight": ("a number in [0, 1]", lambda x: 0 <= x <= 1),
    "temperature": ("a finite number > 0", lambda x: 0 < x < float("inf")),
}


def check_scales(scales: dict[str, float | Tensor], hidden: Tensor) -> None:
    """What a schedule may change at every step: numbers or 0-d tensors."""
    for name, scale in scales.items():
        accepted, is_accepted = _SCALES[name]
        if isinstance(scale, Tensor):
            if scale.dtype not in _checks.FLOATING:
                raise TypeError(f"{name} has dtype {scale.dtype}; accepted: {', '.join(map(str, _checks.FLOATING))}")
            if scale.requires_grad:
                raise ValueError(f"{name} requires a gradient; accepted: {name}.detach(), the loss has none by it")
            scale = _checks.check_scalar(name, scale, hidden)
        elif not _checks.is_real(scale):
            raise TypeError(f"{name} is a {type(scale).__name__}; accepted: {accepted}, or a 0-d tensor")
        if scale is not None and not is_accepted(scale):  # also catches NaN
            raise ValueError(f"{name} is {scale}; accepted: {accepted}")


def check_labels(labels: Tensor, hidden: Tensor, classes: int, ignore_index: int) -> None:
    if not isinstance(labels, Tensor) or labels.dtype is not torch.int64:
        raise TypeError(f"labels is {getattr(labels, 'dtype', type(labels))}; accepted: a torch.int64 tensor")
    if labels.shape != hidden.shape[:-1]:
        raise ValueError(f"labels has shape {tuple(labels.shape)}; accepted: {tuple(hidden.shape[:-1])}, one a token")
    if labels.device != hidden.device:
        raise ValueError(f"labels is on {labels.device}; accepted: student_hidden's device {hidden.device}")
    if labels.is_cpu and labels.numel() and not torch.compiler.is_compiling():
        low, high = (int(x) for x in labels.where(labels != ignore_index, 0).aminmax())
        if low < 0 or high >= classes:
            raise ValueError(f"labels has entries {low} to {high}; accepted: 0 to {classes - 1}, and {ignore_index}")


def check_rest(reduction: str, implementation: str, scales: tuple[float, float], softcapping: float | None) -> None:
    if reduction == "none":
        raise ValueError(
            "reduction is 'none', a value for each token and class, which this loss never makes; accepted: "
            + ", ".join(REDUCTIONS)
        )
    _checks.check_reduction(reduction)
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation is {implementation!r}; accepted: {', '.join(IMPLEMENTATIONS)}")
    for name, scale in zip(("logit_scale", "teacher_logit_scale"), scales, strict=True):
        if isinstance(scale, bool) or not isinstance(scale, numbers.Real):
            raise TypeError(f"{name} is a {type(scale).__name__}; accepted: a number")
    if softcapping:
        raise ValueError(
            f"logit_softcapping is {softcapping}: such logits are not linear in hidden states; accepted: None, with "
            "annealed_mse_loss on the capped logits for such a model"
        )
