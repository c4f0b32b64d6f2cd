"""Labels that are no class, found before the first epoch: stage I may read none, and stage II would fail after hours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from akd_ext.train.system.errors import ConfigError
from akd_ext.train.system.random_states import random_states_put_back
from akd_ext.train.tasks.samples import known_labels, no_class


def fetched(loader: DataLoader, indices: list) -> Any:
    """A batch of these samples, fetched here: no worker is started."""
    fetch = getattr(loader.dataset, "__getitems__", None)
    return loader.collate_fn(fetch(indices) if fetch else [loader.dataset[index] for index in indices])


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

    What is listed is believed when the sample has been fetched and has this label: others may come out of a data set
    than go in.

    Args:
        batch: of the loader; None: of what is listed alone.
        data: what the data set is called.
        ignored: labels that a loss leaves out, such as -100.
        are_read: asked only where a label is wrong; False lets it pass, as nothing reads it.

    Raises:
        ConfigError: with the label and what is accepted.
    """
    found = None if batch is None else _wrong(batch[1], classes, ignored)
    if found is None and not isinstance(loader.dataset, IterableDataset):
        listed = known_labels(loader.dataset)
        at = None if listed is None else _wrong(listed, classes, ignored)
        if at is not None:
            found = _wrong(fetched(loader, [at[0]])[1], classes, ignored)
    if found is not None and are_read():
        raise ConfigError(no_class(data, found[1], classes))


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
            losses.append(box.forward_process(batch, torch.full_like(targets, label), extra).float())
    return not torch.allclose(*losses, equal_nan=True)


def _wrong(labels: Any, classes: int, ignored: frozenset[int]) -> tuple[int, int] | None:
    """(where, label) of the first that is no class. None also where they are no whole numbers, as of a mixture."""
    if not isinstance(labels, torch.Tensor) or labels.dim() != 1 or labels.is_floating_point():
        return None
    labels = labels.long().cpu()
    wrong = (labels < 0) | (labels >= classes)
    for label in ignored:
        wrong &= labels != label
    places = wrong.nonzero()
    return (int(places[0]), int(labels[places[0]])) if len(places) else None
