"""What a causal language model is trained on, from hidden states and heads, for the tokens that count."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

import akd_ext
from akd_ext.linear import (
    LinearAnnealingKDLoss,
    OutputHead,
    TeacherGram,
    linear_scheduled_kl_loss,
    linear_topk_kl_loss,
    teacher_gram,
)

# The losses, and what `loss_options` may hold for each.
OPTIONS = {
    "mse": {"center", "class_weight", "implementation"},
    "topk": {"k", "temperature", "t", "topk", "anchor", "anchor_options"},
    "kl": {"teacher_scale", "student_scale", "label_weight", "temperature", "direction"},
    "cross_entropy": set(),
}


class Objective:
    """One of the losses, divided by the tokens of the whole optimizer step.

    ``teacher``: its head, None for a loss on the labels. ``classes``: rows that the two heads have in common, the first
    ones; None: all of them.
    """

    def __init__(
        self,
        loss: str,
        criterion: akd_ext.AnnealingKDLoss | None,
        options: dict[str, Any],
        teacher: OutputHead | None,
        classes: int | None,
    ) -> None:
        self.loss, self._criterion, self._options, self._classes = loss, criterion, options, classes
        self._teacher, self._is_accumulating = teacher, False
        self._squares = self._made_squares() if loss == "mse" else None
        self._gram: TeacherGram | None = None

    def _made_squares(self) -> LinearAnnealingKDLoss:
        weight, bias = self._teacher.weight, _scaled_bias(self._teacher)
        options = {"center": True, **self._options}
        if self._classes is not None:
            rows = torch.arange(self._classes, device=weight.device)
            options |= {"student_ids": rows, "teacher_ids": rows}
        given = self._criterion
        return LinearAnnealingKDLoss(
            given.tau_max,
            given.annealing,
            teacher_weight=weight,
            teacher_bias=bias,
            reduction=given.reduction,
            **options,
        )

    def __call__(
        self, hidden: Tensor, head: OutputHead, teacher_hidden: Tensor | None, labels: Tensor, num_items: Any
    ) -> Tensor:
        """Of N tokens with hidden states ``[N, H]`` and ``[N, Ht]``, and ``labels`` ``[N]``."""
        bias = _scaled_bias(head)
        hidden = _scaled(hidden, head.logit_scale)
        if self._teacher is not None:
            teacher_hidden = _scaled(teacher_hidden, self._teacher.logit_scale)
        if self.loss == "mse":
            return self._mse(hidden, head.weight, bias, teacher_hidden, num_items)
        arguments = {"student_bias": self._in_common(bias), "divisor": num_items}
        if self._teacher is not None:
            arguments["teacher_hidden"] = teacher_hidden
            arguments["teacher_weight"] = self._in_common(self._teacher.weight)
            arguments["teacher_bias"] = self._in_common(_scaled_bias(self._teacher))
        weight = self._in_common(head.weight)
        if self.loss == "topk":
            return self._topk(hidden, weight, arguments)
        return self._kl(hidden, weight, arguments, labels)

    def _mse(self, hidden, weight, bias, teacher_hidden, num_items) -> Tensor:
        criterion = self._criterion
        self._squares.set_temperature(criterion.temperature)
        classes = len(weight) if self._classes is None else self._classes
        divisor = None  # the block knows it
        if not self._is_accumulating:
            divisor = {"mean": num_items * classes, "batchmean": num_items, "sum": 1}[criterion.reduction]
        return self._squares(hidden, weight, teacher_hidden, student_bias=bias, divisor=divisor)

    def _topk(self, hidden, weight, arguments) -> Tensor:
        arguments |= {"k": 64, "anchor": 1.0, **self._options_now()}
        anchor = {"center": True, **(arguments.get("anchor_options") or {})}
        teacher = arguments["teacher_weight"]
        if hidden.shape[-1] != teacher.shape[-1] and "teacher_gram" not in anchor:  # equal widths have no use for it
            if self._gram is None:
                of_it = {name: anchor[name] for name in ("center", "class_weight", "teacher_ids") if name in anchor}
                has_bias = arguments["student_bias"] is not None
                self._gram = teacher_gram(teacher, arguments["teacher_bias"], student_has_bias=has_bias, **of_it)
            anchor["teacher_gram"] = self._gram
        return linear_topk_kl_loss(hidden, weight, phi=self._phi, **(arguments | {"anchor_options": anchor}))

    def _kl(self, hidden, weight, arguments, labels) -> Tensor:
        if self._teacher is None:
            arguments["label_weight"] = 1.0
        else:
            arguments |= {"teacher_scale": self._phi, **self._options_now()}
        return linear_scheduled_kl_loss(hidden, weight, labels=labels, **arguments)

    def accumulate(self, head: OutputHead, num_items: Any) -> contextlib.ExitStack | None:
        """An open block for the micro-batches of one optimizer step; None where it would bring nothing.

        Other losses have no use for it, the Gram matrices of a frozen head are kept anyway, and a bias with a factor is
        another tensor than the head's.
        """
        if self._squares is None or not head.weight.requires_grad or _scaled_bias(head) is not head.bias:
            return None
        block = contextlib.ExitStack()
        block.enter_context(self._squares.accumulate(head.weight, num_items, student_bias=head.bias))
        self._is_accumulating = True
        block.callback(setattr, self, "_is_accumulating", False)
        return block

    @property
    def _phi(self) -> float:
        return 1.0 if self._criterion is None else float(self._criterion.phi)

    def _options_now(self) -> dict[str, Any]:
        """A function among the options is one of Phi."""
        return {name: value(self._phi) if callable(value) else value for name, value in self._options.items()}

    def _in_common(self, tensor: Tensor | None) -> Tensor | None:
        return tensor if tensor is None or self._classes is None else tensor[: self._classes]


def _scaled(hidden: Tensor, scale: float) -> Tensor:
    """The factor of the logits, on the hidden states: not in 16 bits."""
    return hidden if scale == 1.0 else hidden.to(torch.promote_types(hidden.dtype, torch.float32)) * scale


def _scaled_bias(head: OutputHead) -> Tensor | None:
    return head.bias if head.bias is None or head.logit_scale == 1.0 else head.bias * head.logit_scale
