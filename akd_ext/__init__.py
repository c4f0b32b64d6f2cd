"""Annealing-KD (Jafari et al., EACL 2021) as a fused torch op, and as a plug-in for distillation libraries."""

import importlib

from akd_ext import annealing_functions, reference
from akd_ext.loss import AnnealingKDLoss, annealed_mse_loss
from akd_ext.op.library import backend, load_report
from akd_ext.schedule import AnnealingSchedule
from akd_ext.version import __version__

# Of the room linear, which is imported when somebody asks for one of them.
_LINEAR = (
    "LinearAnnealingKDLoss",
    "linear_annealed_mse_loss",
    "linear_scheduled_kl_loss",
    "linear_topk_kl_loss",
)

__all__ = [
    "AnnealingKDLoss",
    "AnnealingSchedule",
    "LinearAnnealingKDLoss",
    "__version__",
    "annealed_mse_loss",
    "annealing_functions",
    "backend",
    "linear_annealed_mse_loss",
    "linear_scheduled_kl_loss",
    "linear_topk_kl_loss",
    "load_report",
    "reference",
]


def __getattr__(name: str):
    if name in _LINEAR:
        return getattr(importlib.import_module("akd_ext.linear"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
