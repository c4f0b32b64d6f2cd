"""The op ``torch.ops.akd_ext.annealed_mse``: fallback, fake kernel and autograd.

The kernel computes the loss and, in the same pass, the student's gradient for an upstream gradient of 1. When the loss
is the root of ``backward()``, the backward pass has nothing left to do: ``scale_`` meets the 1 and returns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from akd_ext import reference

from . import capability as _capability
from . import library as _library
from . import private_torch as _private

# csrc/annealed_mse.h holds the same numbers.
REDUCTION = {"sum": 0, "mean": 1, "batchmean": 2}
_NAME = {number: name for name, number in REDUCTION.items()}

_handle = _library.load()
annealed_mse = torch.ops.akd_ext.annealed_mse.default
scale_ = torch.ops.akd_ext.scale_.default

_annealed_mse_of_tensors = _private.without_overrides(annealed_mse)

_CPU = (torch.device("cpu"),)


# ---- devices without a kernel of ours: plain PyTorch behind the same op --------------------------------------------


@torch.library.impl(_handle, "annealed_mse", "CompositeExplicitAutograd")
def _annealed_mse_fallback(student, teacher, phi_tensor, phi, mask, weight, divisor, reduction, with_gradient):
    phi = phi if phi_tensor is None else phi_tensor
    counting = (_NAME[reduction], mask, weight, divisor)
    difference = reference.difference(student, teacher, phi, mask, weight)
    # A sum divided by 0 is NaN for a tensor and an exception for a number.
    count = reference.count(student, teacher, *counting)
    if not isinstance(count, Tensor):
        count = difference.new_full((), count)
    loss = reference.weighted(difference.square(), weight).sum() / count
    if not with_gradient:
        return loss, student.new_empty(0)
    gradient = reference.weighted(difference, weight)
    if student.dtype is torch.float16:  # _backward normalises those
        gradient = reference.saturate_half(gradient)
    else:
        gradient = gradient.mul_(reference.gradient_scale(student, teacher, *counting))
    return loss, gradient.to(student.dtype, memory_format=torch.contiguous_format)


@torch.library.impl(_handle, "scale_", "CompositeExplicitAutograd")
def _scale_fallback(tensor, factor, constant):
    if factor.device.type != "cpu" or factor.item() * constant != 1:
        factor = factor * constant
        tensor.copy_(tensor.to(factor.dtype) * factor if factor.dtype is not tensor.dtype else tensor * factor)


@torch.library.register_fake("akd_ext::annealed_mse")
def _annealed_mse_fake(student, teacher, phi_tensor, phi, mask, weight, divisor, reduction, with_gradient):
    for name, tensor in (("teacher", teacher), ("mask", mask), ("weight", weight)):
        if tensor is not None and tensor.device != student.device:
            raise ValueError(f"{name} is on {tensor.device}; accepted: the student's device {student.device}")
    for name, tensor in (("phi_tensor", phi_tensor), ("divisor", divisor)):
        if tensor is not None and tensor.device not in (student.device, *_CPU):
            raise ValueError(f"{name} is on {tensor.device}; accepted: the student's device {student.device}")
    loss = student.new_empty((), dtype=reference.accumulation_dtype(student, teacher))
    return loss, student.new_empty(student.shape if with_gradient else 0)


@torch.library.register_fake("akd_ext::scale_")
def _scale_fake(tensor, factor, constant):
    if factor.device not in (tensor.device, *_CPU):
        raise ValueError(f"factor is on {factor.device}; accepted: the tensor's device {tensor.device}")


# ---- autograd -----------------------------------------------------------------------------------------------------


def _save(ctx, inputs, gradient) -> None:
    student, teacher, phi_tensor, ctx.phi, mask, weight, divisor, ctx.reduction = inputs
    # Not saved through autograd, where hooks could see it: AnnealedMSE's backward hands it out.
    ctx.gradient = gradient
    ctx.scale = 1.0
    if student.dtype is torch.float16:  # the kernel stores the difference alone: csrc/annealed_mse.h says why
        ctx.scale = reference.gradient_scale(student, teacher, _NAME[ctx.reduction], mask, weight, divisor)
    ctx.made_in_inference = None
    if (
        teacher.is_inference()
        or student.is_inference()
        or (phi_tensor is not None and phi_tensor.is_inference())
        or (mask is not None and mask.is_inference())
        or (weight is not None and weight.is_inference())
        or (divisor is not None and divisor.is_inference())
    ):
        _save_from_inference(ctx, student, teacher, phi_tensor, mask, weight, divisor)
    else:
        ctx.save_for_backward(student, teacher, phi_tensor, mask, weight, divisor)


def _save_from_inference(ctx, *tensors) -> None:
    # Autograd refuses to save what inference mode made, a teacher's logits for one. Such a tensor has no version
    # counter that autograd could watch, so holding it is all there is to do.
    ctx.made_in_inference = tuple(x if x is not None and x.is_inference() else None for x in tensors)
    ctx.save_for_backward(*(None if x is not None and x.is_inference() else x for x in tensors))


def _saved(ctx) -> tuple[Tensor | None, ...]:
    """Student, teacher, phi, mask, weight, divisor."""
    saved = ctx.saved_tensors  # raises PyTorch's own error when the graph has been freed
    if ctx.made_in_inference is None:
        return saved
    # A copy of the small ones, which the operations of a second-order gradient may save in their turn.
    held = (x if x is None or i < 2 else x.clone() for i, x in enumerate(ctx.made_in_inference))
    return tuple(x if x is not None else y for x, y in zip(held, saved, strict=True))


def _is_plain(tensor) -> bool:
    # Not of a compiler (compiled autograd traces backward passes too, and knows none of the questions below), a
    # subclass, a transform, or of autograd.grad(is_grads_batched=True), the legacy one.
    if torch.compiler.is_compiling() or type(tensor) is not Tensor:
        return False
    return not (_private.is_wrapped(tensor) or _private.is_batched(tensor))


def _gradients(ctx, upstream, *, owned: bool) -> tuple[Tensor | None, Tensor | None]:
    """By student and teacher. ``owned``: nobody else can see the gradient that the kernel stored."""
    gradient, scale = ctx.gradient, ctx.scale
    if gradient is None or torch.is_grad_enabled():
        return _slow_gradients(ctx, upstream)
    if isinstance(scale, Tensor):  # float16 with a mask
        upstream, scale = upstream * scale, 1.0
    if owned and not _private.graph_is_kept():
        ctx.gradient = None
        if _capability.has_no_kernel(gradient):
            _scale_fallback(gradient, upstream, scale)
        elif not upstream.is_cpu or upstream.item() * scale != 1.0:
            with _private.below_autograd():
                scale_(gradient, upstream, scale)
    else:
        factor = upstream * scale if gradient.dtype is torch.float16 else upstream
        gradient = (gradient.to(factor.dtype) * factor).to(gradient.dtype)
    return gradient, None


def _slow_gradients(ctx, upstream) -> tuple[Tensor | None, Tensor | None]:
    """Second order, a teacher that wants its gradient, or a buffer already given away: from the inputs, by autograd."""
    student, teacher, phi, mask, weight, divisor = _saved(ctx)
    phi = ctx.phi if phi is None else phi.to(student.device, reference.accumulation_dtype(student, teacher))
    scale = upstream * reference.gradient_scale(student, teacher, _NAME[ctx.reduction], mask, weight, divisor)
    gradient = scale * reference.weighted(reference.difference(student, teacher, phi, mask, weight), weight)
    by_student = gradient.to(student.dtype) if ctx.needs_input_grad[0] else None
    by_teacher = (-phi * gradient).to(teacher.dtype) if ctx.needs_input_grad[1] else None
    return by_student, by_teacher


def _setup_context(ctx, inputs, output) -> None:
    *inputs, with_gradient = inputs
    _save(ctx, inputs, output[1] if with_gradient and not ctx.needs_input_grad[1] else None)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, upstream, _):
    gradients = (None, None) if upstream is None else _gradients(ctx, upstream, owned=False)
    return *gradients, *[None] * 7


torch.library.register_autograd("akd_ext::annealed_mse", _backward, setup_context=_setup_context)


def annealed_mse_without_grad(student, teacher, *rest):
    """The op for tensors that want no gradient: past the Python autograd kernel above, which would only pass it on."""
    if _capability.has_no_kernel(student):
        with torch.no_grad():
            return _annealed_mse_fallback(student, teacher, *rest)
    call = _annealed_mse_of_tensors if type(student) is type(teacher) is Tensor else annealed_mse
    with _private.below_autograd():
        return call(student, teacher, *rest)


class AnnealedMSE(torch.autograd.Function):
    """The op with the same backward, without the dispatcher's way through Python: 8 microseconds less.

    ``rest`` holds the op's other inputs in one tuple: autograd looks at every input it is given, one by one.
    """

    @staticmethod
    def forward(ctx, student, teacher, rest):
        loss, gradient = annealed_mse_without_grad(student, teacher, *rest)
        *rest, with_gradient = rest
        _save(ctx, (student, teacher, *rest), gradient if with_gradient else None)
        return loss

    @staticmethod
    def backward(ctx, upstream):
        by_student, by_teacher = _gradients(ctx, upstream, owned=_is_plain(upstream))
        return by_student, by_teacher, None
