"""A task's metrics over a data loader, and predictions for the leaderboard."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from akd_ext.torchdistill.text import forward_logits
from akd_ext.train.distributed.group import gather_in_order
from akd_ext.train.distributed.sampler import batch_sizes
from akd_ext.train.system.precision import Precision

from .metrics import compute


@dataclass(frozen=True)
class Score:
    """Per cent. ``metrics`` by name; the first is the one that chooses the best epoch."""

    metrics: dict[str, float]
    top5 = None

    @property
    def top1(self) -> float:
        return next(iter(self.metrics.values()))

    @property
    def brief(self) -> str:
        """For the line of an epoch."""
        return ", ".join(f"{name} {value:.2f}" for name, value in self.metrics.items())

    def __str__(self) -> str:
        return self.brief


@torch.no_grad()
def predict(model: nn.Module, loader, device: torch.device, precision: Precision) -> torch.Tensor:
    """The logits, float32 [N, classes] on the CPU, in the loader's order; leaves the model in eval mode.

    Of several processes, each runs its share and all get everything: the metrics of parts do not add up.
    """
    model.eval()
    found = []
    for step, batch in enumerate(loader):
        with precision.autocast():
            logits = forward_logits(model, {name: value.to(device) for name, value in batch.items()}).float()
        found.append(logits[: batch_sizes(loader, step, len(logits))[0]])
    return gather_in_order(loader, torch.cat(found).cpu())


def answers(logits: torch.Tensor, label_ids: list[int] | None) -> list:
    """Classes in the task's order ([N] of int), or for a regression the scores themselves."""
    if label_ids is None:
        return logits.squeeze(1).tolist()
    return logits[:, label_ids].argmax(1).tolist()


def score(logits: torch.Tensor, labels: list, label_ids: list[int] | None, metrics: tuple[str, ...]) -> Score:
    """The metrics of ``logits`` [N, classes] against ``labels`` in the task's order."""
    found = compute(metrics, answers(logits, label_ids), labels)
    return Score({name: 100 * value for name, value in found.items()})
