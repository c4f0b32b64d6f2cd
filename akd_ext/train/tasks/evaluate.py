"""Accuracy over a data loader."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import distributed, nn

from akd_ext.train.distributed.group import is_distributed
from akd_ext.train.distributed.sampler import batch_sizes
from akd_ext.train.system.precision import Precision

from .samples import check_batch, check_labels_alone


@dataclass(frozen=True)
class Accuracy:
    """Percentages; ``top5`` is None for five classes or fewer. NaN over an empty loader.

    ``wrong_label``: one that is no class of the model's and so counts as wrong, if there was any.
    """

    top1: float
    top5: float | None
    classes: int | None = None
    wrong_label: int | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """What there is beside the accuracy, by name."""
        return {}

    @property
    def brief(self) -> str:
        """For the line of an epoch."""
        return f"{self.top1:.2f} %"

    def __str__(self) -> str:
        return self.brief + (f" (top-5 {self.top5:.2f} %)" if self.top5 is not None else "")


def send(batch: torch.Tensor, device: torch.device, channels_last: bool) -> torch.Tensor:
    memory_format = torch.channels_last if channels_last and batch.dim() == 4 else torch.preserve_format
    return batch.to(device, non_blocking=True, memory_format=memory_format)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader,
    device: torch.device,
    precision: Precision,
    *,
    channels_last: bool = False,
    data: str = "the data set",
) -> Accuracy:
    """Top-1 and top-5 accuracy; leaves the model in eval mode. The host waits for the device once, at the end.

    Of several processes, each counts its share and all get the sum.

    Args:
        data: what the data set is called in an error.

    Raises:
        ConfigError: a batch is no images and labels.
    """
    model.eval()
    counts = torch.zeros(3, dtype=torch.int64, device=device)  # right, right among five, all
    # The largest label and minus the smallest: looked at in the end, where the batches are.
    bounds = torch.full((2,), torch.iinfo(torch.int64).min)
    seen = classes = 0
    for step, batch in enumerate(loader):
        check_batch(batch, data)
        check_labels_alone(batch[1], data)
        mine, _ = batch_sizes(loader, step, len(batch[1]))
        bounds = _widened(bounds, batch[1][:mine])
        images, targets = send(batch[0], device, channels_last), batch[1][:mine].to(device, non_blocking=True)
        with precision.autocast():
            logits = model(images)[:mine]
        classes = logits.shape[1]
        guesses = logits.topk(min(5, classes), dim=1).indices == targets[:, None]
        counts[:2] += torch.stack([guesses[:, 0].sum(), guesses.sum()])
        seen += len(targets)
    counts[2] = seen
    if is_distributed():
        bounds = bounds.to(device)
        distributed.all_reduce(counts)
        distributed.all_reduce(bounds, distributed.ReduceOp.MAX)
    right, right5, total = counts.tolist()
    if not total:
        return Accuracy(float("nan"), None)
    high, low = bounds[0].item(), -bounds[1].item()
    wrong = high if high >= classes else low if low < 0 else None
    return Accuracy(100.0 * right / total, 100.0 * right5 / total if classes > 5 else None, classes, wrong)


def _widened(bounds: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    if not len(targets):
        return bounds
    low, high = targets.long().aminmax()
    return torch.maximum(bounds.to(targets.device), torch.stack([high, -low]))
