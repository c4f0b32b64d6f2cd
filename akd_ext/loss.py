"""The two ways to call Annealing-KD's loss of stage I: a function and a module."""

from __future__ import annotations

import math
import numbers
import os
import sys
import warnings

import torch
from torch import Tensor, nn

from akd_ext import annealing_functions, reference
from akd_ext.annealing_functions import AnnealingFunction
from akd_ext.op import autograd as _op
from akd_ext.op import capability as _capability
from akd_ext.op import dtensor as _dtensor
from akd_ext.op import private_torch as _private
from akd_ext.op import validation as _checks
from akd_ext.schedule import AnnealingSchedule

_PACKAGE = os.path.join(os.path.dirname(__file__), "")


def annealed_mse_loss(
    student: Tensor,
    teacher: Tensor,
    phi: float | Tensor,
    *,
    reduction: str = "mean",
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    divisor: float | Tensor | None = None,
    class_dim: int = -1,
) -> Tensor:
    """``|| student - phi * teacher ||^2``, loss and gradient in one pass over memory.

    Equation 3 of Annealing-KD (Jafari et al., EACL 2021). Equivalent to, with about a third of the memory traffic::

        torch.nn.functional.mse_loss(student, phi * teacher)

    Args:
        student: logits, shape ``(..., classes)``; float64, float32, bfloat16 or float16; any strides. Slices such as
            ``logits[:, :-1]`` and ``logits[..., :classes]`` are read where they lie; other layouts are copied first.
        teacher: logits of the same shape, on the same device; its dtype may differ from the student's. Detach it (or
            run it under ``no_grad``): a teacher that requires a gradient gets the right one, by a slower path, and a
            warning where the student requires none: then the two are probably swapped.
        phi: how strongly the teacher counts, in [0, 1]: a number, or a 0-d tensor without gradient on the CPU or on the
            logits' device. A tensor may change at every step without recompiling or recapturing anything. The value of
            a tensor on an accelerator is not checked: that would wait for the device.
        reduction: ``"mean"`` over all elements (default); ``"batchmean"``, the squared norm of equation 3 averaged over
            the logit vectors (all leading dimensions); ``"sum"``; ``"none"``, every squared difference, computed in
            plain PyTorch.
        mask: bool, shape ``student.shape[:-1]``; rows where it is False give no loss, no gradient and do not count,
            even when they hold NaN.
        weight: floating, the same shape: how much each row counts. ``"mean"`` and ``"batchmean"`` then divide by the sum
            of the weights in place of the number of rows, as PyTorch's own losses do: a mask is a weight of 1 and 0.
            Rows of weight 0 may hold NaN.
        divisor: a number or a 0-d tensor that the sum of (weighted) squares is divided by, in place of what
            ``reduction`` would count: the tokens of all micro-batches in gradient accumulation, of all processes
            where they hold unequal numbers. 0 is taken for "nothing counts": the gradient is 0.
        class_dim: where the classes lie: 1 for ``(N, C, H, W)``. ``mask`` and ``weight`` have the other dimensions.

    ``student``, ``teacher``, ``mask`` and ``weight`` may be DTensors of one mesh, whole, cut into rows or cut into
    classes; the loss is then a replicated DTensor, and that of the whole tensors.

    Returns:
        A 0-d tensor (``"none"``: of the student's shape), float64 when one of the logits is, else float32. With nothing
        to average over, NaN, as in PyTorch.

    Raises:
        TypeError, ValueError: an argument is not of the form above; the message names it.

    >>> student = torch.tensor([[1.0, 2.0], [0.0, 1.0]], requires_grad=True)
    >>> teacher = torch.tensor([[2.0, 2.0], [4.0, 0.0]])
    >>> loss = annealed_mse_loss(student, teacher, phi=0.5)
    >>> loss.backward()
    >>> loss.item(), student.grad.tolist()
    (1.5, [[0.0, 0.5], [-1.0, 0.5]])
    """
    subclass = _checks.check_logits(student, teacher)
    if subclass and _dtensor.among(student, teacher):
        _dtensor.check_logits(student, teacher, mask, weight)
    phi = _checks.check_phi(phi, student)
    _checks.check_reduction(reduction)
    class_dim, divisor = _checks.check_counting(student, class_dim, mask, weight, divisor)
    if class_dim != -1:
        if reduction == "none" or mask is not None or weight is not None:
            student, teacher = student.movedim(class_dim, -1), teacher.movedim(class_dim, -1)
        elif reduction == "batchmean" and divisor is None:  # as all others: it does not matter where the classes lie
            divisor = _checks.check_divisor(math.prod(student.shape) // student.shape[class_dim], student)
    if subclass and _dtensor.among(student):
        loss = _dtensor.annealed_mse(student, teacher, phi, (reduction, mask, weight, divisor), annealed_mse_loss)
    else:
        loss = _checked_loss(student, teacher, phi, reduction, mask, weight, divisor)
    return loss.movedim(-1, class_dim) if reduction == "none" and class_dim != -1 else loss


def _checked_loss(student, teacher, phi, reduction, mask, weight, divisor) -> Tensor:
    if teacher.requires_grad and not student.requires_grad:
        _warn_of_swapped_logits()
    if (
        reduction == "none"
        # torch.func transforms and forward-mode AD look inside: give them operations they know.
        or _private.transforms_are_active()
        or _private.forward_mode_is_active()
    ):
        return _in_plain_pytorch(student, teacher, phi, reduction, mask, weight, divisor)
    phi_tensor, phi = (phi, 0.0) if isinstance(phi, Tensor) else (None, phi)
    wanted = torch.is_grad_enabled() and (student.requires_grad or teacher.requires_grad)
    # A gradient by the teacher is worked out from the inputs, and then so is the student's.
    counting = (mask, weight, divisor, _op.REDUCTION[reduction])
    rest = (phi_tensor, phi, *counting, wanted and not teacher.requires_grad)
    if torch.compiler.is_compiling():
        if _capability.has_no_kernel(student):
            phi = phi if phi_tensor is None else phi_tensor
            return _in_plain_pytorch(student, teacher, phi, reduction, mask, weight, divisor)
        return _op.annealed_mse(student, teacher, *rest)[0]
    if wanted:
        return _op.AnnealedMSE.apply(student, teacher, rest)
    return _op.annealed_mse_without_grad(student, teacher, *rest)[0]


def _warn_of_swapped_logits() -> None:
    asked_for = _private.transforms_are_active()  # torch.func.grad by the teacher
    if torch.is_grad_enabled() and not torch.compiler.is_compiling() and not asked_for:
        warnings.warn(
            "the second argument, the teacher's logits, requires a gradient, and the first, the student's, does not: are "
            "they swapped? accepted: (student, teacher)",
            stacklevel=_caller(),
        )


def _caller() -> int:
    """The ``stacklevel`` for a warning that points at the user's own line, past this package and ``nn.Module``'s calls."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith((_PACKAGE, nn.modules.module.__file__)):
        level, frame = level + 1, frame.f_back
    return level


def _in_plain_pytorch(student, teacher, phi, reduction, mask, weight, divisor) -> Tensor:
    return reference.annealed_mse(student, teacher, phi, reduction=reduction, mask=mask, weight=weight, divisor=divisor)


def _annealed_kl_loss(
    student, teacher, phi, *, reduction, mask=None, weight=None, divisor=None, class_dim=-1
) -> Tensor:
    """As :func:`annealed_mse_loss`, for ``loss="kl"``."""
    _checks.check_logits(student, teacher)
    if teacher.requires_grad and not student.requires_grad:
        _warn_of_swapped_logits()
    phi = _checks.check_phi(phi, student)
    class_dim, divisor = _checks.check_counting(student, class_dim, mask, weight, divisor)
    student, teacher = student.movedim(class_dim, -1), teacher.movedim(class_dim, -1)
    counting = {"reduction": reduction, "mask": mask, "weight": weight, "divisor": divisor}
    loss = reference.annealed_kl(student, teacher, phi, **counting)
    return loss.movedim(-1, class_dim) if reduction == "none" else loss


class AnnealingKDLoss(nn.Module):
    """The loss of stage I as a module that knows its temperature.

    Set the temperature once an epoch with :meth:`set_epoch` (or :meth:`set_temperature`), then call the module as any
    loss. ``phi`` is a float32 buffer, so it follows ``.to(device)`` and may change between replays of a captured or
    compiled step. It is not saved with the model: the epoch number restores it.

    Args:
        tau_max: maximum temperature, an integer >= 1 (10 on CIFAR, 7 or 14 on GLUE: Tables 6, 8 and 11 of the paper).
        annealing: ``"linear"`` (equation 3), ``"cosine"``, ``"exponential"``, ``"step"`` or a callable
            ``(T, tau_max) -> Phi``, see :mod:`akd_ext.annealing_functions`.
        loss: ``"mse"`` (equation 3) or ``"kl"`` (the ablation of Table 10: KL between softmax(phi * teacher) and
            softmax(student), in plain PyTorch).
        reduction: as in :func:`annealed_mse_loss`; ``None`` takes ``"mean"`` for mse and ``"batchmean"`` for kl.
        class_dim: where the classes lie, as in :func:`annealed_mse_loss`; -1, last.

    Raises:
        TypeError, ValueError: an argument is not of the form above.

    >>> criterion = AnnealingKDLoss(tau_max=4)
    >>> criterion.set_epoch(epoch=2, num_epochs=4)
    (2, 0.75)
    >>> criterion(torch.zeros(2, 3), torch.ones(2, 3)).item()
    0.5625
    """

    phi: Tensor

    def __init__(
        self,
        tau_max: int,
        annealing: str | AnnealingFunction = "linear",
        *,
        loss: str = "mse",
        reduction: str | None = None,
        class_dim: int = -1,
    ) -> None:
        super().__init__()
        self._function = annealing_functions.get(annealing, tau_max)
        if not isinstance(loss, str):
            raise TypeError(f"loss is a {type(loss).__name__}; accepted: 'mse', 'kl'")
        if loss not in ("mse", "kl"):
            raise ValueError(f"loss is {loss!r}; accepted: 'mse', 'kl'")
        if reduction is None:
            reduction = "mean" if loss == "mse" else "batchmean"
        _checks.check_reduction(reduction)
        if isinstance(class_dim, bool) or not isinstance(class_dim, numbers.Integral):
            raise TypeError(f"class_dim is a {type(class_dim).__name__}; accepted: an integer")
        self._tau_max = int(tau_max)
        self._annealing = annealing
        self._temperature_was_set = self._warned = False
        self.loss = loss
        self.reduction = reduction
        self.class_dim = class_dim
        with torch.inference_mode(False):  # a buffer made inside could not be changed outside
            self.register_buffer("phi", torch.zeros((), dtype=torch.float32), persistent=False)
        self._set(self._tau_max)

    @property
    def tau_max(self) -> int:
        """Highest temperature; fixed when the loss is made."""
        return self._tau_max

    @property
    def annealing(self) -> str | AnnealingFunction:
        """Name of the annealing function, or the callable; fixed when the loss is made."""
        return self._annealing

    @property
    def temperature(self) -> int:
        """T. Setting it sets Phi(T), as :meth:`set_temperature` does."""
        return self._temperature

    @temperature.setter
    def temperature(self, temperature: int) -> None:
        self.set_temperature(temperature)

    def set_temperature(self, temperature: int) -> float:
        """Set T, an integer in 1..tau_max; returns Phi(T). Raises TypeError or ValueError for anything else."""
        if isinstance(temperature, bool) or not isinstance(temperature, numbers.Integral):
            raise TypeError(f"temperature is a {type(temperature).__name__}; accepted: an integer")
        if not 1 <= temperature <= self.tau_max:
            raise ValueError(f"temperature is {temperature}; accepted: 1 to tau_max = {self.tau_max}")
        self._temperature_was_set = True
        return self._set(int(temperature))

    def _set(self, temperature: int) -> float:
        phi = float(self._function(temperature, self._tau_max))
        self._temperature = temperature
        self.phi.fill_(phi)
        return phi

    def _apply(self, fn, recurse=True):
        # model.half() must not round Phi: the buffer moves, its dtype stays.
        super()._apply(fn, recurse)
        phi = self._function(self._temperature, self._tau_max)
        if self.phi.dtype is torch.float32:
            self.phi.fill_(phi)  # the same tensor: a captured graph or another process may hold it
        else:
            self.phi = torch.full_like(self.phi, phi, dtype=torch.float32)
        return self

    def set_epoch(self, epoch: int, num_epochs: int) -> tuple[int, float]:
        """Set T for ``epoch`` (0-based) out of ``num_epochs`` of stage I; returns ``(T, Phi)``.

        Raises as :class:`akd_ext.AnnealingSchedule` does.
        """
        temperature = AnnealingSchedule(self.tau_max, num_epochs, self.annealing).temperature(epoch)
        return temperature, self.set_temperature(temperature)

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        mask: Tensor | None = None,
        weight: Tensor | None = None,
        divisor: float | Tensor | None = None,
    ) -> Tensor:
        """Loss of ``student`` against ``phi * teacher``; the arguments are those of :func:`annealed_mse_loss`.

        In training mode it warns once when the temperature was never set: it would stay at ``tau_max``.
        """
        self._warn_of_no_temperature()
        options = {"reduction": self.reduction, "mask": mask, "weight": weight, "divisor": divisor}
        function = annealed_mse_loss if self.loss == "mse" else _annealed_kl_loss
        return function(student, teacher, self.phi, class_dim=self.class_dim, **options)

    def _warn_of_no_temperature(self) -> None:
        if torch.compiler.is_compiling() or not self.training or self._temperature_was_set or self._warned:
            return
        self._warned = True
        warnings.warn(
            f"{type(self).__name__} trains at tau_max = {self._tau_max}, because nobody has set its temperature (nor, after "
            "a restart, its epoch): call set_epoch(epoch, num_epochs) at the start of every epoch",
            stacklevel=_caller(),
        )

    def extra_repr(self) -> str:
        phi = float(self._function(self._temperature, self._tau_max))
        state = f"temperature={self._temperature}, phi={phi:.6g}, "
        class_dim = "" if self.class_dim == -1 else f", class_dim={self.class_dim}"
        kind = f"annealing={self.annealing!r}, loss={self.loss!r}, reduction={self.reduction!r}"
        return f"tau_max={self.tau_max}, {state}{kind}{class_dim}"
