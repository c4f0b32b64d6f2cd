"""``--amp``: autocast around the forward pass, and a GradScaler that torchdistill's boxes can live with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from .errors import ConfigError

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """float32 (``name=None``), bf16, or fp16 with loss scaling.

    Raises:
        ConfigError: the device cannot compute in that type.
    """

    def __init__(self, name: str | None, device: torch.device):
        self.dtype, self.device = _DTYPES.get(name or ""), device
        if name == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
            raise ConfigError(f"--amp bf16: {torch.cuda.get_device_name(device)} has no bfloat16; use --amp fp16")
        self.scaler = torch.amp.GradScaler(device.type) if name == "fp16" else None

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, self.dtype) if self.dtype is not None else nullcontext()

    def scaled(self, loss: torch.Tensor) -> torch.Tensor:
        return loss if self.scaler is None else self.scaler.scale(loss)

    @contextmanager
    def steps(self, box: Any) -> Iterator[None]:
        """While this is open, the box's optimizer steps through the scaler.

        A box calls ``loss.backward()``, clips, and calls ``optimizer.step()`` by itself, in whatever
        post_forward_process the YAML names. Clipping must see unscaled gradients, so it moves into the step. The real
        optimizer is put back at the end, because a new stage may build a scheduler on it.
        """
        if self.scaler is None:
            yield
            return
        optimizer, clip = box.optimizer, box.max_grad_norm
        box.optimizer, box.max_grad_norm = _ScaledOptimizer(optimizer, self.scaler, clip), None
        try:
            yield
        finally:
            box.optimizer, box.max_grad_norm = optimizer, clip


class _ScaledOptimizer:
    def __init__(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, max_grad_norm: float | None):
        self._optimizer, self._scaler, self._max_grad_norm = optimizer, scaler, max_grad_norm

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)

    def step(self) -> None:
        if self._max_grad_norm is not None:
            self._scaler.unscale_(self._optimizer)
            parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, self._max_grad_norm)
        self._scaler.step(self._optimizer)  # leaves out the step by itself if a gradient is not finite
        self._scaler.update()
