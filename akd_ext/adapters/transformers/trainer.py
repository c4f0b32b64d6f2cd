"""Stage I where the teacher's logits are a column of the dataset."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from transformers import Trainer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import akd_ext

from .callback import AnnealingCallback

COLUMN = "teacher_logits"


class AnnealingTrainer(Trainer):
    """A Trainer for stage I: trains on the column ``teacher_logits``, evaluates as a plain Trainer does.

    With gradient accumulation the loss is that of the whole batch, whatever the sizes of its parts: like the Trainer's
    own losses it is divided by ``num_items_in_batch``, which the Trainer counts in the column ``labels``. Where a label
    is -100 the logit vector does not count. ``eval_loss`` is the model's own loss on the labels, comparable between
    epochs, as a loss against targets that grow is not. For stage II, give the best model of stage I to a plain Trainer.

    Args:
        criterion: an :class:`akd_ext.AnnealingKDLoss` with any reduction but ``"none"``.
        unit: see :class:`AnnealingCallback`, which is added to the callbacks. An ``EarlyStoppingCallback`` beside it is a
            warning: it may end the training before T is 1.
        The rest: as for ``transformers.Trainer``. The training set has the columns ``teacher_logits``, of the shape of
            the student's logits, and ``labels``, whose leading dimensions are those of the logits. For causal
            language models, whose labels are shifted, there is :class:`CausalLMAnnealingTrainer`.

    Raises:
        TypeError: ``criterion`` is a loss of hidden states.
        ValueError: ``criterion`` has reduction ``"none"``, ``unit`` is unknown or does not fit the data, the model is a
            causal language model, a training batch lacks a column, or, evaluating, the model returns no loss.

    The teacher's logits as a column, for a teacher in a Trainer of its own::

        logits = Trainer(teacher, args).predict(train).predictions
        train = train.add_column("teacher_logits", list(logits))
    """

    def __init__(self, *args, criterion: akd_ext.AnnealingKDLoss, unit: str = "epoch", **kwargs) -> None:
        if isinstance(criterion, akd_ext.LinearAnnealingKDLoss):
            raise TypeError(
                "criterion is a LinearAnnealingKDLoss, of hidden states; accepted: an AnnealingKDLoss, or "
                "CausalLMAnnealingTrainer"
            )
        if criterion.reduction == "none":
            raise ValueError("criterion has reduction 'none'; accepted: 'mean', 'batchmean', 'sum'")
        # Passing a compute_loss_func tells the Trainer to count the items and not to divide the loss again.
        super().__init__(*args, compute_loss_func=self._annealed_loss, **kwargs)
        if type(self.model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
            raise ValueError(
                f"the student is a {type(self.model).__name__}, a causal language model, whose labels are shifted; "
                "accepted: other models, or CausalLMAnnealingTrainer in the place of AnnealingTrainer"
            )
        self.criterion = criterion
        self._sum = copy.copy(criterion)  # shares phi with it
        self._sum.reduction = "sum"
        self._sum.eval()  # or it warns that its temperature was never set: the callback sets that of the original
        annealing = AnnealingCallback(criterion, unit)
        self.add_callback(annealing)
        annealing.beside = self.callback_handler.callbacks

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        if COLUMN not in self._signature_columns:  # or the Trainer drops it: the model's forward does not take it
            self._signature_columns.append(COLUMN)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = dict(inputs)
        teacher = inputs.pop(COLUMN, None)
        if not model.training:
            outputs = model(**inputs)
            if isinstance(outputs, dict) and outputs.get("loss") is None:
                raise ValueError(
                    f"evaluating, the model returned no 'loss', only {', '.join(map(repr, outputs))}; let its forward "
                    "return one for the labels, or set eval_strategy='no' and measure by Trainer.predict without labels"
                )
            loss = outputs["loss"] if isinstance(outputs, dict) else outputs[0]
            return (loss, outputs) if return_outputs else loss
        if teacher is None or "labels" not in inputs:
            missing = COLUMN if teacher is None else "labels"  # by which the Trainer counts
            found = sorted({*inputs, *([COLUMN] if teacher is not None else [])})
            raise ValueError(f"the training batch has no column {missing!r}; it has {found}")
        inputs["labels"] = (inputs["labels"], teacher)  # the Trainer hands them on to _annealed_loss, unread
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _annealed_loss(self, outputs, labels_and_teacher, num_items_in_batch=None) -> Tensor:
        labels, teacher = labels_and_teacher
        student = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        mask = labels.ne(-100) if labels.shape == student.shape[:-1] else None
        loss = self._sum(student, teacher, mask)
        if self.criterion.reduction == "sum":
            return loss
        items = labels.ne(-100).sum() if num_items_in_batch is None else num_items_in_batch
        vectors = items / torch.Size(labels.shape[student.ndim - 1 :]).numel()  # multi-label: an item for each class
        return loss / (vectors * student.shape[-1] if self.criterion.reduction == "mean" else vectors)
