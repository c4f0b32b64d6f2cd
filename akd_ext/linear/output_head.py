"""A model's output head, as the linear losses take it, and how a model runs without it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor, nn


class OutputHead(NamedTuple):
    """``logits = logit_scale * (hidden @ weight.T + bias)``."""

    weight: Tensor
    bias: Tensor | None
    logit_scale: float


def output_head(model: nn.Module) -> OutputHead:
    """The head of a Hugging Face model (anything with ``get_output_embeddings`` and ``config``), or of an ``nn.Linear``.

    Raises:
        TypeError, ValueError: the model's logits are no linear function of its hidden states: they are capped, or the
            head is not a plain linear layer (an adapter on it has to be merged first).

    >>> output_head(nn.Linear(2, 3)).weight.shape
    torch.Size([3, 2])
    """
    layer, config = model, getattr(model, "config", None)
    if hasattr(model, "get_output_embeddings"):
        layer = model.get_output_embeddings()
    config = getattr(config, "text_config", config)
    cap = getattr(config, "final_logit_softcapping", None)
    if cap:
        raise ValueError(
            f"the model caps its logits (final_logit_softcapping = {cap}), so they are not linear in hidden states; "
            "accepted: models without, or annealed_mse_loss on the logits themselves"
        )
    if type(layer) is not nn.Linear:
        raise TypeError(
            f"the model's output head is a {type(layer).__name__}; accepted: torch.nn.Linear (merge an adapter into it "
            "first: merge_and_unload() in peft)"
        )
    if hasattr(layer, "parametrizations") or layer._forward_hooks or layer._forward_pre_hooks:
        raise TypeError("the model's output head has hooks or parametrizations; accepted: a plain torch.nn.Linear")
    return OutputHead(layer.weight, layer.bias, _scale(config))


def _scale(config) -> float:
    """Cohere multiplies its logits, Granite divides them."""
    scale = getattr(config, "logit_scale", None)
    divisor = getattr(config, "logits_scaling", None)
    return float(scale if scale is not None else 1.0) / float(divisor if divisor is not None else 1.0)


@contextlib.contextmanager
def forward_replaced(module: nn.Module, forward: Callable) -> Iterator[None]:
    """Inside, ``module(...)`` and whatever wraps ``module`` run ``forward``."""
    own = module.__dict__.get("forward")  # accelerate puts one there, which stands in a class otherwise
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
