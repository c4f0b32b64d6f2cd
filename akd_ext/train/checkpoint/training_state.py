"""All that a run's next step depends on, out of a torchdistill box and back into a fresh one."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from typing import Any

import numpy
import torch
from torch import nn
from torchdistill.common.module_util import check_if_wrapped, get_full_state_dict, load_full_state_dict

from akd_ext.train.boxes import student_of
from akd_ext.train.system.errors import ConfigError, one_sentence

logger = logging.getLogger(__name__)


class Unsavable(Exception):
    """Something holds an object that a file could only bring back by executing code."""


def capture(box: Any, stage_configs: list[dict]) -> dict[str, Any]:
    """Weights, pending gradients, optimizer, scheduler and place of ``box``; the tensors are its own, not copies.

    Raises:
        Unsavable: the optimizer or the scheduler holds more than tensors, numbers and text.
    """
    optimizer, scheduler = box.optimizer.state_dict(), box.lr_scheduler and box.lr_scheduler.state_dict()
    return {
        "stage": getattr(box, "stage_number", 1),
        "grad_count": box.stage_grad_count,
        "modules": {name: get_full_state_dict(module) for name, module in _modules(box, stage_configs)},
        "criterion": dict(_tensors(box.criterion, "criterion", set())),
        "gradients": [parameter.grad for parameter in _optimized(box)],
        "optimizer": plain(optimizer, "the optimizer"),
        "scheduler": plain(scheduler, "the learning rate scheduler"),
        "iterators": [lives_on(loader) for loader in _loaders(box)],
    }


def to_stage(box: Any, state: dict[str, Any], epoch: int) -> None:
    """Brings a fresh box to the stage and the epoch of ``state``. What a stage loads and draws on entry is restored later."""
    if hasattr(box, "stage_number"):
        box.save_stage_ckpt = lambda *args: None  # the weights at this moment are nobody's
        while box.stage_number < state["stage"]:
            box.advance_to_next_stage()
        del box.save_stage_ckpt
        box.current_epoch = epoch
    box.stage_grad_count = state["grad_count"]


def restore(box: Any, state: dict[str, Any], stage_configs: list[dict]) -> None:
    """Puts what `capture` took into a box that is in the same stage.

    Raises:
        ConfigError: it was taken from another model, optimizer or scheduler.
    """
    part = "the models"
    try:
        for name, module in _modules(box, stage_configs):
            part = f"the {name}"
            load_full_state_dict(module, state["modules"][name])
        part = "the criterion"
        _fill(dict(_tensors(box.criterion, "criterion", set())), state["criterion"])
        part = "the optimizer"
        box.optimizer.load_state_dict(state["optimizer"])
        for parameter, gradient in zip(_optimized(box), state["gradients"], strict=True):
            parameter.grad = None if gradient is None else gradient.to(parameter)
        part = "the learning rate scheduler"
        if box.lr_scheduler is not None:
            box.lr_scheduler.load_state_dict(state["scheduler"])
    except Exception as error:
        raise ConfigError(
            f"the state in --output_dir does not fit {part} of this run: {one_sentence(error)}; --overwrite starts over"
        ) from error
    for loader, lived_on in zip(_loaders(box), state["iterators"], strict=True):
        if lived_on and loader._iterator is None:  # drew its seed long ago, and draws none in later epochs
            loader._iterator = loader._get_iterator()


def lives_on(loader: Any) -> bool:
    """Whether the loader's workers stay for the next epoch, as ``persistent_workers`` has them."""
    return getattr(loader, "persistent_workers", False) and getattr(loader, "_iterator", None) is not None


def random_state(box: Any, device: torch.device) -> dict[str, Any]:
    """The state of every source of random numbers in this process: Python, NumPy, torch, the device, the loaders."""
    name, keys, *rest = numpy.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(numpy.int64)), *rest),
        "torch": torch.get_rng_state(),
        "device": getattr(torch, device.type).get_rng_state(*_index(device)) if device.type != "cpu" else None,
        "generators": [generator.get_state() for generator in _generators(box)],
    }


def restore_random(box: Any, device: torch.device, state: dict[str, Any]) -> None:
    """Puts back what `random_state` took."""
    name, keys, *rest = state["numpy"]
    random.setstate(state["python"])
    numpy.random.set_state((name, keys.numpy().astype(numpy.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type != "cpu" and state["device"] is not None:
        getattr(torch, device.type).set_rng_state(state["device"], *_index(device))
    for generator, saved in zip(_generators(box), state["generators"], strict=True):
        generator.set_state(saved)


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


def _modules(box: Any, stage_configs: list[dict]) -> Iterator[tuple[str, nn.Module]]:
    """What may have changed since the run began. A frozen teacher has not: it comes from its own checkpoint."""
    pairs = [("student", student_of(box), getattr(box, "org_student_model", getattr(box, "org_model", None)))]
    so_far = stage_configs[: getattr(box, "stage_number", 1)]
    if hasattr(box, "teacher_model") and any(_trains_teacher(config) for config in so_far):
        pairs.append(("teacher", box.teacher_model, box.org_teacher_model))
    for name, module, original in pairs:
        yield name, module
        if _unwrapped(original) is not _unwrapped(module):  # a stage's redesign, or a wrapper with more modules
            yield f"whole {name}", original


def _trains_teacher(stage_config: dict) -> bool:
    return (stage_config.get("teacher") or {}).get("requires_grad", True)


def _unwrapped(module: nn.Module) -> nn.Module:
    return getattr(module, "module", module) if check_if_wrapped(module) else module


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


def _index(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)
