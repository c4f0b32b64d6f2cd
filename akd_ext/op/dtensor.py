"""The loss of logits that are spread over processes (``torch.distributed.tensor.DTensor``).

Squared errors add up over shards, of rows as well as of classes: every process runs the op on the part it has, and one
number is exchanged. Nothing here is imported by, or costs, a program without DTensors.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from torch import Tensor

from akd_ext import reference


def among(*tensors: Tensor) -> bool:
    """Whether one of the tensors is a DTensor."""
    module = sys.modules.get("torch.distributed.tensor")  # not imported: there is none
    return module is not None and any(isinstance(tensor, module.DTensor) for tensor in tensors)


def check_logits(student: Tensor, teacher: Tensor, mask: Tensor | None) -> None:
    """Both logits, and the mask if there is one, must be DTensors on one mesh."""
    from torch.distributed.tensor import DTensor

    for name, tensor in (("student", student), ("teacher", teacher), ("mask", mask)):
        if tensor is not None and not isinstance(tensor, DTensor):
            raise TypeError(
                f"{name} is a plain {type(tensor).__name__} beside a DTensor; accepted: DTensors throughout "
                "(DTensor.from_local or distribute_tensor make one), or plain tensors throughout (.to_local())"
            )
    for name, tensor in (("teacher", teacher), ("mask", mask)):
        if tensor is not None and tensor.device_mesh != student.device_mesh:
            raise ValueError(f"{name} is on {tensor.device_mesh}; accepted: the student's mesh {student.device_mesh}")


def annealed_mse(
    student: Tensor, teacher: Tensor, phi: float | Tensor, reduction: str, mask: Tensor | None, local_loss: Callable
) -> Tensor:
    """A 0-d DTensor, the same number in every process; ``"none"``: a DTensor placed as the student is.

    Args:
        student, teacher, mask: DTensors on one mesh. What is ``Partial`` is summed first; teacher and mask follow the
            student's placement, which moves data only where theirs is another.
        local_loss: :func:`akd_ext.annealed_mse_loss`, for the plain tensors of this process.
    """
    from torch.distributed.tensor import DTensor, Partial, Replicate

    mesh = student.device_mesh
    placements = [Replicate() if placed.is_partial() else placed for placed in student.placements]
    student = student.redistribute(placements=placements)
    teacher = teacher.redistribute(placements=placements)
    if mask is not None:  # it has no classes: where those are cut, every process needs the rows of its neighbours, too
        rows = [Replicate() if getattr(placed, "dim", None) == student.ndim - 1 else placed for placed in placements]
        mask = mask.redistribute(placements=rows)
    if among(phi):
        phi = phi.full_tensor()
    if reduction == "none":
        return reference.annealed_mse(student, teacher, phi, reduction=reduction, mask=mask)
    summed = local_loss(
        student.to_local(), teacher.to_local(), phi, reduction="sum", mask=None if mask is None else mask.to_local()
    )
    # Not is_shard(): it is False for the shards in turns that a flattened sequence has (_StridedShard).
    spread = [placed if placed.is_replicate() else Partial() for placed in placements]
    total = DTensor.from_local(summed, mesh, spread, run_check=False).redistribute(placements=[Replicate()] * mesh.ndim)
    count = reference.count(student, teacher, reduction, mask)  # of the whole tensors
    if mask is None or reduction == "sum":
        return total / count
    # Where no row counts the loss is NaN, but the gradient 0: dividing by 0 would make it NaN, too.
    return total.masked_fill(count == 0, float("nan")) / count.clamp(min=1)
