"""What happens before an epoch of Annealing-KD in a torchdistill box."""

from torch import nn
from torchdistill.common.constant import def_logger
from torchdistill.core.interfaces.pre_epoch_proc import (
    default_pre_epoch_process_with_teacher,
    default_pre_epoch_process_without_teacher,
)
from torchdistill.core.interfaces.registry import register_pre_epoch_proc_func

import akd_ext

from .cifar import check_whole_batches
from .forward_procs import skip_forward
from .large_heads import LinearAnnealingKDLoss
from .teacher_logits import prepare_cached_forward

logger = def_logger.getChild(__name__)


@register_pre_epoch_proc_func
def annealing_pre_epoch_process(self, epoch=None, **kwargs):
    """torchdistill's default pre-epoch process, and what Annealing-KD needs beside it.

    - Every ``AnnealingKDLoss`` in the box's criterion gets the temperature of this epoch *of this stage*, and its
      buffers move to the box's device. T and Phi are logged, once per epoch and loss.
    - Every ``LinearAnnealingKDLoss`` is told of the last layers of both models.
    - A teacher that is not being trained is put into eval mode. torchdistill leaves it in train mode, where BatchNorm
      normalises by the batch and its running statistics drift away from the checkpoint; Dropout would add noise.
      A teacher is being trained when a parameter of it requires a gradient and is in the box's optimizer, whatever
      the YAML says; such a teacher is put into train mode, and a warning before the stage's first epoch says so:
      torchdistill's default for ``requires_grad`` is True.
    - The loaders of a ``FastCIFAR10`` or ``FastCIFAR100`` are checked for ``collate_fn: 'whole_batch'``.
    - Where the teacher's forward process is ``cached_forward``, its logits are computed or found before the first epoch
      of the stage.

    Works for ``DistillationBox``, ``TrainingBox`` and both multi-stage boxes, in every stage, with or without an
    ``AnnealingKDLoss``.

    Args:
        self: the box.
        epoch: the epoch counted over all stages, as torchdistill's scripts give it.

    Raises:
        ValueError: ``epoch`` is missing, or outside the current stage (``--start_epoch`` of torchdistill's scripts
            does not restore the stage); ``cached_forward`` cannot serve this stage; a loader lacks its ``collate_fn``.
    """
    check_whole_batches(train_data_loader=self.train_data_loader, val_data_loader=self.val_data_loader)
    if hasattr(self, "teacher_model"):
        default_pre_epoch_process_with_teacher(self, epoch=epoch, **kwargs)
        trained = trained_parameters(self.teacher_model, self.optimizer)
        is_trained = bool(trained)
        _warn_of_trained_teacher(self, trained, epoch)
        self.teacher_model.train(is_trained)
        prepare_cached_forward(self, is_trained)
    else:
        default_pre_epoch_process_without_teacher(self, epoch=epoch, **kwargs)

    losses = list(annealing_losses(self.criterion))
    if not losses:
        return

    stage_epoch, num_epochs = epoch_within_stage(self, epoch)
    for name, loss in losses:
        prepare_loss(self, loss)
        temperature, phi = loss.set_epoch(stage_epoch, num_epochs)
        if stage_epoch == 0 and num_epochs < loss.tau_max:
            logger.warning(
                f"[{name}] this stage has {num_epochs} epoch{'s' * (num_epochs != 1)}, so T takes {num_epochs} of its "
                f"tau_max = {loss.tau_max} values" + (": 1, nothing is annealed" if num_epochs == 1 else "")
            )
        logger.info(f"[{name}] epoch {stage_epoch + 1}/{num_epochs} of this stage: T = {temperature}, Phi = {phi:.4f}")


def prepare_loss(box, loss):
    """All that an annealing loss needs of its box but the temperature."""
    # A plain dict holds the terms of torchdistill's WeightedSumLoss: nobody else moves their buffers.
    loss.to(box.device)
    if isinstance(loss, LinearAnnealingKDLoss):
        if not hasattr(box, "teacher_model"):
            raise ValueError("LinearAnnealingKDLoss: there is no teacher; accepted is a file with models.teacher_model")
        loss.find_heads(box.student_model, box.teacher_model)


def epoch_within_stage(box, epoch):
    """Return ``(epoch, number of epochs)`` of the box's current stage, both as int, the epoch counted from 0.

    Args:
        box: a torchdistill box. Single-stage boxes have no ``stage_number``; there the stage is the whole training.
        epoch: the epoch counted over all stages.
    """
    if epoch is None:
        raise ValueError("annealing_pre_epoch_process: epoch is None; call box.pre_epoch_process(epoch=...)")
    if not hasattr(box, "stage_number"):
        stage, start, num_epochs = "the training", 0, box.num_epochs
    else:
        num_epochs = box.train_config[f"stage{box.stage_number}"]["num_epochs"]
        stage, start = f"stage {box.stage_number}", box.stage_end_epoch - num_epochs
    if not start <= epoch < start + num_epochs:
        raise ValueError(
            f"annealing_pre_epoch_process: epoch {epoch} is outside {stage} (epochs {start} to "
            f"{start + num_epochs - 1}); note that torchdistill's --start_epoch does not restore the stage"
        )
    return epoch - start, num_epochs


def annealing_losses(criterion, name="criterion"):
    """Yield ``(name, loss)`` for every ``akd_ext.AnnealingKDLoss`` inside ``criterion``, each once.

    torchdistill keeps the terms of a loss in a plain dict (``term_dict``) as ``(loss, weight)``, out of sight of
    ``nn.Module.modules()``; a loss wrapper keeps the loss in an attribute; either may sit inside the other. So every
    attribute is searched, through modules, dicts, lists and tuples.

    Example:
        >>> from torch import nn
        >>> import akd_ext
        >>> from akd_ext.torchdistill.pre_epoch import annealing_losses
        >>> criterion = nn.Module()
        >>> criterion.term_dict = {"kd": (akd_ext.AnnealingKDLoss(tau_max=10), 1.0)}
        >>> [name for name, loss in annealing_losses(criterion)]
        ['kd']
    """
    todo, seen = [(name, criterion)], set()
    while todo:
        name, item = todo.pop(0)
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, akd_ext.AnnealingKDLoss):
            yield name, item
        elif isinstance(item, nn.Module):
            # A term is called what the user called it in the YAML; attributes on the way do not add to the name.
            todo.extend((name, value) for value in vars(item).values())
        elif isinstance(item, dict):
            todo.extend((_term_name(name, key, value), value) for key, value in item.items())
        elif isinstance(item, (list, tuple)):
            todo.extend((name, value) for value in item)


def _term_name(name, key, value):
    is_term = isinstance(value, tuple) and value and isinstance(value[0], nn.Module)
    return str(key) if is_term else name


def trained_parameters(model, optimizer):
    """The names of the parameters in ``model`` that the optimizer updates."""
    groups = [] if optimizer is None else optimizer.param_groups
    updated = {id(p) for group in groups for p in group["params"] if p.requires_grad}
    return [name for name, p in model.named_parameters() if id(p) in updated]


def _warn_of_trained_teacher(box, trained, epoch):
    """Once in a stage: a teacher that learns from the loss against itself moves towards the student."""
    if not trained or box.teacher_forward_proc is skip_forward or epoch_within_stage(box, epoch)[0]:
        return
    number = len(list(box.teacher_model.parameters()))
    section = f"train.stage{box.stage_number}.teacher" if hasattr(box, "stage_number") else "train.teacher"
    some = "" if len(trained) == number else f" ({number - len(trained)} are frozen)"
    logger.warning(
        f"{section}: the teacher is trained with the student, {len(trained)} of its {number} parameters from "
        f"'{trained[0]}' on{some}; write `requires_grad: False` there, torchdistill's default is True, unless that is what you want"
    )
