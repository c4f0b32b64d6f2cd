"""Chance from everywhere: samples that Python, NumPy and torch each disturb, a student with dropout, a loss that counts."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy
import torch
from torch import nn
from torchdistill.losses.registry import register_mid_level_loss
from torchdistill.models.registry import register_model
from train_fixture import CLASSES, TinyImages


class NoisyImages(TinyImages):
    def __getitem__(self, index: int):
        image, target = super().__getitem__(index)
        shift = random.gauss(0, 0.1) + numpy.random.normal(0, 0.1)
        return image + shift + 0.1 * torch.randn(1, 8, 8), target


@register_model
def dropout_net(width: int = 8, num_classes: int = CLASSES) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.3), nn.Linear(width, num_classes)
    )  # fmt: skip


@register_mid_level_loss
class CountingLoss(nn.Module):
    """Grows with the number of calls, which only a buffer knows."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, student_io, teacher_io, targets):
        self.calls += 1
        return self.calls * nn.functional.cross_entropy(student_io["."]["output"], targets)


def seeded_sampler(dataset):
    """A random order from a generator of its own."""
    return torch.utils.data.RandomSampler(dataset, generator=torch.Generator().manual_seed(3))


def outcome(folder: Path) -> dict:
    """The files that must be equal, and the results without the seconds."""
    results = json.loads((folder / "results.json").read_text())
    for epoch in results["epochs"]:
        del epoch["seconds"]
    return {"results": results, **{f"{n}": (folder / f"{n}.safetensors").read_bytes() for n in ("best", "last")}}
