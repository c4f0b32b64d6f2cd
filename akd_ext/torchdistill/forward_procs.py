"""How a torchdistill box runs a model on a batch (YAML key ``forward_proc`` of a stage's teacher or student)."""

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

import torch
from torchdistill.core.interfaces.registry import register_forward_proc_func


@register_forward_proc_func
def skip_forward(model, sample_batch, targets=None, supp_dict=None, **kwargs):
    """Do not run the model; its output is ``None``.

    torchdistill runs the teacher in every stage, also where no loss reads it. Stage II of Annealing-KD trains with
    cross-entropy alone (equation 2 of the paper), so its YAML says::

        teacher:
          forward_proc: 'skip_forward'
          requires_grad: False

    An ``'index'`` that ``IndexedDatasetWrapper`` put into a batch of the dict kind is taken out: the student's
    ``forward`` knows no such argument.

    Returns:
        None. A loss that reads the output of a skipped model fails; ``AnnealingKDLoss`` says why.

    Example:
        >>> from akd_ext.torchdistill import skip_forward
        >>> skip_forward(model=None, sample_batch=None) is None
        True
    """
    take_index(sample_batch, supp_dict)


@register_forward_proc_func
def cached_forward(model, sample_batch, targets=None, supp_dict=None, *, cache=None, **kwargs):
    """Do not run the frozen teacher; look up what it once gave for these samples.

    Before the first epoch of the stage, ``annealing_pre_epoch_process`` runs the teacher once over the training set, or
    finds that an earlier run has done so. In a stage of a torchdistill YAML::

        pre_epoch_process: 'annealing_pre_epoch_process'
        train_data_loader:
          dataset_wrapper:
            key: 'IndexedDatasetWrapper'
            kwargs:
              cache_dir: './runs/teacher_logits'
        teacher:
          forward_proc: 'cached_forward'
          requires_grad: False

    The training set must give the same sample for the same index every time: no random augmentation.

    Args:
        cache: an ``akd_ext.logit_cache.LogitCache``; the pre-epoch process gives it.

    Returns:
        The teacher's logits of ``supp_dict['index']``, ``[B, ...]`` on the device of the batch; where the teacher
        returns an object with ``.logits``, a `CachedOutput`. If there is no ``supp_dict``, the index is taken out of
        the batch, which is then a dict.

    Raises:
        RuntimeError: nobody gave a cache.
        ValueError: the batch has no index.
    """
    if cache is None:
        raise RuntimeError(
            "cached_forward: the teacher's logits were not computed; "
            "add `pre_epoch_process: 'annealing_pre_epoch_process'` to this stage"
        )
    index = take_index(sample_batch, supp_dict)
    if index is None:
        raise ValueError(
            "cached_forward: the batch does not say which samples it holds; "
            "add `dataset_wrapper: {key: 'IndexedDatasetWrapper'}` to this stage's train_data_loader"
        )
    logits = cache[index].to(_device(sample_batch), non_blocking=True)
    return logits if cache.output == "tensor" else CachedOutput(logits)


@dataclass(frozen=True)
class CachedOutput:
    """Stands for the output of a Hugging Face model, of which only the logits are kept.

    Example:
        >>> from akd_ext.torchdistill.forward_procs import CachedOutput
        >>> output = CachedOutput(torch.zeros(2, 1))
        >>> output.logits is output["logits"]
        True
    """

    logits: torch.Tensor

    def __getitem__(self, key):
        if key not in ("logits", 0):
            raise KeyError(f"{key!r}: of the teacher's output only 'logits' is kept")
        return self.logits


def take_index(sample_batch, supp_dict):
    """The index in ``supp_dict``, or taken out of a batch that is a dict, or None."""
    if supp_dict and "index" in supp_dict:
        return supp_dict["index"]
    return sample_batch.pop("index", None) if isinstance(sample_batch, MutableMapping) else None


def _device(batch):
    tensors = batch.values() if isinstance(batch, Mapping) else (batch,)
    return next((item.device for item in tensors if isinstance(item, torch.Tensor)), torch.device("cpu"))
