"""Nothing found late: every stage is built and given a first batch before the first epoch.

torchdistill sets up a stage when it enters it, so a mistake in stage 2 would be found when stage 1 has been trained.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import traceback
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torchdistill.common.module_util import get_module, load_full_state_dict
from torchdistill.core.distillation import get_distillation_box
from torchdistill.core.training import get_training_box
from torchdistill.datasets.util import build_data_loader

from akd_ext.torchdistill.pre_epoch import annealing_losses, prepare_loss, trained_parameters
from akd_ext.torchdistill.teacher_logits import check_cached_forward, forward_as_cached
from akd_ext.train.system.errors import ConfigError, nearest, one_sentence
from akd_ext.train.system.random_states import random_states_put_back
from akd_ext.train.tasks.samples import check_batch, check_labels_alone, check_sample, name_of

from .boxes import freeze_teacher_mode, original_student, stages_in
from .build import Job
from .label_check import check_labels, ignored_labels, reads_labels

logger = logging.getLogger(__name__)
_SAMPLES = 8  # enough for BatchNorm and for losses that compare samples
# Which of torchdistill's functions failed tells which key is meant.
_KEYS = {
    "setup_data_loaders": "train_data_loader",
    "setup_loss": "criterion",
    "get_optimizer": "optimizer",
    "get_scheduler": "scheduler",
}
_NOTHING_TO_TRAIN = (
    "no parameter requires a gradient in this stage, so there is nothing to train; accepted: without requires_grad: False, "
    "and with frozen_modules that leave some"
)


def dry_build_stages(job: Job) -> None:
    """Builds each stage on copies of the models and tries a few samples: their labels, and the loss of those to train on.

    Nothing of the run is touched.

    The random states are put back, so a run is the same to the bit with and without it.

    Raises:
        ConfigError: something does not work; with the path of its key.
    """
    built, teacher, student = job.built, job.teacher, job.student
    try:
        models = [copy.deepcopy(model) for model in (teacher, student) if model is not None]
    except Exception as error:  # torch.nn.utils.weight_norm, a lock, no room: training itself needs no copy
        logger.info("the stages are not tried beforehand, as a model cannot be copied: %s", one_sentence(error))
        return
    datasets = {name: _shallow(dataset) for name, dataset in built["datasets"].items()}
    with random_states_put_back(), _quiet():
        whole = {name: value.clone() for name, value in student.state_dict().items()}
        train = _copied(built["train"])
        names = [f"train.{key}" for key in sorted(train) if key.startswith("stage")] or ["train"]
        names.sort(key=len)
        written = _forget_files(train, job.dst_ckpt)
        make = get_training_box if teacher is None else get_distillation_box
        box = classes = None
        for path, stage in zip(names, stages_in(train), strict=True):
            _check_hooks(path, stage, models)
            with _key_named(path):
                if box is None:
                    box = make(*models, datasets, train, job.settings.device, None, False, 1)
                else:
                    box.advance_to_next_stage()
            classes = _try_stage(box, path, stage, job, datasets)
            if path in written:
                with _key_named(f"{path}.{'model' if teacher is None else 'student'}.src_ckpt", exact=True):
                    load_full_state_dict(box.student_model if teacher is not None else box.model, dict(whole))
        with _key_named("test.test_data_loader", exact=True):
            loader = _copied(built["test"]["test_data_loader"])
            # Nothing is read of it, see Task.test, but labels that it lists and that are no class.
            test_loader = build_data_loader(datasets[loader["dataset_id"]], loader, False)
            if classes is not None:
                check_labels(test_loader, None, classes, name_of(test_loader.dataset, datasets))


def _try_stage(box: Any, path: str, stage: dict, job: Job, datasets: dict) -> int | None:
    """Raises ConfigError; gives the number of the student's classes, where it was counted."""
    steps = len(box.train_data_loader) * stage["num_epochs"]
    if box.grad_accum_step > steps:
        raise ConfigError(
            f"{path}.optimizer.grad_accum_step: {box.grad_accum_step} is more than the {steps} steps of the stage: the "
            "optimizer would never step"
        )
    classes = None
    for name in ("val_data_loader", "train_data_loader"):
        loader = getattr(box, name)
        data = name_of(loader.dataset, datasets)
        with _key_named(f"{path}.{name}", exact=True):
            batch = _first_batch(loader, data, job.task, parts=None if name == "val_data_loader" else 2)
            if batch is not None and name == "val_data_loader" and not job.task.checks_labels:
                check_labels_alone(batch[1], data)
                classes = job.task.count_classes(original_student(box), batch)
                check_labels(loader, batch, classes, data)
    if batch is None:
        return classes
    _prepare(box, path, stage)
    sent = job.task.send(batch)
    if classes is not None:
        # The student is in eval mode: BatchNorm over processes would wait for those that have no such label.
        with _key_named(f"{path}.train_data_loader", exact=True), job.settings.precision.autocast():
            check_labels(
                loader, batch, classes, data, ignored=ignored_labels(box.criterion),
                are_read=lambda: reads_labels(box, *sent, classes),
            )  # fmt: skip
    for model in (getattr(box, "student_model", None), getattr(box, "model", None)):
        if model is not None:
            model.train()
    _try_criterion(box, path, sent, data, job)
    return classes


def _try_criterion(box: Any, path: str, sent: tuple, data: str, job: Job) -> None:
    with _key_named(f"{path}.criterion", exact=True), job.settings.precision.autocast():
        loss = _loss(box, sent, f"{path}.train_data_loader: {data}")
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            shape = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, torch.Tensor) else repr(loss)
            raise ConfigError(f"{path}.criterion: it gives {shape}, and training needs one number; see its reduction")
        if not loss.requires_grad:
            raise ConfigError(f"{path}.criterion: its value depends on no parameter that is trained in this stage")


def _prepare(box: Any, path: str, stage: dict) -> None:
    """What the pre-epoch process does, without its pass of the teacher over all samples."""
    freeze_teacher_mode(box)  # as when it is trained: its BatchNorm takes a batch of one
    if stage.get("pre_epoch_process") is not None:  # which sets the temperature
        for _, loss in annealing_losses(box.criterion):
            prepare_loss(box, loss)
            loss.set_temperature(loss.tau_max)
    if (stage.get("teacher") or {}).get("forward_proc") == "cached_forward":
        with _key_named(f"{path}.teacher.forward_proc", exact=True):
            if stage.get("pre_epoch_process") in (None, "default_pre_epoch_process_with_teacher"):
                raise ConfigError("nothing would compute the teacher's logits; add pre_epoch_process: "
                                  "'annealing_pre_epoch_process' to the stage")  # fmt: skip
            check_cached_forward(box, bool(trained_parameters(box.teacher_model, box.optimizer)))
        box.teacher_forward_proc = forward_as_cached


def _loss(box: Any, sent: tuple, data: str) -> Any:
    """The loss of a batch on the device; labels of a kind that a loss does not take are said to be it."""
    try:
        return box.forward_process(*sent)
    except Exception as error:
        labels = sent[1]
        if not isinstance(labels, torch.Tensor) or not labels.is_floating_point() or labels.dim() != 1:
            raise
        if not any(word in str(error) for word in ("Long", "Double", "Float", "dtype")):
            raise
        raise _Placed(
            f"{data}: a label is {labels[0].item()!r}, of {labels.dtype}; accepted: an int ({type(error).__name__}: "
            f"{one_sentence(error)})"
        ) from error


def _first_batch(loader: DataLoader, data: str, task: Any, *, parts: int | None) -> Any:
    """A few samples of the loader's first batch, fetched here: no worker is started. None of a stream."""
    dataset = loader.dataset
    if isinstance(dataset, IterableDataset):
        return None
    indices = next(iter(loader.batch_sampler if loader.batch_sampler is not None else loader.sampler), None)
    if indices is None:
        raise ConfigError("it gives no batch")
    if loader.batch_sampler is None:
        return loader.collate_fn(dataset[indices])
    indices = list(indices)[:_SAMPLES]
    if task.checks_labels:
        return _fetched(loader, indices)
    try:
        batch = _fetched(loader, indices)
        check_batch(batch, data)
    except Exception as error:
        check_sample(loader, indices[0], data, error, parts=parts)
        raise
    return batch


def _fetched(loader: DataLoader, indices: list) -> Any:
    fetch = getattr(loader.dataset, "__getitems__", None)
    return loader.collate_fn(fetch(indices) if fetch else [loader.dataset[index] for index in indices])


def _check_hooks(path: str, stage: dict, models: list[nn.Module]) -> None:
    """The modules that a stage listens to."""
    for role, model in zip(("teacher", "student") if len(models) == 2 else ("model",), models, strict=True):
        section = stage.get(role) or {}
        hooks = section.get("forward_hook") or {}
        if section.get("auxiliary_model_wrapper"):
            continue  # its modules are not those of the model
        for end in ("input", "output"):
            for module in hooks.get(end) or []:
                if not module.startswith("+") and not _has_module(model, module):
                    near = nearest(module, [name for name, _ in model.named_modules() if name])
                    raise ConfigError(f"{path}.{role}.forward_hook.{end}: a {type(model).__name__} has no module "
                                      f"'{module}'; the nearest valid choice is '{near}'")  # fmt: skip


def _has_module(model: nn.Module, path: str) -> bool:
    try:
        return get_module(model, path) is not None
    except IndexError:  # a number beyond a Sequential's end
        return False


def _forget_files(train: dict, dst_ckpt: str | None) -> set[str]:
    """Takes out of a copy what would write a file, or read one of this run; gives the stages that start from it."""
    made, found = {dst_ckpt}, set()
    for role in ("teacher", "student", "model"):
        if "stage1" in train and isinstance(train.get(role), dict):
            made.add(train[role].pop("dst_ckpt", None))
    for name in train:
        stage = train[name] if name.startswith("stage") else {}
        for role in ("teacher", "student", "model"):
            section = stage.get(role)
            if isinstance(section, dict) and section.get("src_ckpt") in made:
                if section.pop("src_ckpt") == dst_ckpt and role != "teacher" and not section.get("sequential"):
                    found.add(f"train.{name}")
    return found - {"train.stage1"}


def _shallow(dataset: Any) -> Any:
    """A copy that shares the samples.

    A data set that opens its file at its first sample, as is usual for HDF5 and LMDB, must not find it open in the
    workers: they would share this process's handle.
    """
    try:
        view = copy.copy(dataset)
    except Exception:
        return dataset
    for name, value in list(getattr(view, "__dict__", {}).items()):
        if isinstance(value, Dataset):  # as in a Subset
            view.__dict__[name] = _shallow(value)
        elif isinstance(value, list) and value and all(isinstance(item, Dataset) for item in value):
            view.__dict__[name] = [_shallow(item) for item in value]
    return view


def _copied(value: Any) -> Any:
    """A copy of a section; modules and generators in it, which a first batch would change, are copied as well."""
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_copied(inner) for inner in value]
    if isinstance(value, torch.Generator):
        return torch.Generator(value.device).set_state(value.get_state())
    return copy.deepcopy(value) if isinstance(value, nn.Module) else value


class _Placed(ConfigError):
    """Begins with the path of its key."""


@contextlib.contextmanager
def _key_named(path: str, *, exact: bool = False) -> Iterator[None]:
    """Puts the path of a key before an error."""
    try:
        yield
    except Exception as error:
        if isinstance(error, _Placed) or (isinstance(error, ConfigError) and str(error).startswith(path)):
            raise
        frames = list(traceback.walk_tb(error.__traceback__))
        if not exact:
            path = next((f"{path}.{_KEYS[f.f_code.co_name]}" for f, _ in frames if f.f_code.co_name in _KEYS), path)
            path = next(
                (f"{path}.{_role(frames)}.src_ckpt" for f, _ in frames if f.f_code.co_name == "load_ckpt"), path
            )
        term = next((f.f_locals["loss_name"] for f, _ in frames if "loss_name" in f.f_locals), None)
        path += f".kwargs.sub_terms.{term}" if term is not None and path.endswith(".criterion") else ""
        kind = "" if isinstance(error, ConfigError) else f"it does not work: {type(error).__name__}: "
        said = one_sentence(error)
        if "empty parameter list" in said:
            kind, said = "", _NOTHING_TO_TRAIN
        raise _Placed(f"{path}: {kind}{said}") from error


def _role(frames: list) -> str:
    """Whose weights torchdistill was loading: the teacher's come first."""
    both = [frame.f_locals for frame, _ in frames if frame.f_code.co_name == "setup_teacher_student_models"]
    if not both:
        return "model"
    return "student" if "src_student_ckpt_file_path" in both[0] else "teacher"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # the stages will say it again
    try:
        yield
    finally:
        logging.disable(before)
