"""Two processes with half the batch each train as one process with the whole batch: the same weights after every step.

The one process is written out in plain PyTorch below. No BatchNorm here: its statistics are each process's own.
"""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector

pytest.importorskip("torchdistill", reason="akd-train runs torchdistill's boxes; pip install '.[experiments]'")

from two_processes import in_two_processes

HALF, CLASSES, FEATURES, EPOCHS = 3, 4, 5, 2
# Of batches of 6: an even end, 3 and 2 samples, 1 and none (1 at all), and one that is dropped.
SIZES = {12: (6, 6), 11: (6, 5), 13: (6, 6, 1), 1: (1,), -11: (6,)}


def models_and_data():
    generator = torch.Generator().manual_seed(3)
    student, teacher = (nn.Linear(FEATURES, CLASSES).double() for _ in "st")
    for parameter in (*student.parameters(), *teacher.parameters()):
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return student, teacher, [(torch.randn(FEATURES, generator=generator, dtype=torch.float64), i % CLASSES)
                              for i in range(13)]  # fmt: skip


def loss_of_the_whole(student, teacher, x, y, phi, psi, reduction):
    """Equation 3 in the given reduction, plus cross-entropy; for "none" the loss that is made of single rows."""
    difference = student(x) - phi * teacher(x).detach()
    rows = difference.square().sum(1)
    if reduction == "none":
        return psi * F.cross_entropy(student(x), y) + (1 - psi) * (rows - phi).clamp(min=0).mean()
    reduced = {"mean": rows.mean() / CLASSES, "batchmean": rows.mean(), "sum": rows.sum()}[reduction]
    return 0.1 * reduced + 0.5 * F.cross_entropy(student(x), y)


def one_process(size, reduction, accumulate):
    """(weights after every step, mean loss of every epoch, accuracy at the end)"""
    student, teacher, data = models_and_data()
    optimizer, weights, losses, count = torch.optim.SGD(student.parameters(), lr=0.3), [], [], 0
    for epoch in range(EPOCHS):
        phi, psi, start, losses_now = (0.5, 0.0, 0, 0.0) if epoch == 0 else (1.0, 1.0, 0, 0.0)
        for length in SIZES[size]:
            x, y = (
                torch.stack([torch.as_tensor(item[part]) for item in data[start : start + length]]) for part in (0, 1)
            )
            loss = loss_of_the_whole(student, teacher, x, y, phi, psi, reduction)
            (loss / accumulate).backward()
            start, count, losses_now = start + length, count + 1, losses_now + loss.item() * length
            if count % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
            weights.append(parameters_to_vector(student.parameters()).detach().clone())
        losses.append(losses_now / start)
    x, y = (torch.stack([torch.as_tensor(item[part]) for item in data[:start]]) for part in (0, 1))
    accuracy = 100 * (student(x).argmax(1) == y).sum().item() / start
    return weights, losses, accuracy


def criterion(reduction):
    if reduction == "none":
        return {"akd": {"criterion": {"key": "ContinuationKDLoss", "kwargs": {"tau_max": 2}}, "weight": 1.0}}
    paths = {"input": {"is_from_teacher": False, "module_path": ".", "io": "output"}, "target": {"uses_label": True}}
    ce = {"criterion": {"key": "CrossEntropyLoss", "kwargs": {}}, "weight": 0.5,
          "criterion_wrapper": {"key": "SimpleLossWrapper", "kwargs": paths}}  # fmt: skip
    akd = {"key": "AnnealingKDLoss", "kwargs": {"tau_max": 2, "reduction": reduction}}
    return {"akd": {"criterion": akd, "weight": 0.1}, "ce": ce}


def akd_train(size, reduction, accumulate):
    """The same by akd-train's loop and torchdistill's box."""
    from torch.utils.data import SequentialSampler
    from torchdistill.core.distillation import get_distillation_box

    import akd_ext.torchdistill  # noqa: F401
    from akd_ext.train.build import Settings
    from akd_ext.train.checkpoint.checkpointer import Checkpointer
    from akd_ext.train.distributed.sampler import distribute_loaders
    from akd_ext.train.reporting.results import Results
    from akd_ext.train.system.precision import Precision
    from akd_ext.train.system.signals import Stop
    from akd_ext.train.tasks.image_classification import ImageClassification
    from akd_ext.train.trainer import Trainer

    student, teacher, data = models_and_data()
    sampler = {"class_or_func": SequentialSampler, "kwargs": {}}
    loader = {"dataset_id": "train", "sampler": sampler, "kwargs": {"batch_size": HALF, "drop_last": size < 0}}
    config = {
        "num_epochs": EPOCHS, "pre_epoch_process": "annealing_pre_epoch_process",
        "train_data_loader": loader, "val_data_loader": {**loader, "sampler": dict(sampler)},
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "SGD", "kwargs": {"lr": 0.3}, "grad_accum_step": accumulate},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": criterion(reduction)}},
    }  # fmt: skip
    distribute_loaders({"train": config, "test": {}}, seed=0)
    device = torch.device("cpu")
    box = get_distillation_box(teacher, student, {"train": data[: abs(size)]}, config, device, None, False, 1)
    weights, process = [], box.post_forward_process

    def post_forward(*args, **kwargs):
        process(*args, **kwargs)
        weights.append(parameters_to_vector(student.parameters()).detach().clone())

    box.post_forward_process = post_forward
    precision = Precision(None, device)
    task = ImageClassification(device, precision, channels_last=False, distributed=True)
    results = Results(None, config="", seed=0, device="cpu", versions={})
    best = SimpleNamespace(update=lambda *args, **kwargs: None, finish=lambda: None)
    settings = Settings(device, precision, show_bar=False)
    Trainer(box, [config], task, settings, results, best, Checkpointer(None, {}, 0, Stop())).fit()
    return (
        weights,
        [epoch["train_loss"] for epoch in results.data["epochs"]],
        results.data["epochs"][-1]["val_accuracy"],
    )


def every_case(rank):
    for case in itertools.product(SIZES, ("mean", "batchmean", "sum", "none"), (1, 2)):
        torch.testing.assert_close(akd_train(*case), one_process(*case), msg=f"{case}: {{}}".format)


@pytest.mark.integration
def test_two_processes_train_as_one(tmp_path):
    in_two_processes(__file__, "every_case", tmp_path)
