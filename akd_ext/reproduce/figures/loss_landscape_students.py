"""The students of figure 3: one for each temperature, on its way through stage I."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from akd_ext import AnnealingKDLoss, AnnealingSchedule
from akd_ext.filesystem import replacing
from akd_ext.train.system.errors import RunError


def stage_one(
    student: nn.Module, data, taught: Tensor, epochs: int, temperatures: Iterable[int]
) -> dict[int, nn.Module]:
    """Train stage I of an experiment and return a copy of the student as it was at the end of each temperature.

    Args:
        student: trained in place, on the device of ``taught``.
        data: an image data set that serves whole batches; images are taken as they are, without augmentation.
        taught: the teacher's logits of the first ``len(taught)`` images, which are the training set, [N, classes].
        epochs: all of stage I; at least one for each temperature.
        temperatures: which students to keep.

    Raises:
        RunError: the loss is not finite.
    """
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    drops = [round(share * epochs) for share in (0.5, 0.75)]
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, drops, 0.1)
    schedule, criterion = AnnealingSchedule(10, epochs), AnnealingKDLoss(10)
    criterion.to(taught.device)
    kept = {}
    for epoch in range(epochs):
        temperature, _ = criterion.set_epoch(epoch, epochs)
        student.train()
        total = 0.0
        for chosen in torch.randperm(len(taught)).split(128):
            images = data.__getitems__(chosen)[0]
            loss = criterion(student(images), taught[chosen.to(taught.device)])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(chosen)
        mean = float(total) / len(taught)
        if not math.isfinite(mean):
            raise RunError(f"stage I diverged in epoch {epoch}")
        scheduler.step()
        print(f"stage I, epoch {epoch + 1}/{epochs}, T = {temperature}, loss {mean:.4f}", flush=True)
        last_of_temperature = epoch + 1 == epochs or schedule.temperature(epoch + 1) != temperature
        if last_of_temperature and temperature in temperatures:
            kept[temperature] = copy.deepcopy(student)
    return kept


def save(students: dict[int, nn.Module], folder: Path) -> dict[int, Path]:
    """Write ``student-T<T>.pt`` for each temperature, and return the names."""
    files = {T: folder / f"student-T{T}.pt" for T in students}
    for T, file in files.items():
        with replacing(file) as temporary, open(temporary, "wb") as opened:
            torch.save({"model": {name: value.cpu() for name, value in students[T].state_dict().items()}}, opened)
    return files
