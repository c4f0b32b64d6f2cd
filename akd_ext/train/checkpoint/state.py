"""All that a run's next step depends on, out of a torchdistill box and back into a fresh one."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from typing import Any

import numpy
import torch
from torch import nn
from torchdistill.common.module_util import get_full_state_dict, load_full_state_dict

from akd_ext.op.private_torch import kept_iterator
from akd_ext.train.boxes import current_stage, student_of, unwrapped
from akd_ext.train.system.errors import ConfigError, one_sentence

logger = logging.getLogger(__name__)


class Unsavable(Exception):
    """Something holds an object that a file could only bring back by executing code."""


class BoxState:
    """Weights, pending gradients, optimizer, scheduler and progress of a box. The tensors are its own, not copies.

    Args:
        box: a torchdistill box.
        stage_configs: the YAML's stages in order; they say whether a teacher has been trained.
    """

    def __init__(self, box: Any, stage_configs: list[dict]):
        self.box, self._stage_configs = box, stage_configs

    def state_dict(self) -> dict[str, Any]:
        """Raises Unsavable if the optimizer or the scheduler holds more than tensors, numbers and text."""
        box = self.box
        return {
            "stage": current_stage(box),
            "current_epoch": getattr(box, "current_epoch", None),
            "grad_count": box.stage_grad_count,
            "modules": {name: get_full_state_dict(module) for name, module in self._modules()},
            "criterion": dict(_tensors(box.criterion, "criterion", set())),
            "gradients": [parameter.grad for parameter in _optimized(box)],
            "optimizer": plain(box.optimizer.state_dict(), "the optimizer"),
            "scheduler": plain(box.lr_scheduler and box.lr_scheduler.state_dict(), "the learning rate scheduler"),
            "iterators": [lives_on(loader) for loader in _loaders(box)],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Brings the box to the stage and puts back what `state_dict` took; a second time does no harm.

        Raises:
            ConfigError: it was taken from another model, optimizer or scheduler.
        """
        box = self.box
        self._enter_stage(state)
        part = "the models"
        try:
            for name, module in self._modules():
                part = f"the {name}"
                load_full_state_dict(module, state["modules"][name])
            part = "the criterion"
            _fill(dict(_tensors(box.criterion, "criterion", set())), state["criterion"])
            part = "the optimizer"
            box.optimizer.load_state_dict(state["optimizer"])
            for parameter, gradient in zip(_optimized(box), state["gradients"], strict=True):
                parameter.grad = None if gradient is None else gradient.to(parameter, copy=True)
            part = "the learning rate scheduler"
            if box.lr_scheduler is not None:
                box.lr_scheduler.load_state_dict(state["scheduler"])
        except Exception as error:
            raise ConfigError(
                f"the state in --output_dir does not fit {part} of this run: {one_sentence(error)}; --overwrite starts over"
            ) from error
        for loader, lived_on in zip(_loaders(box), state["iterators"], strict=True):
            if lived_on and kept_iterator(loader) is None:  # drew its seed long ago, and draws none in later epochs
                iter(loader)

    def _enter_stage(self, state: dict[str, Any]) -> None:
        box = self.box
        if hasattr(box, "stage_number"):
            box.save_stage_ckpt = lambda *args: None  # the weights at this moment are nobody's
            while box.stage_number < state["stage"]:
                box.advance_to_next_stage()
            del box.save_stage_ckpt
            box.current_epoch = state["current_epoch"]
        box.stage_grad_count = state["grad_count"]

    def _modules(self) -> Iterator[tuple[str, nn.Module]]:
        """What may have changed since the run began. A frozen teacher has not: it comes from its own checkpoint."""
        box = self.box
        pairs = [("student", student_of(box), getattr(box, "org_student_model", getattr(box, "org_model", None)))]
        so_far = self._stage_configs[: current_stage(box)]
        if hasattr(box, "teacher_model") and any(_trains_teacher(config) for config in so_far):
            pairs.append(("teacher", box.teacher_model, box.org_teacher_model))
        for name, module, original in pairs:
            yield name, module
            if unwrapped(original) is not unwrapped(module):  # a stage's redesign, or a wrapper with more modules
                yield f"whole {name}", original


class RandomState:
    """The state of every source of random numbers in this process: Python, NumPy, torch, the device, the loaders."""

    def __init__(self, box: Any, device: torch.device):
        self._box, self._device = box, device
        self._backend = None if device.type == "cpu" else getattr(torch, device.type)
        self._index = () if device.type == "mps" else (device,)

    def state_dict(self) -> dict[str, Any]:
        name, keys, *rest = numpy.random.get_state()
        return {
            "python": random.getstate(),
            "numpy": (name, torch.from_numpy(keys.astype(numpy.int64)), *rest),
            "torch": torch.get_rng_state(),
            "device": self._backend and self._backend.get_rng_state(*self._index),
            "generators": [generator.get_state() for generator in _generators(self._box)],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        name, keys, *rest = state["numpy"]
        random.setstate(state["python"])
        numpy.random.set_state((name, keys.numpy().astype(numpy.uint32), *rest))
        torch.set_rng_state(state["torch"])
        if self._backend is not None and state["device"] is not None:
            self._backend.set_rng_state(state["device"], *self._index)
        for generator, saved in zip(_generators(self._box), state["generators"], strict=True):
            generator.set_state(saved)


def lives_on(loader: Any) -> bool:
    """Whether the loader's workers stay for the next epoch, as ``persistent_workers`` has them."""
    return getattr(loader, "persistent_workers", False) and kept_iterator(loader) is not None


def plain(value: Any, place: str) -> Any:
    """``value`` with NumPy's numbers as Python's.

    Raises:
        Unsavable: it holds an object that is neither tensor, number, text nor a collection of such.
    """
    if isinstance(value, numpy.generic):
        return value.item()
    if value is None or isinstance(value, (torch.Tensor, bool, int, float, str)):
        return value
    if isinstance(value, dict):
        made = {plain(key, place): plain(item, f"{place}: {key}") for key, item in value.items()}
        return made if type(value) is dict else type(value)(made)  # MultiStepLR's milestones are a Counter
    if type(value) in (list, tuple):
        return type(value)(plain(item, place) for item in value)
    raise Unsavable(f"{place} holds a {type(value).__name__}")


def _trains_teacher(stage_config: dict) -> bool:
    return (stage_config.get("teacher") or {}).get("requires_grad", True)


def _optimized(box: Any) -> list[nn.Parameter]:
    return [parameter for group in box.optimizer.param_groups for parameter in group["params"]]


def _tensors(item: Any, name: str, seen: set[int]) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor that ``item`` holds, by where it is: torchdistill keeps the terms of a loss in a plain dict."""
    if id(item) in seen:
        return
    seen.add(id(item))
    if isinstance(item, torch.Tensor):
        yield name, item.detach()
    elif isinstance(item, nn.Module):
        yield from _tensors(vars(item), name, seen)
    elif isinstance(item, dict):
        for key, value in item.items():
            yield from _tensors(value, f"{name}.{key}", seen)
    elif isinstance(item, (list, tuple)):
        for index, value in enumerate(item):
            yield from _tensors(value, f"{name}.{index}", seen)


def _fill(tensors: dict[str, torch.Tensor], saved: dict[str, torch.Tensor]) -> None:
    for name, value in saved.items():
        if name in tensors:
            tensors[name].copy_(value)
        else:
            logger.warning(
                "%s was made during training; it starts afresh, so the run may end a little differently", name
            )


def _loaders(box: Any) -> list[Any]:
    return [loader for loader in (box.train_data_loader, box.val_data_loader) if loader is not None]


def _generators(box: Any) -> list[torch.Generator]:
    """The generators of their own that loaders, samplers and data sets may have, each once, always in this order."""
    found: dict[int, torch.Generator] = {}
    for loader in _loaders(box):
        holders = [loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)]
        holders.append(getattr(holders[-1], "sampler", None))
        dataset = getattr(loader, "dataset", None)
        while dataset is not None and len(holders) < 16:
            holders.append(dataset)
            dataset = getattr(dataset, "org_dataset", getattr(dataset, "dataset", None))
        for holder in holders:
            for value in getattr(holder, "__dict__", {}).values():
                if isinstance(value, torch.Generator):
                    found[id(value)] = value
    return list(found.values())
