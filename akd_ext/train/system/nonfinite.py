"""NaN and infinity: kept out of the checkpoints, and out of the student where ``--skip_nonfinite`` says so."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import distributed, nn

from akd_ext.train.distributed.group import is_distributed

from .errors import RunError


def require_finite(model: nn.Module, where: str) -> None:
    """Looks at every parameter, and at the buffers that a checkpoint holds. Waits for the device once.

    A loss is computed before the step that spoils the weights, so a finite one says nothing about them. A buffer may be
    infinite, as a mask is; it may not be NaN.

    Raises:
        RunError: a tensor is not finite; in every process, if there are several.
    """
    parameters = {name for name, _ in model.named_parameters()}
    tensors = {
        name: (tensor.to_local() if hasattr(tensor, "to_local") else tensor).detach()  # under FSDP, its piece
        for name, tensor in model.state_dict(keep_vars=True).items()
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point()
    }
    if not tensors:
        return
    bad = torch.stack([
        ~tensor.isfinite().all() if name in parameters else tensor.isnan().any() for name, tensor in tensors.items()
    ])  # fmt: skip
    if is_distributed():
        bad = bad.to(torch.uint8)
        distributed.all_reduce(bad, distributed.ReduceOp.MAX)
    names = [name for name, is_bad in zip(tensors, bad.tolist(), strict=True) if is_bad]
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise RunError(
            f"the student's weights are no longer finite {where} ('{names[0]}'{more}): training was stopped, and the "
            "checkpoints of the epochs before are kept; a lower learning rate, max_grad_norm or another --amp may help"
        )


class Skipper:
    """``--skip_nonfinite``: leaves out an optimizer step if its loss or gradients are not finite.

    A step's gradients are made NaN if its loss is not finite, so one look at the gradients is enough, and under DDP,
    which has added them up, every process decides alike. The model's buffers go back as well: BatchNorm has taken in
    what the loss was computed from. Waits for the device at every step.
    """

    def __init__(self, limit: int):
        self.limit, self.skipped, self.in_a_row, self.where = limit, 0, 0, ""
        self._buffers: list[tuple[torch.Tensor, torch.Tensor]] = []

    def begin(self, model: nn.Module, where: str) -> None:
        """A new epoch, which may train another model."""
        self.skipped, self.where = 0, where
        self._buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]

    @staticmethod
    def spoiling(loss: torch.Tensor) -> torch.Tensor:
        """The loss, whose gradients will be NaN if it is not finite (0 * inf is NaN)."""
        return loss * (1 + 0 * loss.detach())

    @staticmethod
    def are_finite(parameters: Iterable[torch.Tensor]) -> bool:
        gradients = [p.grad for p in parameters if p.grad is not None]
        return not gradients or bool(torch.nn.utils.get_total_norm(gradients).isfinite())

    def count(self, finite: bool) -> None:
        """Takes note of a step.

        Raises:
            RunError: it is one too many.
        """
        for buffer, kept in self._buffers:
            with torch.no_grad():
                (kept if finite else buffer).copy_(buffer if finite else kept)
        self.in_a_row = 0 if finite else self.in_a_row + 1
        self.skipped += not finite
        if self.in_a_row > self.limit:
            raise RunError(
                f"the loss or its gradients were not finite in {self.in_a_row} steps in a row {self.where}, and "
                f"--skip_nonfinite allows {self.limit}: training was stopped"
            )
