"""``--fsdp``: the student in pieces over the processes (FSDP2, ``torch.distributed.fsdp.fully_shard``), for text.

Each process keeps a part of the weights, of the gradients and of the optimizer's state, and has a layer's whole weights
only while it works on that layer. The numbers are those of DistributedDataParallel.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard

from .group import world_size


def shard(model: nn.Module, device: torch.device) -> None:
    """Cuts the model up in place: each layer of its encoder, then what is left."""
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh(device.type, (world_size(),))
    for module in reversed(list(model.modules())):
        if isinstance(module, nn.ModuleList):
            for layer in module:
                fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


@contextmanager
def as_plain_class(model: nn.Module) -> Iterator[None]:
    """While torchdistill sets up a stage: it takes whatever is an ``FSDPModule`` for a wrapper with a ``.module``.

    ``fully_shard`` has made ``FSDP<Class>(FSDPModule, <Class>)`` of the model's class; all that makes the model work is
    in the instance.
    """
    sharded = type(model)
    if not isinstance(model, FSDPModule):
        yield
        return
    model.__class__ = sharded.__bases__[1]
    try:
        yield
    finally:
        model.__class__ = sharded
