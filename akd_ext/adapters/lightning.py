"""Stage I in Lightning: a callback that sets the temperature from the trainer's progress."""

from __future__ import annotations

import math
import warnings

import akd_ext
from akd_ext.adapters import check_unit, needs, warn_of_few_epochs

with needs("lightning"):
    from lightning.pytorch import Callback
    from lightning.pytorch.callbacks import EarlyStopping, Timer


class AnnealingCallback(Callback):
    """Sets the temperature of every :class:`akd_ext.AnnealingKDLoss` in the LightningModule, and logs ``phi``.

    The schedule ends where the training does: at ``max_epochs`` or ``max_steps``, whichever comes first.

    Args:
        unit: ``"epoch"``, T changes between epochs as in the paper, or ``"step"``, between optimizer steps.

    Raises:
        ValueError: ``unit`` is neither; at the start of training, the module has no such loss, or nobody can say where
            the training ends: the trainer sets no end, or two that cannot be compared for data without a length.

    Warns before the first step when fewer epochs than temperatures fit, when ``EarlyStopping`` or ``max_time`` may end the
    training before T = 1, and when a teacher inside of the module is in train mode or its logits require a gradient.

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
        self._end = self._end_of(trainer)
        if self.unit == "epoch":
            warn_of_few_epochs(self._end, max(loss.tau_max for loss in self._losses))
        for callback in trainer.callbacks:
            if isinstance(callback, (EarlyStopping, Timer)):
                cause = "EarlyStopping" if isinstance(callback, EarlyStopping) else "max_time"
                warnings.warn(
                    f"{cause} may end the training before T = 1, with a student of a scaled teacher", stacklevel=2
                )
        for name, child in pl_module.named_children():
            if "teacher" in name.lower() and child.training:
                warnings.warn(
                    f"the module's {name!r} is in train mode: its BatchNorm and Dropout change what it teaches; call "
                    f"self.{name}.eval() in on_train_start, or in __init__ with Lightning 2.2 and later",
                    stacklevel=2,
                )
        self._watched = [loss.register_forward_pre_hook(_check_teacher, with_kwargs=True) for loss in self._losses]

    def on_train_end(self, trainer, pl_module) -> None:
        for handle in self._watched:
            handle.remove()

    def _end_of(self, trainer) -> int:
        epochs, steps = trainer.max_epochs, trainer.max_steps
        epochs = None if epochs is None or epochs < 0 else epochs
        steps = None if steps is None or steps < 0 else steps
        batches = trainer.num_training_batches
        if epochs is not None and steps is not None and math.isinf(batches):
            raise ValueError(
                f"AnnealingCallback: the training data have no length, so max_epochs={epochs} or max_steps={steps} may "
                "come first; give one of them alone (max_epochs=-1 leaves it to max_steps)"
            )
        if self.unit == "step":
            end = trainer.estimated_stepping_batches
        elif steps is None:
            end = epochs
        elif math.isinf(batches):
            end = None
        else:
            fit = math.ceil(steps / math.ceil(batches / trainer.accumulate_grad_batches))
            end = fit if epochs is None else min(fit, epochs)
        if end is None or not 0 < end < math.inf:
            argument = "max_epochs" if self.unit == "epoch" else "max_steps or max_epochs"
            raise ValueError(f"AnnealingCallback(unit={self.unit!r}) needs a Trainer with {argument}")
        return int(end)

    # Not on_train_epoch_start: Lightning skips that hook when it resumes within an epoch.
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        now = trainer.current_epoch if self.unit == "epoch" else trainer.global_step
        for loss in self._losses:
            _, phi = loss.set_epoch(min(now, self._end - 1), self._end)  # the end in steps is an estimate
        pl_module.log("phi", phi)


def _check_teacher(loss, args, kwargs) -> None:
    teacher = kwargs["teacher"] if "teacher" in kwargs else args[1]
    if teacher.requires_grad and not getattr(loss, "_akd_warned", False):
        loss._akd_warned = True
        warnings.warn(
            "AnnealingKDLoss: its argument 'teacher' requires a gradient, so the teacher may learn with the student; run "
            "it under torch.no_grad() and keep its parameters out of configure_optimizers",
            stacklevel=2,
        )
