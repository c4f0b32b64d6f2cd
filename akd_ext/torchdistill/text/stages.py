"""The stages of text: a learning rate that falls in each, and the best model of the one before, from its folder."""

import os

import torch
from torchdistill.common.constant import def_logger
from torchdistill.common.module_util import check_if_fsdp_wrapped, check_if_wrapped, load_full_state_dict
from torchdistill.core.interfaces.registry import register_pre_epoch_proc_func
from torchdistill.optim.registry import register_scheduler

from ..pre_epoch import annealing_pre_epoch_process, epoch_within_stage

logger = def_logger.getChild(__name__)


@register_scheduler
def linear_decay(optimizer, num_training_steps, warmup=0.0, last_epoch=-1):
    """The learning rate falls from its full value to 0, evenly over ``num_training_steps`` steps.

    ``scheduling_step: 1`` makes torchdistill step it after every batch; each stage has its own, so the decay starts
    again in stage II. Leave ``num_training_steps`` empty in the YAML: torchdistill's script and ``akd-train`` both put
    in the number of steps of the stage. ``warmup`` is the share of the steps, in [0, 1), in which it rises first.

    Example:
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        >>> scheduler, rates = linear_decay(optimizer, 4), []
        >>> for _ in range(4):
        ...     rates.append(optimizer.param_groups[0]["lr"]); optimizer.step(); scheduler.step()
        >>> rates
        [1.0, 0.75, 0.5, 0.25]
    """
    if not isinstance(num_training_steps, int) or num_training_steps < 1:
        raise ValueError(f"linear_decay: num_training_steps is {num_training_steps!r}, accepted is an int from 1")
    if not 0 <= warmup < 1:
        raise ValueError(f"linear_decay: warmup is {warmup!r}, accepted is a share of the steps, from 0 to below 1")
    rising = warmup * num_training_steps

    def factor(step):
        return step / rising if step < rising else max(0.0, (num_training_steps - step) / (num_training_steps - rising))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor, last_epoch=last_epoch)


@register_pre_epoch_proc_func
def text_pre_epoch_process(self, epoch=None, **kwargs):
    """``annealing_pre_epoch_process``; and a stage whose student names a ``src_folder`` starts from the model there.

    Hugging Face keeps a model in a folder, while torchdistill's ``src_ckpt`` is a file. torchdistill's GLUE script
    saves the best epoch so far in the student's ``dst_ckpt``, and so does ``akd-train``, so stage II says::

        student:
          src_folder: './runs/mine'    # the student's dst_ckpt
        pre_epoch_process: 'text_pre_epoch_process'

    The weights are taken in before the stage's first epoch. A folder without weights is a warning, and the student goes
    on as it is: torchdistill's script saves nothing before a metric is above 0.
    """
    folder = _stage_config(self).get("student" if hasattr(self, "student_model") else "model", {}).get("src_folder")
    if folder and epoch_within_stage(self, epoch)[0] == 0:
        student = self.student_model if hasattr(self, "student_model") else self.model
        _load_folder(student, os.path.expanduser(folder), getattr(self, "stage_number", 1))
    annealing_pre_epoch_process(self, epoch=epoch, **kwargs)


def _stage_config(box):
    train_config = getattr(box, "train_config", {})
    return train_config.get(f"stage{getattr(box, 'stage_number', 1)}", train_config)


def _load_folder(student, folder, stage):
    path = os.path.join(folder, "model.safetensors")
    if not os.path.isfile(path):
        logger.warning(f"stage {stage}: there is no '{path}'; the student goes on with the weights it has")
        return
    from safetensors.torch import load_file, load_model

    if check_if_fsdp_wrapped(student):
        load_full_state_dict(student, load_file(path))
    else:
        load_model(student.module if check_if_wrapped(student) else student, path)  # knows which weights are shared
    logger.info(f"stage {stage} starts from {path}")
