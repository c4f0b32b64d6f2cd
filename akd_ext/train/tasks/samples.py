"""A user's own images: what a sample and a label must be, and which labels a data set says that it has."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset, default_collate

from akd_ext.train.system.errors import ConfigError, one_sentence

_ACCEPTED = "accepted: a pair (image, label), the image a tensor and the label an int from 0"


def name_of(dataset: Any, datasets: Mapping[str, Any]) -> str:
    """What a loader's data set, which may be wrapped, is called in an error."""
    while dataset is not None:
        for name, known in datasets.items():
            if known is dataset:
                return f"the data set '{name}'"
        dataset = getattr(dataset, "org_dataset", None)
    return "the data set"


def no_class(data: str, label: int, classes: int) -> str:
    """The sentence for a label that is no class.

    >>> no_class("the data set 'own/val'", 10, 10)
    "the data set 'own/val' has the label 10; accepted: 0 to 9, as the model has 10 classes"
    """
    return f"{data} has the label {label}; accepted: 0 to {classes - 1}, as the model has {classes} classes"


def check_batch(batch: Any, data: str) -> None:
    """Raises ConfigError for a batch of which no images and labels can be sent to a device."""
    if isinstance(batch, Mapping):
        raise ConfigError(f"{data}: a batch is a dict with the keys {_listed(batch)}; accepted: images and labels")
    for number, name in enumerate(("images", "labels")):
        part = batch[number] if isinstance(batch, (tuple, list)) and len(batch) > number else None
        if not hasattr(part, "to"):
            raise ConfigError(f"{data}: the {name} of a batch are a {type(part).__name__}; accepted: a tensor")


def check_labels_alone(labels: Any, data: str) -> None:
    """Raises ConfigError for labels that an accuracy cannot be counted with."""
    if labels.dim() != 1:
        shape = list(labels.shape)
        raise ConfigError(f"{data}: labels of shape {shape} came; accepted for an accuracy: one for each image, [B]")


def check_sample(loader: Any, index: Any, data: str, error: Exception, *, parts: int | None = None) -> None:
    """Says of a data set whose batch has failed with ``error`` what is wrong with its samples, if it is that.

    Where the loader has a wrapper or a collate function of its own, samples may be anything.

    Args:
        parts: how many parts a sample may have at most; None: as many as it likes beside an image and a label.

    Raises:
        ConfigError: a sample is no pair of an image and a label.
    """
    from torchdistill.datasets.wrapper import BaseDatasetWrapper

    from akd_ext.torchdistill import IndexedDatasetWrapper

    dataset = loader.dataset
    while type(dataset) in (BaseDatasetWrapper, IndexedDatasetWrapper):
        dataset = dataset.org_dataset
    if loader.collate_fn is not default_collate or isinstance(dataset, BaseDatasetWrapper):
        return
    problem = _problem(dataset[index], parts)
    if problem is not None:
        raise ConfigError(f"{data}: {problem}; {_ACCEPTED} ({type(error).__name__}: {one_sentence(error)})")


def known_labels(dataset: Any) -> torch.Tensor | None:
    """The labels as a data set itself lists them ([N] of int64), as torchvision's do; None where it does not.

    They are a hint: a ``target_transform`` may make others of them.

    >>> known_labels(Subset(TensorDataset(torch.zeros(3, 1), torch.tensor([4, 5, 6])), [0, 2]))
    tensor([4, 6])
    """
    if isinstance(dataset, Subset):
        whole = known_labels(dataset.dataset)
        return None if whole is None else whole[torch.as_tensor(list(dataset.indices), dtype=torch.int64)]
    if isinstance(dataset, ConcatDataset):
        parts = [known_labels(part) for part in dataset.datasets]
        return None if any(part is None for part in parts) else torch.cat(parts)
    if isinstance(getattr(dataset, "org_dataset", None), Dataset):
        return known_labels(dataset.org_dataset)
    try:
        found = getattr(dataset, "targets", getattr(dataset, "labels", None))
        if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
            found = dataset.tensors[1]
        # Not of anything: a file that looks like an array would be read one label at a time, and rows are no labels.
        is_flat = isinstance(found[0], numbers.Integral) if isinstance(found, (list, tuple)) else found.ndim == 1
        if not is_flat or not isinstance(found, (list, tuple, torch.Tensor, np.ndarray)):
            return None
        labels = torch.as_tensor(found)
    except Exception:  # nothing is listed, or no numbers are
        return None
    return None if labels.is_floating_point() or len(labels) != len(dataset) else labels.cpu().long()


def _problem(sample: Any, parts: int | None) -> str | None:
    if isinstance(sample, Mapping):
        return f"a sample is a dict with the keys {_listed(sample)}"
    if not isinstance(sample, (tuple, list)):
        return f"a sample is a {type(sample).__name__}"
    if len(sample) < 2 or (parts is not None and len(sample) > parts):
        return f"a sample has {len(sample)} parts ({', '.join(type(part).__name__ for part in sample)})"
    image, label = sample[:2]
    if isinstance(label, str):
        return f"a label is the text {label!r}"
    if type(image).__module__.startswith("PIL."):
        return "an image is one of PIL, which torchvision.transforms.ToTensor() makes a tensor of"
    for name, part in (("image", image), ("label", label)):
        try:
            torch.as_tensor(part)
        except (TypeError, ValueError, RuntimeError):
            return f"the {name} of a sample is a {type(part).__name__}"
    return None


def _listed(keys: Any) -> str:
    return ", ".join(f"'{key}'" for key in keys)
