"""What ``akd-train`` does differently for text: models, data, batches, metrics, checkpoints, predictions."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from torch import nn
from torchdistill.common.main_util import is_main_process
from torchdistill.datasets.registry import register_collate_func
from torchdistill.datasets.util import build_data_loader

from akd_ext.filesystem import write_text
from akd_ext.train.boxes import only_private, stages_in
from akd_ext.train.checkpoint.hf_folder import BestHFFolder, load_folder
from akd_ext.train.distributed.sampler import steps_per_epoch
from akd_ext.train.run_folder import RunFolder
from akd_ext.train.system.errors import ConfigError
from akd_ext.train.system.precision import Precision
from akd_ext.train.tasks.samples import name_of

from .data import COLLATE, TextDataset, load_examples, source_of
from .evaluate import Score, answers, predict, score
from .glue import TASKS
from .kd_loss import remarks
from .models import agree_on_labels, check_same_tokenizer, check_tokenizer, load_model, load_tokenizer
from .predictions import lines

logger = logging.getLogger(__name__)
RUNS_NO_TEACHER = "skip_forward"


class TextClassification:
    """One run's models and data sets. ``prepare`` makes them; see ``ImageClassification`` for the other kind.

    Args:
        glue_dir: folder with GLUE's official files; None: the Hugging Face hub.
        device, precision: of every forward pass.
        predicts: whether ``write_predictions`` will be called; the test sets are read only then.
    """

    unit = "sentences"
    packages = ("transformers", "tokenizers")  # whose versions decide the numbers, too
    checks_labels = True  # when the files are read, each with its line

    def __init__(self, glue_dir: str | None, device: torch.device, precision: Precision, predicts: bool = False):
        try:
            import transformers
        except ImportError as error:
            raise ConfigError("text needs the package transformers; pip install '.[glue]'") from error
        transformers.utils.logging.set_verbosity_error()  # what it warns of is checked here, or normal
        transformers.utils.logging.disable_progress_bar()
        self._glue_dir, self._device, self._precision, self._predicts = glue_dir, device, precision, predicts
        self._datasets: dict[str, TextDataset] = {}
        self._loaders: dict[str, Any] = {}

    def prepare(self, built: dict, role: str, needs_teacher: bool) -> tuple[nn.Module | None, nn.Module]:
        """Loads the models and the data, and puts into ``built`` what torchdistill wants to find there."""
        models, stages = built["models"], stages_in(built.get("train") or {})
        unread = set() if self._predicts else only_private(built)
        found = (source_of(entry, f"datasets.{place}").without(unread) for place, entry in built["datasets"].items())
        sources = [source for source in found if source.ids]
        self.task, examples = load_examples(sources[0], self._glue_dir)
        teacher_config, teacher = models.get("teacher_model"), None
        if teacher_config is not None and needs_teacher:
            teacher = self._teacher(teacher_config, stages)
        place = f"models.{role}"
        self._tokenizer = tokenizer = load_tokenizer(models[role], place)
        self._student = student = load_model(models[role], place, num_labels=self.task.num_labels)
        max_length = sources[0].max_length
        check_tokenizer(tokenizer, student, max_length, place)
        taught = teacher if not isinstance(teacher, NoTeacher) else None
        if taught is not None:
            check_tokenizer(tokenizer, taught, max_length, "models.teacher_model")
            check_same_tokenizer(load_tokenizer(teacher_config, "models.teacher_model"), tokenizer)
        self._taught, self._role = taught, role
        self.label_ids = agree_on_labels(self.task.labels, taught, student, role)
        built["datasets"] = self._datasets
        for number, source in enumerate(sources):
            task, found = (self.task, examples) if number == 0 else load_examples(source, self._glue_dir)
            for split, dataset_id in source.ids.items():
                self._datasets[dataset_id] = TextDataset(found[split], tokenizer, source.max_length, self.label_ids)
                logger.info("%s: %d examples of %s", dataset_id, len(found[split]), task.folder)
        self._register_collate(tokenizer)
        loader: dict = {}
        for stage in stages:
            loader = stage.get("train_data_loader") or loader  # a stage inherits it
            _fill_in_steps(stage, loader, self._datasets)
            _describe_cache(stage, self.task.name, tokenizer, max_length)
        for remark in dict.fromkeys(remark for stage in stages for remark in remarks(stage.get("criterion"))):
            logger.info("%s", remark)
        return (teacher.to(self._device) if teacher is not None else None), student.to(self._device)

    def _teacher(self, config: dict, stages: list[dict]) -> nn.Module:
        procs = [(stage.get("teacher") or {}).get("forward_proc") for stage in stages]
        if stages and all(proc == RUNS_NO_TEACHER for proc in procs):
            logger.info("the teacher is not loaded: no stage runs it")
            return NoTeacher()
        return load_model(config, "models.teacher_model", taught=self.task.labels)

    def _register_collate(self, tokenizer: Any) -> None:
        from transformers import DataCollatorWithPadding

        # A multiple of 8 for tensor cores, as in torchdistill's script.
        multiple = 8 if self._precision.dtype is not None and self._device.type == "cuda" else None
        register_collate_func(DataCollatorWithPadding(tokenizer, pad_to_multiple_of=multiple), key=COLLATE)

    # -- the parts of a run --------------------------------------------------------------------------------------------

    def send(self, batch: dict) -> tuple[dict, torch.Tensor, None]:
        """(batch, targets, supp_dict) on the device; the batch keeps the labels, and the index if it has one."""
        batch = {name: value.to(self._device, non_blocking=True) for name, value in batch.items()}
        return batch, batch["labels"], None

    def name_of(self, dataset: Any) -> str:
        """What a data set, which may be wrapped, is called in an error."""
        return name_of(dataset, self._datasets)

    def evaluate(self, model: nn.Module, loader) -> Score:
        """The task's metrics of ``model`` over ``loader``, whose data set may be wrapped."""
        dataset = loader.dataset
        while not isinstance(dataset, TextDataset):
            dataset = dataset.org_dataset
        logits = predict(model, loader, self._device, self._precision)
        return score(logits, dataset.labels, self.label_ids, self.task.metrics)

    validate = evaluate  # the labels were checked when the files were read

    def test(self, model: nn.Module, built: dict) -> Score:
        """The metrics on the test loader's data; for MNLI on both validation sets, the second under its own name."""
        config = built["test"]["test_data_loader"]
        found = self.evaluate(model, self._loader(config)).metrics
        other = config["dataset_id"].replace("_matched", "_mismatched")
        if other != config["dataset_id"] and other in self._datasets:
            second = self.evaluate(model, self._loader({**config, "dataset_id": other})).metrics
            found = {**found, **{f"{name}_mismatched": value for name, value in second.items()}}
        return Score(found)

    def write_predictions(self, model: nn.Module, configs: list[dict], folder: str) -> None:
        """Answers the test sets that the YAML lists under ``private`` and writes the leaderboard's files."""
        for entry in configs:
            loader = self._loader(entry["private_data_loader"])
            task = TASKS.get(entry["private_data_loader"].get("task_name"), self.task)
            found = answers(predict(model, loader, self._device, self._precision), self.label_ids)
            if not is_main_process():
                continue
            path = os.path.join(folder, entry["pred_output"])
            write_text(path, lines(task, loader.dataset.indices, found))
            logger.info("%s: %d predictions for %s", path, len(found), task.folder)

    def _loader(self, config: dict):
        if config["dataset_id"] not in self._loaders:
            self._loaders[config["dataset_id"]] = build_data_loader(self._datasets[config["dataset_id"]], config, False)
        return self._loaders[config["dataset_id"]]

    def best_checkpoint(self, dst_ckpt: str, folder: RunFolder | None) -> BestHFFolder:
        return BestHFFolder(dst_ckpt, folder, self._student, self._tokenizer)

    def is_checkpoint(self, path: str) -> bool:
        return os.path.isfile(os.path.join(os.path.expanduser(path), "model.safetensors"))

    def load(self, student: nn.Module, path: str, place: str) -> None:
        load_folder(student, path, place)
        self.label_ids = agree_on_labels(self.task.labels, self._taught, student, self._role)  # the folder's order


class NoTeacher(nn.Module):
    """Stands where torchdistill wants a teacher that no stage runs."""

    def forward(self, *args, **kwargs):
        raise RuntimeError("the teacher was not loaded, because every stage's forward_proc is 'skip_forward'")


def _fill_in_steps(stage: dict, loader: dict, datasets: dict) -> None:
    """``num_training_steps`` of a scheduler, as torchdistill's script does it."""
    kwargs = (stage.get("scheduler") or {}).get("kwargs") or {}
    if "num_training_steps" in kwargs and kwargs["num_training_steps"] is None and "batch_size" in loader["kwargs"]:
        per_epoch = steps_per_epoch(loader, datasets[loader["dataset_id"]])
        accumulated = (stage.get("optimizer") or {}).get("grad_accum_step") or 1
        kwargs["num_training_steps"] = max(1, per_epoch * stage["num_epochs"] // accumulated)


def _describe_cache(stage: dict, task: str, tokenizer: Any, max_length: int) -> None:
    """What the teacher's logits depend on beside its weights and the token ids, in words for a refusal."""
    wrapper = (stage.get("train_data_loader") or {}).get("dataset_wrapper") or {}
    if wrapper.get("key") == "IndexedDatasetWrapper" and "cache_dir" in (wrapper.get("kwargs") or {}):
        described = {"task": task, "tokenizer": f"{type(tokenizer).__name__}, {len(tokenizer)} tokens",
                     "max_length": max_length}  # fmt: skip
        wrapper["kwargs"]["cache_extra"] = {**described, **(wrapper["kwargs"].get("cache_extra") or {})}
