"""What tests/train_tiny.yaml names: a dataset, networks and a loss so small that two stages take a second."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils.data import Dataset
from torchdistill.core.interfaces.pre_epoch_proc import default_pre_epoch_process_with_teacher
from torchdistill.core.interfaces.registry import register_pre_epoch_proc_func
from torchdistill.losses.registry import register_mid_level_loss
from torchdistill.models.registry import register_model

import akd_ext

CLASSES = 6
SEEN: list[tuple[int, int, dict]] = []  # (epoch, stage, student's weights when the epoch starts)


class TinyImages(Dataset):
    """1x8x8 images of noise around one fixed pattern per class; ``start`` makes splits differ."""

    def __init__(self, size: int, start: int = 0, noise: float = 1.0):
        patterns = torch.randn(CLASSES, 1, 8, 8, generator=torch.Generator().manual_seed(7))
        generator = torch.Generator().manual_seed(100 + start)
        self.targets = [(start + index) % CLASSES for index in range(size)]
        self.images = [patterns[t] + noise * torch.randn(1, 8, 8, generator=generator) for t in self.targets]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int):
        return self.images[index], self.targets[index]


def broken(size: int = 0):
    raise RuntimeError("the disk\nis on fire")


@register_model
def tiny_net(width: int = 4, num_classes: int = CLASSES) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(),
        nn.Linear(width * 16, num_classes),
    )  # fmt: skip


@register_model
def tiny_with_batch_norm_1d() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES), nn.BatchNorm1d(CLASSES))


@register_mid_level_loss
class TinyAnnealing(akd_ext.AnnealingKDLoss):
    """MSE to phi times the teacher's logits: what akd_ext.torchdistill registers, without needing it."""

    def forward(self, student_io, teacher_io, targets):
        return nn.functional.mse_loss(student_io["."]["output"], self.phi * teacher_io["."]["output"])


@register_pre_epoch_proc_func
def tiny_annealing_pre_epoch(self, epoch, **kwargs):
    default_pre_epoch_process_with_teacher(self, epoch, **kwargs)
    SEEN.append((epoch, self.stage_number, copy.deepcopy(self.student_model.state_dict())))
    for criterion, _ in self.criterion.term_dict.values():
        if isinstance(criterion, TinyAnnealing):
            criterion.set_temperature(max(criterion.tau_max - epoch, 1))


@register_pre_epoch_proc_func
def poison_pre_epoch(self, epoch, **kwargs):
    """From the second epoch on the student's weights are NaN."""
    default_pre_epoch_process_with_teacher(self, epoch, **kwargs)
    if epoch == 1:
        with torch.no_grad():
            next(self.student_model.parameters()).fill_(float("nan"))


@register_pre_epoch_proc_func
def fails_in_the_second_process(self, epoch, **kwargs):
    default_pre_epoch_process_with_teacher(self, epoch, **kwargs)
    if torch.distributed.get_rank() == 1:
        broken()


def save_teacher(folder):
    """``teacher.pt`` in ``folder``: an untrained teacher, the same every time."""
    torch.manual_seed(0)
    path = folder / "teacher.pt"
    torch.save(tiny_net(width=8).state_dict(), path)
    return path
