"""What ``akd-train`` does for images and not for text (`TextClassification`): models, batches, accuracy, checkpoints."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from torch import nn
from torchdistill.datasets.util import build_data_loader

from akd_ext.train.checkpoint.best import BestCheckpoint
from akd_ext.train.checkpoint.weights import build_model, load
from akd_ext.train.run_folder import RunFolder
from akd_ext.train.system.errors import ConfigError
from akd_ext.train.system.precision import Precision

from .evaluate import Accuracy, evaluate, send
from .samples import name_of, no_class

logger = logging.getLogger(__name__)


class ImageClassification:
    """One run's models and data sets, as the YAML has built them."""

    unit = "images"
    packages = ()
    checks_labels = False  # the data sets are the user's, and nobody has looked at their labels

    def __init__(self, device: torch.device, precision: Precision, *, channels_last: bool, distributed: bool):
        self._device, self._precision, self._channels_last = device, precision, channels_last
        self._distributed, self._test_loader = distributed, None
        self._datasets: dict[str, Any] = {}

    def prepare(self, built: dict, role: str, needs_teacher: bool) -> tuple[nn.Module | None, nn.Module]:
        """(teacher, student). The teacher first: the order decides the random numbers, and this one is torchdistill's."""
        models, teacher = built["models"], None
        self._datasets = built["datasets"]
        if models.get("teacher_model") is not None and needs_teacher:
            teacher = build_model(models["teacher_model"], "models.teacher_model", self._device, self._distributed)
        return teacher, build_model(models[role], f"models.{role}", self._device, self._distributed)

    def send(self, batch: tuple) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """(batch, targets, supp_dict) on the device."""
        images, targets, extra = batch
        return send(images, self._device, self._channels_last), targets.to(self._device, non_blocking=True), extra

    def evaluate(self, model: nn.Module, loader) -> Accuracy:
        data = self.name_of(loader.dataset)
        return evaluate(model, loader, self._device, self._precision, channels_last=self._channels_last, data=data)

    def validate(self, model: nn.Module, loader) -> Accuracy:
        """As `evaluate`, where an epoch is chosen by it.

        Raises:
            ConfigError: a label is no class, in all processes, whichever met it.
        """
        score = self.evaluate(model, loader)
        if score.wrong_label is not None:
            raise ConfigError(no_class(self.name_of(loader.dataset), score.wrong_label, score.classes))
        return score

    def name_of(self, dataset: Any) -> str:
        """What a data set, which may be wrapped, is called in an error."""
        return name_of(dataset, self._datasets)

    @torch.no_grad()
    def count_classes(self, model: nn.Module, batch: tuple) -> int:
        """How many logits ``model`` gives; leaves it in eval mode."""
        model.eval()
        with self._precision.autocast():
            return model(send(batch[0], self._device, self._channels_last)).shape[1]

    def test(self, model: nn.Module, built: dict) -> Accuracy:
        """Accuracy on the test split. Its loader is made when first used: nothing before the end may see it."""
        if self._test_loader is None:
            loader = built["test"]["test_data_loader"]
            dataset = built["datasets"][loader["dataset_id"]]
            self._test_loader = build_data_loader(dataset, loader, False)  # the sampler in it shares out
        score = self.evaluate(model, self._test_loader)
        if score.wrong_label is not None:  # nothing is chosen by it, and the training is over
            sentence = no_class(self.name_of(self._test_loader.dataset), score.wrong_label, score.classes)
            logger.warning("%s; it counts as wrong", sentence)
        return score

    def best_checkpoint(self, dst_ckpt: str, folder: RunFolder | None) -> BestCheckpoint:
        return BestCheckpoint(dst_ckpt, folder)

    def is_checkpoint(self, path: str) -> bool:
        return os.path.isfile(os.path.expanduser(path))

    def load(self, student: nn.Module, path: str, place: str) -> None:
        load(student, path, place)
