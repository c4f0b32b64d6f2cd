"""Stage I in NVIDIA ModelOpt's distillation: a criterion for its mode ``kd_loss``."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.modules.loss import _Loss

import akd_ext
from akd_ext.logit_cache import logits_of


class AnnealingKDLoss(akd_ext.AnnealingKDLoss, _Loss):
    """:class:`akd_ext.AnnealingKDLoss` as ModelOpt wants a criterion: torch's base class of losses among its bases.

    Call ``set_epoch`` at the start of every epoch. ModelOpt keeps the teacher in eval mode and without gradients. For
    stage II, export the student (``modelopt.torch.distill.export``). ModelOpt cannot convert a bare ``nn.Sequential``,
    which runs every child it is given, the teacher too: put it into a module of your own.

    Args:
        tau_max, annealing, loss, reduction: see :class:`akd_ext.AnnealingKDLoss`.

    In a loop::

        import modelopt.torch.distill as mtd

        criterion = AnnealingKDLoss(tau_max=10)
        student = mtd.convert(student, mode=[("kd_loss", {"teacher_model": teacher, "criterion": criterion})])
        criterion.set_epoch(epoch, num_epochs)
        student(images)  # runs the teacher as well
        student.compute_kd_loss().backward()
    """

    def forward(self, student: Any, teacher: Any, mask: Tensor | None = None) -> Tensor:
        """The loss between two outputs: tensors ``(..., classes)`` or objects with such ``.logits``.

        Raises:
            TypeError: an output is neither.
        """
        return super().forward(logits_of(student)[0], logits_of(teacher)[0], mask)
