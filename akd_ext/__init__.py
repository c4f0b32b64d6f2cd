"""Annealing-KD (Jafari et al., EACL 2021) as a fused torch op, and as a plug-in for distillation libraries."""

from akd_ext import annealing_functions, reference
from akd_ext.loss import AnnealingKDLoss, annealed_mse_loss
from akd_ext.op.library import backend, load_report
from akd_ext.schedule import AnnealingSchedule
from akd_ext.version import __version__

__all__ = [
    "AnnealingKDLoss",
    "AnnealingSchedule",
    "__version__",
    "annealed_mse_loss",
    "annealing_functions",
    "backend",
    "load_report",
    "reference",
]
