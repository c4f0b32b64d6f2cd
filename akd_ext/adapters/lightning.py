"""Stage I in Lightning: a callback that sets the temperature from the trainer's progress."""

from __future__ import annotations

import akd_ext
from akd_ext.adapters import check_unit, needs

with needs("lightning"):
    from lightning.pytorch import Callback


class AnnealingCallback(Callback):
    """Sets the temperature of every :class:`akd_ext.AnnealingKDLoss` in the LightningModule, and logs ``phi``.

    Args:
        unit: ``"epoch"``, T changes between epochs as in the paper; the trainer needs ``max_epochs``. Or ``"step"``,
            between optimizer steps, out of ``trainer.estimated_stepping_batches``.

    Raises:
        ValueError: ``unit`` is neither; at the start of training, the module has no such loss or the trainer no end.

    The loss is an attribute of the module, so that it moves to the module's device::

        self.criterion = akd_ext.AnnealingKDLoss(tau_max=10)  # in __init__
        return self.criterion(self.student(images), teacher_logits)  # in training_step
    """

    def __init__(self, unit: str = "epoch") -> None:
        self.unit = check_unit(unit)

    def on_train_start(self, trainer, pl_module) -> None:
        self._losses = [module for module in pl_module.modules() if isinstance(module, akd_ext.AnnealingKDLoss)]
        if not self._losses:
            raise ValueError(
                f"{type(pl_module).__name__} has no akd_ext.AnnealingKDLoss among its modules; "
                "make it an attribute: self.criterion = akd_ext.AnnealingKDLoss(tau_max=10)"
            )
        self._end = trainer.max_epochs if self.unit == "epoch" else trainer.estimated_stepping_batches
        if self._end is None or not 0 < self._end < float("inf"):
            argument = "max_epochs" if self.unit == "epoch" else "max_steps or max_epochs"
            raise ValueError(f"AnnealingCallback(unit={self.unit!r}) needs a Trainer with {argument}")

    # Not on_train_epoch_start: Lightning skips that hook when it resumes within an epoch.
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        now = trainer.current_epoch if self.unit == "epoch" else trainer.global_step
        for loss in self._losses:
            _, phi = loss.set_epoch(min(now, int(self._end) - 1), int(self._end))  # the end in steps is an estimate
        pl_module.log("phi", phi)
