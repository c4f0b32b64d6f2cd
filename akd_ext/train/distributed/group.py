"""Several processes, started by torchrun, by ``accelerate launch`` or by srun: who they are, how they meet, how they end.

torchdistill's own way knows CUDA only and pads every epoch; here its boxes think that they are alone, their samplers give
each process its share (`sampler`), and what the optimizer changes is wrapped in DistributedDataParallel.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torchdistill.common.module_util import check_if_wrapped

from akd_ext.train.boxes import student_of
from akd_ext.train.system.errors import ConfigError, RunError, one_sentence

logger = logging.getLogger(__name__)
FAR = 1_000_003  # between seeds made from one: runs have neighbouring seeds, and must not share random numbers


def is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def world_size() -> int:
    return distributed.get_world_size() if is_distributed() else 1


def rank() -> int:
    return distributed.get_rank() if is_distributed() else 0


@contextlib.contextmanager
def process_group(device: torch.device, size: int, url: str) -> Iterator[torch.device]:
    """Joins the other processes, if there are any, until the block ends; gives the device of this one.

    Args:
        device: ``--device``; of several CUDA devices each process takes the one of its local rank.
        size, url: ``--world_size`` and ``--dist_url``, for srun; the others say it in the environment.

    Raises:
        ConfigError: the processes do not meet.
        RunError: another one has gone.
    """
    mine = _place(size)
    if mine is None:
        yield device
        return
    number, size, local = mine
    if device.type == "cuda":
        if local >= torch.cuda.device_count():
            raise ConfigError(f"process {local} of this machine has no GPU: there are {torch.cuda.device_count()}")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        distributed.init_process_group(
            backend, init_method=url, rank=number, world_size=size, timeout=timedelta(minutes=30)
        )
        distributed.barrier()
    except Exception as error:
        raise ConfigError(f"--dist_url {url}: the {size} processes did not meet: {one_sentence(error)}") from error
    if number == 0:
        logger.info("%d processes over %s", size, backend)
    try:
        yield device
        distributed.barrier()  # the first to leave may be the one through whom the others meet
    except RuntimeError as error:
        if "gloo" in str(error) or isinstance(error, distributed.DistError):
            raise RunError("another process has gone, so this one stops, too; the other one says why") from error
        raise
    distributed.destroy_process_group()  # after an error the end of the process does it, without waiting for anybody


def _place(size: int) -> tuple[int, int, int] | None:
    """(rank, number of processes, rank on this machine); None for a process that is alone."""
    found = os.environ
    if "RANK" in found and "WORLD_SIZE" in found:
        return int(found["RANK"]), int(found["WORLD_SIZE"]), int(found.get("LOCAL_RANK", 0))
    if "SLURM_PROCID" in found and size > 1:
        return int(found["SLURM_PROCID"]), size, int(found.get("SLURM_LOCALID", 0))
    return None


def same_seed(seed: int | None) -> int | None:
    """``seed``, or one that all processes share: a random split must be the same in all of them."""
    if seed is None and is_distributed():
        drawn = [random.SystemRandom().randrange(2**31)]
        distributed.broadcast_object_list(drawn)
        return drawn[0]
    return seed


def own_seed(seed: int) -> int:
    """For augmentation and dropout, which must differ between processes; within NumPy's range."""
    return (seed + FAR * rank()) % 2**32


def all_gather_object(value: Any) -> list[Any]:
    """``value`` of each process, by rank. All must call it."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def barrier() -> None:
    """For the others: a file that the first process has written is whole after this."""
    if is_distributed():
        distributed.barrier()


def wrap_ddp(box: Any, wrappers: dict[str, dict]) -> None:
    """DistributedDataParallel around what the optimizer changes. It starts from the first process's weights.

    Args:
        wrappers: {role: arguments of DistributedDataParallel} of this stage.
    """
    if not is_distributed():
        return
    changed = {id(p) for group in box.optimizer.param_groups for p in group["params"] if p.requires_grad}
    device = torch.device(box.device)
    for name in ("student_model", "model", "teacher_model"):
        model = getattr(box, name, None)
        if model is None or check_if_wrapped(model) or not any(id(p) in changed for p in model.parameters()):
            continue
        role = name.removesuffix("_model")
        unused = bool(getattr(box, f"{role}_any_frozen", False))  # as torchdistill does it
        devices = [device.index] if device.type == "cuda" else None
        kwargs = {"device_ids": devices, "find_unused_parameters": unused, **wrappers.get(role, {})}
        setattr(box, name, DistributedDataParallel(model, **kwargs))


def broadcast_buffers(box: Any) -> None:
    """Everybody gets the first process's BatchNorm statistics, which are the ones that are saved."""
    if is_distributed():
        for buffer in student_of(box).buffers():
            distributed.broadcast(buffer, 0)


def gather_in_order(loader: Any, mine: torch.Tensor) -> torch.Tensor:
    """Rows for all samples of ``loader`` in its order, from the rows of this process's share of it."""
    from .sampler import sampler_of

    share = sampler_of(loader)
    if share is None:
        return mine
    parts = all_gather_object(mine)
    whole = mine.new_empty((share.size, *mine.shape[1:]))
    for number, part in enumerate(parts):
        whole[number :: len(parts)] = part
    return whole


def unwrap_ddp(model: nn.Module) -> nn.Module:
    """The model without DistributedDataParallel, whose forward pass is a conversation of all processes."""
    return model.module if isinstance(model, DistributedDataParallel) else model
