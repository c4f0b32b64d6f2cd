"""Heads that are cut by rows over processes: FSDP2, tensor parallel (``DTensor`` with ``Shard(0)``).

Gram matrices and moments add up over the rows: processes exchange ``H * (H + Ht)`` numbers, no logits and no gathered
head, and the gradient of a process's own rows comes out where they lie. Each process has tokens of its own (data
parallel, FSDP) or all have the same ones (tensor parallel): the head's gradient is the mean over the processes, as FSDP
and DistributedDataParallel make it, which for equal tokens is the gradient itself.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from .heads import Heads


def local_heads(heads: Heads) -> Heads:
    """The rows of this process, and how to sum over the others."""
    from torch.distributed.tensor import DTensor

    if not isinstance(heads.student_weight, DTensor):
        if isinstance(heads.teacher_weight, DTensor):
            raise TypeError("teacher_weight is a DTensor beside a plain student_weight; accepted: both cut, or neither")
        return heads  # some other subclass, which knows what matrix products are
    if heads.student_ids is not None:
        raise ValueError("student_ids are given for heads that are DTensors; accepted: heads cut by rows without a map")
    mesh = heads.student_weight.device_mesh
    if mesh.ndim != 1:
        raise ValueError(f"student_weight is on a mesh of {mesh.ndim} dimensions; accepted: one dimension")
    parts = {}
    for name in ("student_weight", "teacher_weight", "student_bias", "teacher_bias", "class_weight"):
        tensor = getattr(heads, name)
        if tensor is not None:
            parts[name] = _part(name, tensor, mesh)
    lengths = {name: len(part) for name, part in parts.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"this process has unequal parts of the heads: {lengths}; accepted: heads cut alike")
    group = mesh.get_group()
    shared = heads.shared
    return dataclasses.replace(
        heads, **parts, shared=shared, total_classes=heads.student_weight.shape[0],
        reduce=lambda x: total(x, group), average=lambda x: mean(x, group),
    )  # fmt: skip


def _part(name: str, tensor: Tensor, mesh: Any) -> Tensor:
    from torch.distributed.tensor import DTensor, Shard

    if not isinstance(tensor, DTensor):
        if name.startswith("student"):
            raise TypeError(f"{name} is a plain tensor beside a head that is a DTensor; accepted: a DTensor, Shard(0)")
        size = -(-tensor.shape[0] // mesh.size())  # as Shard(0) cuts
        return tensor[mesh.get_local_rank() * size :][:size]
    if tensor.device_mesh != mesh:
        raise ValueError(f"{name} is on {tensor.device_mesh}; accepted: the mesh of student_weight, {mesh}")
    if tuple(tensor.placements) != (Shard(0),):
        raise ValueError(f"{name} is placed {tuple(tensor.placements)}; accepted: (Shard(0),), cut by rows")
    return tensor.to_local()


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a DTensor, for a loss that needs every row; its gradient is the mean over the processes, cut again."""
    from torch.distributed.tensor import DTensor, Partial

    if not isinstance(tensor, DTensor):
        return tensor
    return tensor.full_tensor(grad_placements=[Partial("avg")] * tensor.device_mesh.ndim)


def total(tensor: Tensor, group: Any) -> Tensor:
    """The sum over the processes, in every one of them."""
    from torch import distributed

    tensor = tensor.contiguous().clone()
    distributed.all_reduce(tensor, group=group)
    return tensor


def mean(tensor: Tensor, group: Any) -> Tensor:
    from torch import distributed

    return total(tensor, group).div_(distributed.get_world_size(group))
