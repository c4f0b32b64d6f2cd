"""What text needs beside images: Hugging Face models and batches in a torchdistill box.

Nothing here imports transformers or accelerate: the models come from whoever runs the box, torchdistill's
``general_language_understanding.py`` or ``akd-train``.
"""

import inspect
import os
import sys

import torch
from torch import nn
from torch.utils.data import Sampler
from torchdistill.common.constant import def_logger
from torchdistill.common.module_util import check_if_fsdp_wrapped, check_if_wrapped, load_full_state_dict
from torchdistill.core.interfaces.registry import register_forward_proc_func, register_pre_epoch_proc_func
from torchdistill.losses.registry import register_func2extract_model_output, register_mid_level_loss
from torchdistill.optim.registry import register_scheduler

from .losses import logits_in
from .pre_epoch import annealing_pre_epoch_process, epoch_within_stage

logger = def_logger.getChild(__name__)


def repair_accelerate():
    """Give accelerate's ``Accelerator`` and ``AcceleratorState`` back the property ``use_fp16``, where it is missing.

    accelerate removed it; torchdistill 1.1.5 and its GLUE script read it, so distillation there dies with an
    AttributeError. It says whether ``mixed_precision`` is ``'fp16'``, as it did. Importing ``akd_ext.torchdistill``
    calls this when accelerate is imported already, which it is when a script's YAML names this plug-in.

    Returns:
        The names of the repaired classes; empty when there was nothing to do.
    """
    accelerate = sys.modules.get("accelerate")
    if accelerate is None:
        return []
    from accelerate.state import AcceleratorState

    repaired = []
    for cls in (accelerate.Accelerator, AcceleratorState):
        if not hasattr(cls, "use_fp16"):
            cls.use_fp16 = property(lambda self: self.mixed_precision == "fp16")
            repaired.append(cls.__name__)
    if repaired:
        logger.info(f"accelerate {accelerate.__version__} has no use_fp16, which torchdistill reads: added to "
                    f"{' and '.join(repaired)}")  # fmt: skip
    return repaired


repair_accelerate()


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


@register_scheduler
def linear_decay(optimizer, num_training_steps, warmup=0.0, last_epoch=-1):
    """The learning rate falls from its full value to 0, evenly over ``num_training_steps`` steps.

    ``scheduling_step: 1`` makes torchdistill step it after every batch; each stage has its own, so the decay starts
    again in stage II. Leave ``num_training_steps`` empty in the YAML: torchdistill's script and ``akd-train`` both put
    in the number of steps of the stage. ``warmup`` is the share of the steps, in [0, 1), in which it rises first.

    Example:
        >>> optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
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


class LengthBucketSampler(Sampler):
    """Random order in which examples of similar length stand together, so that little of a batch is padding.

    The examples are shuffled, ``window`` batches of them at a time are sorted by length and cut into batches, and the
    batches are shuffled. In a YAML::

        sampler:
          class_or_func: !import_get
            key: 'akd_ext.torchdistill.text.LengthBucketSampler'
          kwargs:
            batch_size: 32    # the loader's

    Args:
        dataset: examples are mappings with ``input_ids``.
        batch_size: that of the data loader.
        window: how many batches are sorted together: more means less padding and less random batches.

    Yields every index of the dataset once. The incomplete batch, if there is one, comes last.

    Example:
        >>> lengths = [3, 9, 1, 7]
        >>> sampler = LengthBucketSampler([{"input_ids": [0] * n} for n in lengths], batch_size=2)
        >>> order = [lengths[i] for i in sampler]
        >>> sorted(map(tuple, (order[:2], order[2:])))
        [(1, 3), (7, 9)]
    """

    def __init__(self, dataset, batch_size, window=50):
        for name, value in (("batch_size", batch_size), ("window", window)):
            if type(value) is not int or value < 1:
                raise ValueError(f"LengthBucketSampler: {name} is {value!r}, accepted is an int from 1")
        columns = getattr(dataset, "column_names", None)
        ids = dataset["input_ids"] if columns else (example["input_ids"] for example in dataset)
        self.lengths = torch.tensor([len(tokens) for tokens in ids])
        self.batch_size, self.window = batch_size, window

    def __len__(self):
        return len(self.lengths)

    def __iter__(self):
        shuffled = torch.randperm(len(self))
        full = len(self) // self.batch_size * self.batch_size
        batches = []
        for part in shuffled[:full].split(self.window * self.batch_size):
            batches += part[self.lengths[part].argsort()].split(self.batch_size)
        for place in torch.randperm(len(batches)).tolist():
            yield from batches[place].tolist()
        yield from shuffled[full:].tolist()


def take_layers(model, layers):
    """A copy of an encoder with only the given layers: how a small student starts from a large model.

    Args:
        model: a Hugging Face model whose encoder's layers are one ``ModuleList`` of length
            ``config.num_hidden_layers`` (BERT, RoBERTa, DistilBERT with ``n_layers``, ...).
        layers: which layers, counted from 0, in the order they shall have. ``[0, 1]`` takes the first two.

    Returns:
        A new model of the same class; embeddings, pooler and classifier are copied, ``model`` is left as it is.

    Raises:
        ValueError: a layer that is not there, none at all, or a model without such a list.
    """
    import copy

    copied = copy.deepcopy(model)
    config = copied.config
    name = next((n for n in ("num_hidden_layers", "n_layers") if hasattr(config, n)), None)
    count = getattr(config, name) if name else 0
    lists = [(parent, key, child) for parent in copied.modules() for key, child in parent.named_children()
             if isinstance(child, nn.ModuleList) and len(child) == count]  # fmt: skip
    if len(lists) != 1:
        raise ValueError(f"take_layers: {type(model).__name__} has {len(lists)} lists of {count} layers, expected one")
    layers = list(layers)
    if not layers or any(type(i) is not int or not 0 <= i < count for i in layers):
        raise ValueError(f"take_layers: layers is {layers!r}, accepted are ints from 0 to {count - 1}")
    parent, key, children = lists[0]
    setattr(parent, key, nn.ModuleList([copy.deepcopy(children[i]) for i in layers]))
    setattr(config, name, len(layers))
    return copied
