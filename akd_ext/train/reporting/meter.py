"""Averages of the loss and of each of its terms, gathered on the device and read only when somebody looks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from akd_ext.train.distributed.group import all_gather_object


class LossMeter:
    """Listens to a box's criterion.

    A term's value is its contribution, weight included, so the terms add up to the loss. All averages are per sample.
    Adding costs no synchronisation with the host; `read` costs one. Of several processes, each adds its samples and all
    read the same averages.
    """

    def __init__(self, criterion: nn.Module, device: torch.device):
        self._dtype = torch.float32 if device.type == "mps" else torch.float64
        self._device, self._step, self._hooks = device, {}, []
        self._interval: dict[str, torch.Tensor] = {}
        self._interval_samples = 0
        self._totals: dict[str, float] = {}
        self._samples = 0
        for name, (term, weight) in getattr(criterion, "term_dict", {}).items():
            if isinstance(term, nn.Module):
                term.to(device)  # term_dict is a plain dict: torchdistill's own .to() never reaches, say, class weights
                self._hooks.append(term.register_forward_hook(self._listen(name, weight)))
        self._has_model_term = bool(getattr(criterion, "model_loss_factor", None))

    def _listen(self, name: str, weight: Any):
        def hook(module, inputs, output):
            if isinstance(output, torch.Tensor):
                self._step[name] = weight * output.detach()

        return hook

    def add(self, loss: torch.Tensor, samples: int) -> None:
        """Takes in one step: the total loss (a tensor of one element) and the terms heard since the step before."""
        values = {"loss": loss.detach(), **self._step}
        for name, value in values.items():
            if name not in self._interval:
                self._interval[name] = torch.zeros((), dtype=self._dtype, device=self._device)
            # Some losses of torchdistill have the shape [1].
            self._interval[name].add_(value.to(self._dtype).reshape(()), alpha=samples)
        self._interval_samples += samples
        self._step = {}

    def read(self) -> tuple[float, dict[str, float]]:
        """(loss, {term: value}) averaged since the last read. Waits for the device once."""
        names = list(self._interval)
        here = torch.stack([self._interval[name] for name in names]).tolist() if names else []
        sums: dict[str, float] = {}
        samples = 0
        for there, number in all_gather_object((dict(zip(names, here, strict=True)), self._interval_samples)):
            samples += number
            for name, value in there.items():
                sums[name] = sums.get(name, 0.0) + value
        if not samples:
            return float("nan"), {}
        for name, value in sums.items():
            self._totals[name] = self._totals.get(name, 0.0) + value
        self._interval_samples, self._interval = 0, {}
        self._samples += samples
        return self._averages(sums, samples)

    def unread(self) -> float:
        """This process's loss summed since the last read, which stays to be read. Waits for the device once."""
        return float(self._interval.get("loss", 0.0))

    def epoch(self) -> tuple[float, dict[str, float]]:
        """(loss, {term: value}) averaged over everything read since the meter was made."""
        return self._averages(self._totals, self._samples) if self._samples else (float("nan"), {})

    def state_dict(self) -> dict[str, Any]:
        """Everything added so far."""
        return {
            "interval": dict(self._interval),
            "interval_samples": self._interval_samples,
            "totals": dict(self._totals),
            "samples": self._samples,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from that of a meter of the same criterion."""
        self._interval = {name: value.to(self._device) for name, value in state["interval"].items()}
        self._interval_samples, self._samples = state["interval_samples"], state["samples"]
        self._totals = dict(state["totals"])

    def _averages(self, sums: dict[str, float], samples: int) -> tuple[float, dict[str, float]]:
        terms = {name: value / samples for name, value in sums.items() if name != "loss"}
        loss = sums["loss"] / samples
        if self._has_model_term:
            terms["model_term"] = loss - sum(terms.values())
        return loss, terms

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()
