"""From flags and YAML to data, models and torchdistill's box; nothing here writes a file."""

from __future__ import annotations

import copy
import logging
from argparse import Namespace
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torchdistill.common.main_util import set_seed
from torchdistill.core.distillation import get_distillation_box
from torchdistill.core.training import get_training_box

from akd_ext.train.config.load import Config, TextChoices, load_config
from akd_ext.train.distributed import group
from akd_ext.train.distributed.sampler import distribute_loaders
from akd_ext.train.system.allocator import keep_freed_memory
from akd_ext.train.system.errors import ConfigError, one_sentence
from akd_ext.train.system.precision import Precision
from akd_ext.train.tasks.image_classification import ImageClassification

from .boxes import only_private, stages_in
from .fingerprint import run_fingerprint

logger = logging.getLogger(__name__)


@dataclass
class Settings:
    """How to run, as opposed to what: nothing here changes the mathematics but the arithmetic's precision."""

    device: torch.device
    precision: Precision
    channels_last: bool = False
    compile: bool = False
    log_every: int = 100
    show_bar: bool = True


@dataclass
class Job:
    """What a command and its YAML have come to.

    Attributes:
        task: `ImageClassification` or `TextClassification`.
        built: the YAML with its objects.
        wrappers: ``{stage: {role: arguments for DistributedDataParallel}}``.
    """

    args: Namespace
    config: Config
    settings: Settings
    task: Any
    built: dict[str, Any]
    teacher: nn.Module | None
    student: nn.Module
    wrappers: dict[int, dict[str, dict]]
    seed: int | None

    @property
    def student_key(self) -> str:
        return f"models.{self.config.student_role}"

    @property
    def learner(self) -> str:
        """What the model that is trained is called: where nobody teaches it, it is no student, but perhaps a teacher."""
        return "student" if self.config.student_role == "student_model" else "model"

    @property
    def dst_ckpt(self) -> str:
        return self.built["models"][self.config.student_role]["dst_ckpt"]

    @property
    def tests_teacher(self) -> bool:
        """A teacher that no stage runs is not even loaded for text."""
        return self.teacher is not None and not self.args.student_only and any(True for _ in self.teacher.parameters())

    def fingerprint(self) -> dict[str, Any]:
        answered = only_private(self.built)
        trained_on = {name: data for name, data in self.built["datasets"].items() if name not in answered}
        return run_fingerprint(self.args, self.config, self.teacher, trained_on)

    def load_student(self, name: str) -> None:
        self.task.load(self.student, self.dst_ckpt, name)

    def write_predictions(self) -> None:
        if self.args.private_output:
            self.task.write_predictions(self.student, self.built["private"], self.args.private_output)

    def box(self) -> Any:
        """torchdistill's box. Raises ConfigError if it cannot be set up."""
        train_config = self.built["train"]
        factor = group.world_size() if self.args.adjust_lr else 1
        if factor != 1:  # the box multiplies in place, so stages that share one optimizer by an alias would do it twice
            for stage in stages_in(train_config):
                if stage.get("optimizer"):
                    stage["optimizer"] = copy.deepcopy(stage["optimizer"])
        # The box thinks that it is alone.
        common = (self.built["datasets"], train_config, self.settings.device, None, False, factor)
        try:
            if self.teacher is None:
                return get_training_box(self.student, *common)
            return get_distillation_box(self.teacher, self.student, *common)
        except Exception as error:
            key_path = "train.stage1" if "stage1" in train_config else "train"
            raise ConfigError(
                f"{key_path}: torchdistill could not set it up: {type(error).__name__}: {one_sentence(error)}"
            ) from error


def build(args: Namespace, device: torch.device) -> Job:
    """Reads and checks the YAML, then makes the data sets and the models. The order decides the random numbers.

    Raises:
        ConfigError: something asked for cannot work.
    """
    precision = Precision(args.amp, device)
    needs_teacher = not (args.test_only and args.student_only)
    config = load_config(
        args.config,
        args.overrides,
        args.output_dir,
        text=TextChoices(args.teacher, args.student, args.length_buckets, args.glue_dir),
        needs_train=not args.test_only,
        needs_teacher=needs_teacher,
    )
    seed = group.same_seed(args.seed)
    set_seed(seed)  # before the datasets: a split may be random
    task = _task(args, config, device, precision)
    if device.type == "cpu" and not config.is_text and keep_freed_memory():  # texts differ in length, images do not
        logger.info("freed memory is kept for the next step", extra={"file_only": True})
    built = config.construct()
    dst_ckpt = built["models"][config.student_role]["dst_ckpt"]
    if args.test_only and not task.is_checkpoint(dst_ckpt):
        raise ConfigError(
            f"-test_only: there is no checkpoint '{dst_ckpt}' (models.{config.student_role}.dst_ckpt) to test"
        )
    settings = Settings(
        device,
        precision,
        channels_last=args.channels_last,
        compile=args.compile,
        log_every=(built.get("train") or {}).get("log_freq") or 100,
        show_bar=group.rank() == 0 and not args.quiet,
    )
    teacher, student = task.prepare(built, config.student_role, needs_teacher)
    return Job(args, config, settings, task, built, teacher, student, distribute_loaders(built, seed), seed)


def _task(args: Namespace, config: Config, device: torch.device, precision: Precision) -> Any:
    """How this run's kind of data and models is handled."""
    if not config.is_text:
        for flag in ("glue_dir", "teacher", "student", "private_output", "length_buckets"):
            if getattr(args, flag):
                raise ConfigError(f"--{flag}: it is for text, and the models in '{args.config}' are not")
        return ImageClassification(
            device, precision, channels_last=args.channels_last, distributed=group.is_distributed()
        )
    if args.channels_last:
        raise ConfigError("--channels_last: it is for images")
    if args.private_output and not config.checker.root.get("private"):
        raise ConfigError(f"--private_output: '{args.config}' has no section 'private' that lists test sets")
    from akd_ext.train.tasks.text.task import TextClassification

    return TextClassification(args.glue_dir, device, precision, predicts=bool(args.private_output))
