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
from akd_ext.reproduce.experiments import Experiment
from akd_ext.train.system.errors import RunError


def stage_one(
    student: nn.Module, data, taught: Tensor, epochs: int, experiment: Experiment, temperatures: Iterable[int]
) -> dict[int, nn.Module]:
    """Train stage I of an experiment and return a copy of the student as it was at the end of each temperature.

    Args:
        student: trained in place, on the device of ``taught``.
        data: an image data set that serves whole batches; images are taken as they are, without augmentation.
        taught: the teacher's logits of the first ``len(taught)`` images, which are the training set, [N, classes].
        epochs: all of stage I; at least one for each temperature.
        experiment: batch size, optimizer, learning rate and ``tau_max``.
        temperatures: which students to keep.

    Raises:
        RunError: the loss is not finite.
    """
    lr = experiment.runs["annealing_kd"].stages[0].lr
    optimizer = torch.optim.SGD(
        student.parameters(), lr=lr, momentum=experiment.momentum, weight_decay=experiment.weight_decay
    )
    drops = [round(share * epochs) for share in experiment.lr_drops]
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, drops, experiment.lr_drop_factor)
    schedule, criterion = AnnealingSchedule(experiment.tau_max, epochs), AnnealingKDLoss(experiment.tau_max)
    criterion.to(taught.device)
    kept = {}
    for epoch in range(epochs):
        temperature, _ = criterion.set_epoch(epoch, epochs)
        student.train()
        total = 0.0
        for chosen in torch.randperm(len(taught)).split(experiment.batch_size):
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
