"""Labels that are no class, found before the first epoch: stage I may read none, and stage II would fail after hours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler

from akd_ext.train.system.errors import ConfigError
from akd_ext.train.system.random_states import random_states_put_back
from akd_ext.train.tasks.samples import known_labels, no_class


def check_labels(
    loader: DataLoader,
    batch: Any,
    classes: int,
    data: str,
    *,
    ignored: frozenset[int] = frozenset(),
    are_read: Callable[[], bool] = lambda: True,
) -> None:
    """Refuses a label outside of 0 to ``classes - 1`` in a batch, or in the labels that the data set itself lists.

    What is listed is believed when the sample itself has this label: others may come out of a data set than go in.

    Args:
        batch: of the loader; None: of what is listed alone.
        data: what the data set is called.
        ignored: labels that a loss leaves out, such as -100.
        are_read: asked only where a label is wrong; False lets it pass, as nothing reads it.

    Raises:
        ConfigError: with the label and what is accepted.
    """
    if batch is not None and not _are_classes(batch[1]):
        return  # of a mixture, or of many classes at once
    found = None if batch is None else _wrong(batch[1], classes, ignored)
    if found is None and _draws_every_sample(loader):
        found = _listed(loader.dataset, classes, ignored)
    if found is not None and are_read():
        raise ConfigError(no_class(data, found[1], classes))


def _draws_every_sample(loader: DataLoader) -> bool:
    """Other samplers may leave out just those, as where classes are added one after the other."""
    return (
        not isinstance(loader.dataset, IterableDataset)
        and type(loader.sampler) in (RandomSampler, SequentialSampler)
        and type(loader.batch_sampler) in (BatchSampler, type(None))
    )


def _listed(dataset: Any, classes: int, ignored: frozenset[int]) -> tuple[int, int] | None:
    listed = known_labels(dataset)
    at = None if listed is None else _wrong(listed, classes, ignored)
    if at is None:
        return None
    try:
        label = torch.as_tensor(dataset[at[0]][1]).reshape(1)
    except Exception:  # no pair: nothing is known of its label
        return None
    return _wrong(label, classes, ignored) if _are_classes(label) else None


def ignored_labels(criterion: Any) -> frozenset[int]:
    """What the cross-entropies in a stage's criterion leave out; -100 unless the YAML says otherwise."""
    terms = [term for term, _ in getattr(criterion, "term_dict", {}).values()]
    modules = [module for term in terms if isinstance(term, torch.nn.Module) for module in term.modules()]
    return frozenset(getattr(module, "ignore_index", -100) for module in modules)


def reads_labels(box: Any, batch: Any, targets: torch.Tensor, extra: Any, classes: int) -> bool:
    """Whether a stage's loss changes with the labels; labels that nothing reads, of unlabelled images, may be anything."""
    losses = []
    for label in (0, classes - 1):
        with random_states_put_back(), torch.no_grad():
            losses.append(box.forward_process(batch, torch.full_like(targets, label), extra))
    if not all(isinstance(loss, torch.Tensor) for loss in losses):
        return True
    return not torch.allclose(losses[0].float(), losses[1].float(), equal_nan=True)


def _are_classes(labels: Any) -> bool:
    return isinstance(labels, torch.Tensor) and labels.dim() == 1 and not labels.is_floating_point()


def _wrong(labels: torch.Tensor, classes: int, ignored: frozenset[int]) -> tuple[int, int] | None:
    """(where, label) of the first that is no class."""
    labels = labels.long().cpu()
    wrong = (labels < 0) | (labels >= classes)
    for label in ignored:
        wrong &= labels != label
    places = wrong.nonzero()
    return (int(places[0]), int(labels[places[0]])) if len(places) else None
