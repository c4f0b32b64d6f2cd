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


def check_logits(student: Tensor, teacher: Tensor, mask: Tensor | None, weight: Tensor | None) -> None:
    """Both logits, and mask and weight if there are any, must be DTensors on one mesh."""
    from torch.distributed.tensor import DTensor

    for name, tensor in (("student", student), ("teacher", teacher), ("mask", mask), ("weight", weight)):
        if tensor is not None and not isinstance(tensor, DTensor):
            raise TypeError(
                f"{name} is a plain {type(tensor).__name__} beside a DTensor; accepted: DTensors throughout "
                "(DTensor.from_local or distribute_tensor make one), or plain tensors throughout (.to_local())"
            )
    for name, tensor in (("teacher", teacher), ("mask", mask), ("weight", weight)):
        if tensor is not None and tensor.device_mesh != student.device_mesh:
            raise ValueError(f"{name} is on {tensor.device_mesh}; accepted: the student's mesh {student.device_mesh}")


def annealed_mse(
    student: Tensor, teacher: Tensor, phi: float | Tensor, counting: tuple, local_loss: Callable
) -> Tensor:
    """A 0-d DTensor, the same number in every process; ``"none"``: a DTensor placed as the student is.

    Args:
        student, teacher: DTensors on one mesh. What is ``Partial`` is summed first; the teacher, and whatever has an
            entry for each row, follow the student's placement, which moves data only where theirs is another.
        counting: reduction, mask, weight and divisor. The last is that of the whole tensors, the same in every process.
        local_loss: :func:`akd_ext.annealed_mse_loss`, for the plain tensors of this process.
    """
    from torch.distributed.tensor import DTensor, Partial, Replicate

    reduction, mask, weight, divisor = counting
    mesh = student.device_mesh
    placements = [Replicate() if placed.is_partial() else placed for placed in student.placements]
    student = student.redistribute(placements=placements)
    teacher = teacher.redistribute(placements=placements)
    # They have no classes: where those are cut, every process needs the rows of its neighbours, too.
    rows = [Replicate() if getattr(placed, "dim", None) == student.ndim - 1 else placed for placed in placements]
    mask, weight = (None if x is None else x.redistribute(placements=rows) for x in (mask, weight))
    phi, divisor = (x.full_tensor() if among(x) else x for x in (phi, divisor))
    if reduction == "none":
        loss = reference.annealed_mse(student, teacher, phi, reduction=reduction, mask=mask, weight=weight)
        return loss if divisor is None else loss / divisor.item()
    local = {"mask": mask, "weight": weight}
    local = {name: None if x is None else x.to_local() for name, x in local.items()}
    summed = local_loss(student.to_local(), teacher.to_local(), phi, reduction="sum", **local)
    # Not is_shard(): it is False for the shards in turns that a flattened sequence has (_StridedShard).
    spread = [placed if placed.is_replicate() else Partial() for placed in placements]
    total = DTensor.from_local(summed, mesh, spread, run_check=False).redistribute(placements=[Replicate()] * mesh.ndim)
    if divisor is not None:
        count = DTensor.from_local(divisor.to(summed), mesh, [Replicate()] * mesh.ndim, run_check=False)
    else:
        count = reference.count(student, teacher, reduction, mask, weight)  # of the whole tensors
    if not isinstance(count, Tensor):
        return total / count
    # Where no row counts the loss is NaN, but the gradient 0: dividing by 0 would make it NaN, too.
    nothing = count == 0
    return total.masked_fill(nothing, float("nan")) / count.masked_fill(nothing, 1)
