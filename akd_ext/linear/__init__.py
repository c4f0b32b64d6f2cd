"""Losses between logits that are linear in hidden states, for large vocabularies: exact, and without the logits.

In: hidden states and output heads of student and teacher, Phi. Out: a loss, its gradients by the student's hidden states
and head. May import: `akd_ext.op`, `akd_ext.reference`, the root API. docs/large-vocabularies.md has the formulas.
"""

from .family import (
    linear_cosine_loss,
    linear_inner_products,
    linear_margin_mse_loss,
    linear_standardized_mse_loss,
)
from .gram import TeacherGram, teacher_gram
from .loss import linear_annealed_mse_loss
from .module import LinearAnnealingKDLoss
from .output_head import OutputHead, output_head
from .scheduled_kl import linear_scheduled_kl_loss
from .taid import AdaptiveInterpolation
from .topk import linear_topk_kl_loss

__all__ = [
    "AdaptiveInterpolation",
    "LinearAnnealingKDLoss",
    "OutputHead",
    "TeacherGram",
    "linear_annealed_mse_loss",
    "linear_cosine_loss",
    "linear_inner_products",
    "linear_margin_mse_loss",
    "linear_scheduled_kl_loss",
    "linear_standardized_mse_loss",
    "linear_topk_kl_loss",
    "output_head",
    "teacher_gram",
]
