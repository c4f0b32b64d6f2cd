"""Annealing-KD's loss over a large vocabulary as a module: it keeps the teacher's head and the Gram matrices."""

from __future__ import annotations

import contextlib
import dataclasses
import numbers
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from akd_ext.annealing_functions import AnnealingFunction
from akd_ext.loss import AnnealingKDLoss

from . import costs, validation
from .gram import Grams, Moments, TeacherGram, grams, head_gradient, teacher_gram
from .heads import Heads
from .loss import Tokens, cheaper_way, chunked_loss, gram_loss, make_heads

CHANGED = "a head changed inside accumulate(); accepted: the optimizer's step after the block"


class LinearAnnealingKDLoss(AnnealingKDLoss):
    """:func:`akd_ext.linear_annealed_mse_loss` that knows its temperature and its teacher's head.

    The Gram matrices of frozen heads are made once, and again when a version counter tells of a change. (A write through
    ``.data`` passes by that counter: call :meth:`forget` after one.) Those of a head that learns are made at every call,
    or once for each block of :meth:`accumulate`: PyTorch's fused optimizers change a parameter without counting.

    Args:
        tau_max, annealing: as in :class:`akd_ext.AnnealingKDLoss`.
        teacher_weight, teacher_bias: the teacher's frozen head, ``(V, Ht)`` and ``(V,)``. It moves with the module and
            is not saved with it. (Keep the loss outside of what DistributedDataParallel wraps, or say
            ``broadcast_buffers=False``: the head is a buffer, and would be sent at every step.)
        reduction, center, class_weight, logit_scale, teacher_logit_scale, student_ids, teacher_ids, implementation: as
            in :func:`akd_ext.linear_annealed_mse_loss`.

    With gradient accumulation put the micro-batches of a step into :meth:`accumulate`. ``torch.compile`` breaks its graph
    where the module looks at the heads' versions; in :func:`akd_ext.linear_annealed_mse_loss` it has no need to.

    >>> criterion = LinearAnnealingKDLoss(tau_max=4, teacher_weight=torch.eye(3))
    >>> criterion.set_epoch(epoch=2, num_epochs=4)
    (2, 0.75)
    >>> criterion(torch.zeros(5, 2), torch.ones(3, 2), torch.ones(5, 3)).item()
    0.5625
    """

    teacher_weight: Tensor
    teacher_bias: Tensor | None

    def __init__(
        self,
        tau_max: int,
        annealing: str | AnnealingFunction = "linear",
        *,
        teacher_weight: Tensor,
        teacher_bias: Tensor | None = None,
        reduction: str = "mean",
        implementation: str = "auto",
        logit_scale: float = 1.0,
        teacher_logit_scale: float = 1.0,
        **heads: Any,
    ) -> None:
        super().__init__(tau_max, annealing, reduction=reduction)
        unknown = set(heads) - {"center", "class_weight", "student_ids", "teacher_ids"}
        if unknown:
            raise TypeError(f"LinearAnnealingKDLoss has no argument {sorted(unknown)[0]!r}")
        validation.check_rest(reduction, implementation, (logit_scale, teacher_logit_scale), None)
        validation.check_head("teacher", teacher_weight, teacher_bias)
        self.implementation, self.center = implementation, heads.get("center", False)
        self._scales = logit_scale, teacher_logit_scale
        self.register_buffer("teacher_weight", teacher_weight.detach(), persistent=False)
        self.register_buffer("teacher_bias", None if teacher_bias is None else teacher_bias.detach(), persistent=False)
        for name in ("class_weight", "student_ids", "teacher_ids"):
            self.register_buffer(name, heads.get(name), persistent=False)
        # The student may share the teacher's head: told by identity, which detach() would lose.
        self._teacher_as_given = weakref.ref(teacher_weight)
        self._running: _Accumulation | None = None
        self.forget()

    def forget(self) -> None:
        """Drops the Gram matrices: the next call makes them anew."""
        self._known: tuple[_Watch, Grams] | None = None
        self._teacher_known: tuple[_Watch, TeacherGram] | None = None

    def forward(
        self,
        student_hidden: Tensor,
        student_weight: Tensor,
        teacher_hidden: Tensor,
        mask: Tensor | None = None,
        *,
        student_bias: Tensor | None = None,
        weight: Tensor | None = None,
        divisor: float | Tensor | None = None,
    ) -> Tensor:
        """The loss; hidden states ``(..., H)`` and ``(..., Ht)``, ``mask`` and ``weight`` ``(...)``.

        Inside :meth:`accumulate` the divisor is that of all micro-batches. In training mode it warns once when the
        temperature was never set.
        """
        self._warn_of_no_temperature()
        validation.check_side("student", student_hidden, student_weight, student_bias)
        validation.check_side("teacher", teacher_hidden, self.teacher_weight, self.teacher_bias)
        validation.check_sides(student_hidden, teacher_hidden)
        heads = self._heads(student_weight, student_bias)
        tokens = Tokens(student_hidden, teacher_hidden, heads, self._scales)
        running = self._running
        if running is not None:
            running.check(student_weight, student_bias, divisor)
            divisor = running.divisor
        tokens.count(self.reduction, mask, weight, divisor)
        if running is not None:
            if running.made is None:
                return chunked_loss(tokens, self.phi)
            return gram_loss(tokens, self.phi, running.made, running.moments)
        way = self.implementation
        if way == "auto":
            way = cheaper_way(tokens, True, self._is_known(heads))
        return chunked_loss(tokens, self.phi) if way == "chunked" else gram_loss(tokens, self.phi, self._grams(heads))

    @contextlib.contextmanager
    def accumulate(
        self, student_weight: Tensor, num_items: int | Tensor, *, student_bias: Tensor | None = None, group: Any = None
    ) -> Iterator[None]:
        """The micro-batches of one optimizer step: call the loss and ``backward()`` for each inside.

        The Gram matrices are made once, at the start. Every ``backward()`` gives the hidden states their gradient and adds to
        two moments; the head's gradient is made of those at the end and added to ``student_weight.grad`` (an embedding
        tied to the head adds its own there), or not at all when the block raises. For few tokens, where logits are
        cheaper, every ``backward()`` adds its part of it.

        Args:
            student_weight, student_bias: the head, the same tensors in every call; they must not change inside.
            num_items: tokens in all micro-batches: what ``"mean"`` and ``"batchmean"`` divide by.
            group: a process group of data-parallel processes: the mean of their moments is taken, ``H * (H + Ht)``
                numbers, so that the head's gradient is the mean, as DistributedDataParallel makes it. Always by Gram
                matrices then; every process opens the block, also one without a token.

        Raises:
            RuntimeError: the head changed inside, or another block is open.
            ValueError: ``group`` is given, and ``implementation`` is ``"chunked"``.
        """
        if self._running is not None:
            raise RuntimeError("accumulate() is already open; accepted: one block for each optimizer step")
        validation.check_floating("student_weight", student_weight, "an output head, (vocabulary, hidden)")
        if not isinstance(num_items, (Tensor, numbers.Real)) or isinstance(num_items, bool):
            raise TypeError(f"num_items is a {type(num_items).__name__}; accepted: a number >= 0 or a 0-d tensor")
        if isinstance(num_items, Tensor) and num_items.ndim:
            shape = tuple(num_items.shape)
            raise ValueError(f"num_items has shape {shape}; accepted: a number >= 0 or a 0-d tensor, their sum")
        if isinstance(num_items, Tensor) and not num_items.is_floating_point():
            num_items = num_items.long()  # times the classes it may be beyond int32
        heads = self._heads(student_weight, student_bias)
        divisor = num_items if self.reduction == "batchmean" else num_items * heads.all_classes
        divisor = None if self.reduction == "sum" else divisor
        made = self._grams(heads) if self._accumulates_by_gram(heads, num_items, group) else None
        frozen_part = self.teacher_weight, self.teacher_bias, self.class_weight
        self._running = _Accumulation((student_weight, student_bias), frozen_part, made, divisor)
        try:
            yield
            self._running.check(student_weight, student_bias, None)
            self._running.check_rows()
        finally:
            running, self._running = self._running, None
            if running.moments is not None:
                running.moments.is_closed = True
        if running.moments is not None:
            _write_gradients(heads, running, group)

    def _accumulates_by_gram(self, heads: Heads, num_items: int | Tensor, group: Any) -> bool:
        if group is not None:  # only moments are exchanged, and by all processes or none
            if self.implementation == "chunked":
                raise ValueError("group is given beside implementation='chunked'; accepted: 'auto' or 'gram'")
            return True
        if self.implementation != "auto":
            return self.implementation == "gram"
        if isinstance(num_items, Tensor):
            if not num_items.is_cpu:  # asking for its value would wait for the device
                return True
            num_items = int(num_items.item())
        problem = costs.Problem(
            num_items, heads.student_weight.shape[1], heads.teacher_weight.shape[1], heads.all_classes,
            head_gradient=_learns(heads.student_weight, heads.student_bias), basis=heads.basis, grams_known=self._is_known(heads),
            teacher_gram_known=True,
        )  # fmt: skip
        return heads.reduce is not None or costs.cheaper(problem) == "gram"

    def _heads(self, student_weight: Tensor, student_bias: Tensor | None) -> Heads:
        teacher = self.teacher_weight
        given = self._teacher_as_given()
        alike = student_bias is None and self.teacher_bias is None and self.student_ids is self.teacher_ids
        if (
            alike
            and student_weight is given
            and teacher.data_ptr() == given.data_ptr()
            and teacher.dtype is given.dtype
        ):
            teacher = given
        return make_heads(
            student_weight, teacher, student_bias=student_bias, teacher_bias=self.teacher_bias,
            student_ids=self.student_ids, teacher_ids=self.teacher_ids, class_weight=self.class_weight,
            center=self.center,
        )  # fmt: skip

    def _watched(self, heads: Heads) -> _Watch:
        return _Watch(
            heads.student_weight, heads.student_bias, self.teacher_weight, self.teacher_bias, heads.class_weight,
            heads.student_ids, heads.teacher_ids,
        )  # fmt: skip

    def _is_known(self, heads: Heads) -> bool:
        if _learns(heads.student_weight, heads.student_bias):
            return False  # a fused optimizer's step leaves no trace
        return self._known is not None and self._known[0] == self._watched(heads)

    @torch.no_grad()
    def _grams(self, heads: Heads) -> Grams:
        if self._is_known(heads):
            return self._known[1]
        with torch.autocast(heads.student_weight.device.type, enabled=False):
            known = self._gram_of_the_teacher(heads) if heads.basis == "plain" and heads.reduce is None else None
            made = grams(heads.detached(), known)
        # Not even kept for a head that learns: once it is frozen, its fused steps would have left no trace.
        self._known = None if _learns(heads.student_weight, heads.student_bias) else (self._watched(heads), made)
        return made

    def _gram_of_the_teacher(self, heads: Heads) -> TeacherGram:
        watched = _Watch(self.teacher_weight, self.teacher_bias, heads.class_weight, heads.teacher_ids)
        key = watched, heads.biased
        if self._teacher_known is None or self._teacher_known[0] != key:
            options = {"center": self.center, "class_weight": heads.class_weight, "teacher_ids": heads.teacher_ids}
            made = teacher_gram(
                self.teacher_weight, self.teacher_bias, student_has_bias=heads.student_bias is not None, **options
            )
            self._teacher_known = key, made
        return self._teacher_known[1]

    def __getstate__(self) -> dict[str, Any]:
        # What holds weak references, which cannot be pickled; all of it is made anew.
        made_anew = ("_teacher_as_given", "_known", "_teacher_known", "_running")
        return {name: value for name, value in self.__dict__.items() if name not in made_anew}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._teacher_as_given = weakref.ref(self.teacher_weight)
        self._running = None
        self.forget()

    def extra_repr(self) -> str:
        classes, width = self.teacher_weight.shape
        return f"{super().extra_repr()}, center={self.center}, teacher_head=({classes}, {width})"


def _learns(weight: Tensor, bias: Tensor | None) -> bool:
    return weight.requires_grad or (bias is not None and bias.requires_grad)


class _Watch:
    """Tells whether tensors are the same, with the same content, as when this was made."""

    def __init__(self, *tensors: Tensor | None) -> None:
        self._seen = [None if x is None else (weakref.ref(x), *_state(x)) for x in tensors]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Watch) and all(map(_same, self._seen, other._seen))

    __hash__ = None


def _state(tensor: Tensor) -> tuple:
    # A tensor of inference mode has no version counter: it counts as changed at every look.
    version = object() if tensor.is_inference() else tensor._version
    return version, tensor.data_ptr() if type(tensor) in (Tensor, torch.nn.Parameter) else 0, tensor.dtype


def _same(mine, theirs) -> bool:
    if mine is None or theirs is None:
        return mine is theirs
    return mine[0]() is theirs[0]() is not None and mine[1:] == theirs[1:]


class _Accumulation:
    """An open block of `LinearAnnealingKDLoss.accumulate`."""

    def __init__(self, student, frozen_part, made, divisor) -> None:
        self.student_weight, self.student_bias = student
        self.made, self.divisor = made, divisor  # made: the Gram matrices, None where logits are cheaper
        self.moments = Moments() if made is not None and _learns(*student) else None
        self._frozen_part = tuple(x for x in frozen_part if x is not None and not x.is_inference())
        self._watched = self._watch()
        self._some_rows = _sample(self.student_weight)

    def _watch(self) -> _Watch:
        return _Watch(self.student_weight, self.student_bias, *self._frozen_part)

    def check(self, student_weight: Tensor, student_bias: Tensor | None, divisor: float | Tensor | None) -> None:
        if student_weight is not self.student_weight or student_bias is not self.student_bias:
            raise RuntimeError("the loss got another head than accumulate() did; accepted: the same tensors")
        if self._watched != self._watch():
            raise RuntimeError(CHANGED)
        if divisor is not None:
            raise ValueError("divisor is given inside accumulate(); accepted: None, num_items is the divisor there")

    def check_rows(self) -> None:
        """At the end: what a fused optimizer did, which changes all rows, is seen in a few."""
        if not torch.equal(self._some_rows, _sample(self.student_weight)):
            raise RuntimeError(CHANGED)


def _sample(weight: Tensor) -> Tensor:
    weight = weight.detach()
    weight = weight.to_local() if hasattr(weight, "to_local") else weight
    return weight[:: max(1, weight.shape[0] // 8)].clone()


@torch.no_grad()
def _write_gradients(heads: Heads, running: _Accumulation, group: Any) -> None:
    moments = running.moments.sums
    if moments is None:
        if heads.average is None and group is None:
            return
        moments = _no_moments(running.made)  # the other processes wait for them
    if heads.average is not None:
        moments = tuple(heads.average(x) for x in moments)
    elif group is not None:
        from . import distributed

        moments = tuple(distributed.mean(x, group) for x in moments)
    outs = []
    for like, local in (
        (running.student_weight, heads.student_weight),
        (running.student_bias, heads.student_bias),
    ):
        outs.append(None if like is None or not like.requires_grad else _gradient_of(like, local))
    heads = dataclasses.replace(heads.detached(), compute_dtype=moments[0].dtype)
    with torch.autocast(moments[0].device.type, enabled=False):
        head_gradient(heads, running.made.means, moments, *outs)


def _no_moments(made: Grams) -> tuple[Tensor, Tensor]:
    """Those of a process that had no token."""
    width = made.pp.shape[1]
    return made.pp.new_zeros(width, width), made.pp.new_zeros(made.pq.shape[1], width)


def _gradient_of(tensor: Tensor, local: Tensor) -> Tensor:
    """Where to add the gradient of this process's part of ``tensor``; ``tensor.grad`` exists afterwards."""
    if tensor.grad is None:
        tensor.grad = torch.zeros_like(tensor)
    return tensor.grad if local is tensor else tensor.grad.to_local()  # the same memory
