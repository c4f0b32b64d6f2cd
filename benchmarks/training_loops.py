"""The two training loops that ``benchmarks.training`` compares, each served by a process of its own.

A process each, because akd-train changes how malloc behaves, and what torchdistill's loop runs in must not be changed.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import multiprocessing
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch

PLAIN, OURS = "torchdistill", "ours"
SKIPPED = "torchdistill, teacher skipped"
CPU = torch.device("cpu")
# Steps before the clock starts: as many as two workers have fetched in advance, and one.
WARM = 5


@dataclasses.dataclass(frozen=True)
class Options:
    data_dir: str
    cache_dir: str
    teacher_ckpt: str | None
    teacher_depth: int
    batch_size: int
    threads: int
    start_method: str = multiprocessing.get_start_method()


@dataclasses.dataclass(frozen=True)
class Case:
    stage: int
    augment: bool

    def __str__(self) -> str:
        return f"stage {'I' * self.stage}, {'with' if self.augment else 'without'} augmentation"

    def runs_teacher(self, contender: str) -> bool:
        return contender == PLAIN or (contender == OURS and self.stage == 1 and self.augment)


CASES = tuple(Case(stage, augment) for stage in (1, 2) for augment in (False, True))


def yaml_changes(options: Options, case: Case) -> list[str]:
    """What is changed in torchdistill_configs/cifar10/cpu/annealing_kd.yaml, as for ``akd-train --set``."""
    changes = [
        f"datasets.cifar10/train.init.kwargs.augment={case.augment}",
        f"models.teacher_model.kwargs.depth={options.teacher_depth}",
        f"models.teacher_model.src_ckpt={options.teacher_ckpt or 'null'}",
        f"train.stage1.train_data_loader.kwargs.batch_size={options.batch_size}",
        f"train.stage2.train_data_loader.kwargs.batch_size={options.batch_size}",
        "train.stage2.student.src_ckpt=null",
    ]
    for split in ("train", "val"):
        changes.append(f"datasets.cifar10/{split}.init.kwargs.root={options.data_dir}")
        changes.append(f"datasets.cifar10/{split}.init.kwargs.download=False")
    if case.augment:
        changes.append("train.stage1.train_data_loader.dataset_wrapper.kwargs={}")
        changes.append("train.stage1.teacher.forward_proc=frozen_forward")
    else:
        changes.append(f"train.stage1.train_data_loader.dataset_wrapper.kwargs.cache_dir={options.cache_dir}")
    return changes


class Window:
    """The first steps of a data loader, over and over if it is short: WARM that do not count, then ``steps`` that do.

    ``seconds`` and ``images`` are those of the steps that count. The last one ends when the loop asks for more.
    """

    def __init__(self, loader: Any, steps: int):
        self._loader, self._steps = loader, steps
        self.seconds, self.images = 0.0, 0

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        begin = time.perf_counter()
        for number, batch in enumerate(itertools.islice(self._endless(), WARM + self._steps)):
            if number == WARM:
                begin = time.perf_counter()
            if number >= WARM:
                self.images += len(batch["labels"] if isinstance(batch, Mapping) else batch[0])
            yield batch
        self.seconds = time.perf_counter() - begin

    def _endless(self) -> Iterator[Any]:
        while True:
            yield from self._loader


def serve(connection: Any, contender: str, options: Options) -> None:
    """The process of one contender: answers until it is asked for None.

    A request is (name, case, steps), the answer (seconds, images, steps of a whole epoch), or an exception. With 0 steps
    nothing is trained, and the seconds are those of the work before the first epoch.
    """
    torch.set_num_threads(options.threads)
    # A spawned process would spawn, too; data loaders are to start their workers as they do everywhere.
    multiprocessing.set_start_method(options.start_method, force=True)
    logging.disable(logging.WARNING)
    if contender == OURS:
        from akd_ext.train.system.allocator import keep_freed_memory

        keep_freed_memory()
    made: dict[Any, Any] = {}
    while (request := connection.recv()) is not None:
        try:
            name, case, steps = request
            if (name, case) not in made:
                made[name, case] = make_box(name, case, options)
            box, seconds = made[name, case]
            loader = box.train_data_loader
            window = Window(loader, steps)
            if steps:
                box.train_data_loader = window
                (our_epoch if name == OURS else torchdistill_epoch)(box)
                box.train_data_loader, seconds = loader, window.seconds
            connection.send((seconds, window.images, len(loader)))
        except Exception as error:
            connection.send(RuntimeError(f"{name}, {case}: {type(error).__name__}: {error}"))


def make_box(contender: str, case: Case, options: Options) -> tuple[Any, float]:
    """torchdistill's box for one stage of the YAML, and the seconds that its work before the first epoch took.

    That work is where ``cached_forward`` fills the cache or finds it filled.
    """
    from torchdistill.core.distillation import get_distillation_box

    from akd_ext.reproduce.recipes import config_dir
    from akd_ext.train.checkpoint.weights import build_model
    from akd_ext.train.config.load import load_config

    path = str(config_dir() / "cifar10" / "cpu" / "annealing_kd.yaml")
    config = load_config(path, yaml_changes(options, case), options.cache_dir).construct()
    torch.manual_seed(0)
    models = [build_model(config["models"][role], role, CPU, False) for role in ("teacher_model", "student_model")]
    stage = config["train"][f"stage{case.stage}"]
    # In stage II, too, where torchdistill runs the teacher: in train mode it would be another teacher, and slower.
    stage["pre_epoch_process"] = "annealing_pre_epoch_process"
    if contender != OURS:
        config["datasets"]["cifar10/train"] = torchvision_data(config["datasets"]["cifar10/train"], options)
        loader = stage["train_data_loader"]
        del loader["dataset_wrapper"], loader["collate_fn"]
        loader["kwargs"]["num_workers"] = 2
        stage["teacher"]["forward_proc"] = "skip_forward" if contender == SKIPPED else "forward_batch_only"
    box = get_distillation_box(*models, config["datasets"], stage, CPU, None, False, 1)
    begin = time.perf_counter()
    box.pre_epoch_process(epoch=0)
    return box, time.perf_counter() - begin


def torchvision_data(ours: Any, options: Options) -> Any:
    """What a torchdistill YAML names for CIFAR-10: torchvision's data set with its transforms."""
    from torchvision import datasets, transforms

    random = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()] if ours.augment else []
    fixed = [transforms.ToTensor(), transforms.Normalize(ours.mean.tolist(), ours.std.tolist())]
    return datasets.CIFAR10(options.data_dir, train=True, transform=transforms.Compose([*random, *fixed]))


def torchdistill_epoch(box: Any) -> None:
    """The epoch of torchdistill's image_classification.py: its meters, and the loss read at every step."""
    from torchdistill.misc.log import MetricLogger, SmoothedValue

    meters = MetricLogger(delimiter="  ")
    meters.add_meter("lr", SmoothedValue(window_size=1, fmt="{value}"))
    meters.add_meter("img/s", SmoothedValue(window_size=10, fmt="{value}"))
    for images, targets, more in meters.log_every(box.train_data_loader, 50, "Epoch: [0]"):
        begin = time.time()
        images, targets = images.to(CPU), targets.to(CPU)
        loss = box.forward_process(images, targets, more)
        box.post_forward_process(loss=loss)
        meters.update(loss=loss.item(), lr=box.optimizer.param_groups[0]["lr"])
        meters.meters["img/s"].update(len(images) / (time.time() - begin))
        if torch.isnan(loss) or torch.isinf(loss):
            raise ValueError(f"the loss became {loss}")


def our_epoch(box: Any, task: Any = None) -> None:
    """The epoch of akd-train; ``task`` is its part for images where there is none."""
    from akd_ext.train.build import Settings
    from akd_ext.train.checkpoint.checkpointer import Checkpointer
    from akd_ext.train.epoch import Epoch
    from akd_ext.train.system.precision import Precision
    from akd_ext.train.system.signals import Stop
    from akd_ext.train.tasks.image_classification import ImageClassification
    from akd_ext.train.trainer import Trainer

    precision = Precision(None, CPU)
    task = task or ImageClassification(CPU, precision, channels_last=False, distributed=False)
    settings = Settings(CPU, precision, log_every=50, show_bar=False)
    trainer = Trainer(box, [], task, settings, None, None, Checkpointer(None, {}, 0, Stop()))  # saves nothing
    try:
        Epoch(trainer, 0, 0).run()
    finally:
        trainer.progress.close()
