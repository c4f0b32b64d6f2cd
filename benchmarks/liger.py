"""Liger Kernel's own chunked distillation with the squared error as its loss, where the package ``liger-kernel`` is there."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def linear_mse(phi: float) -> Callable[..., Tensor] | None:
    """``loss(hidden, weight, teacher_hidden, teacher_weight)``, a sum over tokens and classes; None without the package."""
    if importlib.util.find_spec("liger_kernel") is None:
        return None
    from liger_kernel.chunked_loss.fused_linear_distillation import LigerFusedLinearDistillationBase as Base

    class SquaredError(Base):
        @staticmethod
        def distillation_loss_fn(student_logits, teacher_logits, target=None, ignore_index=None, **others):
            return F.mse_loss(student_logits, phi * teacher_logits, reduction="sum")

        @classmethod
        def forward(cls, ctx, hidden, weight, teacher_hidden, teacher_weight, target):
            return super().forward(
                cls=cls, ctx=ctx, student_input=hidden, student_weight=weight, teacher_input=teacher_hidden,
                teacher_weight=teacher_weight, target=target, weight_hard_loss=0.0, weight_soft_loss=1.0,
                compute_ce_loss=False,
            )  # fmt: skip

        @staticmethod
        def backward(ctx, upstream):
            return *Base.backward(ctx, upstream)[:2], None, None, None

    def loss(hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor) -> Tensor:
        no_labels = torch.zeros(len(hidden), dtype=torch.int64)  # it divides by their number
        return SquaredError.apply(hidden, weight, teacher_hidden, teacher_weight, no_labels) * len(hidden)

    return loss
