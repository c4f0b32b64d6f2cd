"""A Hugging Face model in a box: its logits, its loss on the labels, and KD between logits."""

import inspect

import torch
from torch import nn
from torchdistill.core.interfaces.registry import register_forward_proc_func
from torchdistill.losses.registry import register_func2extract_model_output, register_mid_level_loss

from ..losses import logits_in


def _run(model, batch):
    """The model's output for the columns of the batch that it takes. Labels stay out: the loss is computed here."""
    forward = getattr(model, "module", model).forward  # of FSDP2 the model itself is the wrapper
    takes = inspect.signature(forward).parameters
    return model(**{name: value for name, value in batch.items() if name in takes and name != "labels"})


@register_forward_proc_func
def forward_logits(model, sample_batch, targets=None, supp_dict=None, **kwargs):
    """Run a Hugging Face model on a batch (a mapping); the output is its logits, [B, classes].

    Columns that the model does not take, and the labels, are left out. For a teacher, and for a student that learns
    from logits alone (stage I)::

        student:
          forward_proc: 'forward_logits'
    """
    return _run(model, sample_batch).logits


@register_forward_proc_func
def forward_with_label_loss(model, sample_batch, targets=None, supp_dict=None, **kwargs):
    """Run a Hugging Face model on a batch (a mapping) with ``labels``; the output has ``logits`` and ``loss``.

    torchdistill's GLUE script has the labels in the batch and gives no targets, so a loss term cannot see them. The
    loss goes to the criterion as its model term::

        student:
          forward_proc: 'forward_with_label_loss'
        criterion:
          key: 'WeightedSumLoss'
          func2extract_model_loss: 'extract_label_loss'
          kwargs: {model_term: {weight: 1.0}}
    """
    output = _run(model, sample_batch)
    output["loss"] = label_loss(output.logits, sample_batch["labels"])
    return output


@register_func2extract_model_output
def extract_label_loss(student_outputs, targets=None, **kwargs):
    """``{'label_loss': ...}`` from the output of ``forward_with_label_loss``; nothing from other outputs."""
    loss = getattr(student_outputs, "loss", None)
    return {} if loss is None else {"label_loss": loss}


def label_loss(logits, labels):
    """Equation 2 of the paper: cross-entropy; for a regression, which has one logit, the mean squared error.

    Args:
        logits: [B, classes], or [B, 1] for a regression.
        labels: int [B], or float [B] for a regression.

    Returns:
        A 0-d tensor.

    Raises:
        ValueError: the shapes are others. [B, 1] against [B] would broadcast to [B, B], so the logits are squeezed.

    Example:
        >>> label_loss(torch.tensor([[1.0], [3.0]]), torch.tensor([1.0, 1.0])).item()
        2.0
    """
    if logits.dim() != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"label_loss: logits are {list(logits.shape)} and labels {list(labels.shape)}; "
            "accepted are [B, classes] and [B]"
        )
    if logits.shape[1] == 1:
        dtype = torch.promote_types(logits.dtype, torch.float32)  # a score such as 3.8 is none in a half type
        return nn.functional.mse_loss(logits.squeeze(1).to(dtype), labels.to(dtype))
    return nn.functional.cross_entropy(logits, labels)


@register_mid_level_loss
class LogitKDLoss(nn.Module):
    """The teacher's part of KD (equation 1 of the paper): T^2 KL(softmax(teacher / T) || softmax(student / T)).

    The mean over the batch. For a regression, whose one logit has no softmax, it is the mean squared error between
    the logits. The labels' part is the criterion's model term, see ``forward_with_label_loss``.

    Args:
        temperature: T, a number above 0.
        student_module_path, student_module_io, teacher_module_path, teacher_module_io: as for ``AnnealingKDLoss``.

    Example:
        >>> loss = LogitKDLoss(temperature=1)
        >>> loss({".": {"output": torch.zeros(2, 3)}}, {".": {"output": torch.zeros(2, 3)}}).item()
        0.0
    """

    def __init__(self, temperature, *, student_module_path=".", student_module_io="output",
                 teacher_module_path=".", teacher_module_io="output"):  # fmt: skip
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"LogitKDLoss: temperature is {temperature!r}, accepted is a number above 0")
        self.temperature = temperature
        self.student_module_path, self.student_module_io = student_module_path, student_module_io
        self.teacher_module_path, self.teacher_module_io = teacher_module_path, teacher_module_io

    def forward(self, student_io_dict, teacher_io_dict, targets=None, *args, **kwargs):
        """Take the logits of both models out of the I/O dicts and compare them; ``targets`` is not read."""
        name = type(self).__name__
        student = logits_in("student", student_io_dict, self.student_module_path, self.student_module_io, name)
        teacher = logits_in("teacher", teacher_io_dict, self.teacher_module_path, self.teacher_module_io, name)
        if student.shape != teacher.shape:
            raise ValueError(f"LogitKDLoss: the student's logits are {list(student.shape)}, the teacher's "
                             f"{list(teacher.shape)}")  # fmt: skip
        if student.shape[1] == 1:
            return nn.functional.mse_loss(student.float(), teacher.float())
        t = self.temperature
        log_student, log_teacher = (torch.log_softmax(logits.float() / t, dim=1) for logits in (student, teacher))
        return t**2 * nn.functional.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)

    def extra_repr(self):
        return f"temperature={self.temperature}"
