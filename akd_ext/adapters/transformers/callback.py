"""The temperature of a criterion, from the Trainer's own progress."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

from transformers import EarlyStoppingCallback, TrainerCallback

import akd_ext
from akd_ext.adapters import check_unit, warn_of_few_epochs


class AnnealingCallback(TrainerCallback):
    """Sets the temperature of ``criterion`` from the Trainer's state before every optimizer step.

    Args:
        criterion: an :class:`akd_ext.AnnealingKDLoss`.
        unit: ``"epoch"``, T changes between epochs as in the paper, or ``"step"``, between optimizer steps.

    Raises:
        ValueError: ``unit`` is neither; at the start of training, it is ``"epoch"`` and the training data have no length,
            so that only ``max_steps`` ends the training.
    """

    def __init__(self, criterion: akd_ext.AnnealingKDLoss, unit: str = "epoch") -> None:
        self.criterion, self.unit = criterion, check_unit(unit)
        self.beside: Sequence[TrainerCallback | type[TrainerCallback]] = ()  # a Trainer's callbacks, where it tells

    def on_train_begin(self, args, state, control, **kwargs):
        if any(isinstance(other, EarlyStoppingCallback) for other in self.beside):
            warnings.warn(
                "EarlyStoppingCallback may end stage I before T is 1: the student of a high T is measured against labels that "
                "it has not been shown, and a new T changes its loss; leave the callback to stage II",
                stacklevel=2,
            )
        if self.unit == "step":
            return
        if state.num_train_epochs >= sys.maxsize:  # what the Trainer puts there for data without a length
            raise ValueError(
                "unit is 'epoch', and the training data have no length: nobody knows in which epoch max_steps="
                f"{state.max_steps} ends; accepted: unit='step'"
            )
        warn_of_few_epochs(state.num_train_epochs, self.criterion.tau_max)

    def on_step_begin(self, args, state, control, **kwargs):
        if self.unit == "step":
            self.criterion.set_epoch(state.global_step, state.max_steps)
        else:  # state.epoch is a fraction, 2.25 after a quarter of the third epoch, and so also when resumed there
            self.criterion.set_epoch(int(state.epoch), state.num_train_epochs)
