"""Each process's share of the samples, and of the loss.

Together the processes do what one would do with all the samples: step k is one batch of ``processes * batch_size``
samples, whose gradient is theirs, also where the last batch is short or cannot be divided.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import RandomSampler, Sampler, SequentialSampler

from akd_ext.train.boxes import stages_in
from akd_ext.train.system.errors import ConfigError

from .group import FAR, is_distributed, rank, world_size


class UnpaddedDistributedSampler(Sampler):
    """What this process gets of another sampler's order: of every W samples one, W being the number of processes.

    Nobody's share is padded. Where fewer than W samples are left for the last batch, the processes without one get the
    first sample again, because all must take part in every step; `batch_sizes` then says 0, so that it counts nowhere.

    Args:
        dataset: the data set.
        sampler, kwargs: the YAML's. A ``batch_size`` among its arguments means the batches of all processes together.
        batch_size, drop_last: the loader's. What is dropped is an incomplete batch of all processes together.
        seed: the same in all processes; with the epoch it fixes the order.
    """

    def __init__(self, dataset: Any, *, sampler: Any, kwargs: dict, batch_size: int, drop_last: bool, seed: int):
        self._rank, self._world, self._seed, self.epoch = rank(), world_size(), seed, 0
        self._whole = batch_size * self._world
        self._sampler = sampler(
            dataset, **{**kwargs, **({"batch_size": self._whole} if "batch_size" in kwargs else {})}
        )
        self.size = len(self._sampler)
        if drop_last:
            self.size -= self.size % self._whole
        self._steps = -(-self.size // self._whole)

    def __len__(self) -> int:
        left = self.size - (self._steps - 1) * self._whole
        return self._mine(self.size) + (self.size > 0 and left <= self._rank)

    def __iter__(self):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self._seed + FAR * self.epoch)  # of the CPU only
            order = list(self._sampler)[: self.size]
        mine = order[self._rank :: self._world]
        return iter(mine + order[:1] * (len(self) - len(mine)))

    def _mine(self, samples: int) -> int:
        return max(0, -(-(samples - self._rank) // self._world))

    def batch_sizes(self, step: int) -> tuple[int, int]:
        """How many samples of step ``step`` (from 0) count: in this process, and in all of them."""
        whole = min(self._whole, self.size - step * self._whole)
        return self._mine(whole), whole


def sampler_of(loader: Any) -> UnpaddedDistributedSampler | None:
    sampler = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
    return sampler if isinstance(sampler, UnpaddedDistributedSampler) else None


def batch_sizes(loader: Any, step: int, here: int) -> tuple[int, int]:
    """How many samples count in step ``step`` of an epoch, here and in all processes; ``here`` are in the batch."""
    share = sampler_of(loader)
    return (here, here) if share is None else share.batch_sizes(step)


def steps_per_epoch(loader: dict, dataset: Any) -> int:
    """How many steps an epoch has with a YAML's data loader, before there is one."""
    size, batch = len(dataset), loader["kwargs"]["batch_size"] * world_size()
    return size // batch if loader["kwargs"].get("drop_last") else math.ceil(size / batch)


def set_epoch(loader: Any, epoch: int) -> None:
    share = sampler_of(loader)
    if share is not None:
        share.epoch = epoch


def distribute_loaders(built: dict, seed: int) -> dict[int, dict[str, dict]]:
    """Puts a `UnpaddedDistributedSampler` around the sampler of every loader of a built YAML, and takes out the wrappers.

    Returns:
        ``{stage: {role: arguments for DistributedDataParallel}}`` from the YAML's ``wrapper``.

    Raises:
        ConfigError: the YAML has something that one process alone can do.
    """
    wrappers: dict[int, dict[str, dict]] = {}
    if not is_distributed():
        return wrappers
    for number, stage in enumerate(stages_in(built.get("train") or {}), start=1):
        for role in ("student", "teacher", "model"):
            section = stage.get(role) or {}
            if section.get("auxiliary_model_wrapper"):
                raise ConfigError(f"stage {number}, {role}.auxiliary_model_wrapper: it needs one process; there are "
                                  f"{world_size()}")  # fmt: skip
            wrapper = section.pop("wrapper", None)
            if isinstance(wrapper, dict) and wrapper.get("key") == "DistributedDataParallel":
                wrappers.setdefault(number, {})[role] = wrapper.get("kwargs") or {}
        _share(stage.get("train_data_loader"), RandomSampler, seed)
        _share(stage.get("val_data_loader"), SequentialSampler, seed)
    _share((built.get("test") or {}).get("test_data_loader"), SequentialSampler, seed)
    for entry in built.get("private") or []:
        _share(entry.get("private_data_loader"), SequentialSampler, seed)
    return wrappers


def _share(loader: dict | None, default: Any, seed: int) -> None:
    if not loader:
        return
    grouped = loader.get("batch_sampler")
    if grouped and grouped["key"] != "BatchSampler":
        raise ConfigError(f"batch_sampler '{grouped['key']}': it needs one process; there are {world_size()}")
    kwargs, sampler = (grouped or loader)["kwargs"], loader.get("sampler") or {}
    made = sampler.get("class_or_func") or default
    if isinstance(made, partial) and made.func is UnpaddedDistributedSampler:  # an alias in the YAML: done already
        return
    loader["sampler"] = {
        "class_or_func": partial(
            UnpaddedDistributedSampler,
            sampler=made,
            kwargs=sampler.get("kwargs") or {},
            batch_size=kwargs.get("batch_size") or 1,
            drop_last=bool(kwargs.get("drop_last")),
            seed=seed,
        ),
        "kwargs": {},
    }


class GlobalMeanLoss:
    """Makes the mean of all processes' gradients, which DistributedDataParallel takes, that of one process with all samples.

    A term that averages over its n samples of N is weighed by W n / N. A term that sums (``reduction='sum'``, its own or
    of a part of it) is weighed by W: as a hook on it, because a criterion may have both kinds.
    """

    def __init__(self, criterion: nn.Module):
        self._mine = self._whole = 1
        self._hooks = []
        for term, _ in getattr(criterion, "term_dict", {}).values() if is_distributed() else ():
            if isinstance(term, nn.Module) and any(getattr(m, "reduction", None) == "sum" for m in term.modules()):
                self._hooks.append(term.register_forward_hook(self._sum_as_mean))

    def _sum_as_mean(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output * (self._whole / max(self._mine, 1))

    def step(self, mine: int, whole: int) -> None:
        """Before the forward pass: how many samples count, here and in all processes."""
        self._mine, self._whole = mine, whole

    def weigh(self, loss: Tensor) -> Tensor:
        weight = world_size() * self._mine / self._whole
        return loss if weight == 1 else loss * weight

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()
