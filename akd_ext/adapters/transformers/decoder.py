"""A language model without its head: how to run it inside its own wrappers, and whether its logits are its head's.

DistributedDataParallel, FSDP, autocast and hooks stand around a model's ``forward``, and gradients are exchanged for
the parameters that were used inside it. So the whole loss is computed there: ``forward`` is another one for one call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from akd_ext.linear import OutputHead, output_head
from akd_ext.linear.output_head import forward_replaced

# Rows of the head that are tried; the hidden states of the first tokens.
TRIED_CLASSES, TRIED_TOKENS = 8, 4


def plain(model: nn.Module) -> nn.Module:
    """The Hugging Face model, out of peft's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def check_model(role: str, model: nn.Module) -> OutputHead:
    """The model's head, if it is a causal language model whose logits are linear in hidden states.

    Raises:
        TypeError, ValueError: it is not.
    """
    model = plain(model)
    config = getattr(model, "config", None)
    text_config = getattr(config, "text_config", config)
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"the {role} is an encoder with a decoder; accepted: causal language models")
    if getattr(model, "base_model", model) is model:
        raise TypeError(
            f"the {role} is a {type(model).__name__}, which has no base_model; accepted: causal language models"
        )
    if getattr(text_config, "output_router_logits", False):
        raise ValueError(
            f"the {role}'s config has output_router_logits=True, a loss of its own that would be left out; accepted: "
            "False"
        )
    try:
        return output_head(model)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{role}: {error}") from error


def run_decoder(model: nn.Module, inputs: Mapping[str, Any]) -> Any:
    """The decoder's output; its first entry is what the head would get, ``[B, L, H]``."""
    return plain(model).base_model(**inputs)


@torch.no_grad()
def check_logits(role: str, model: nn.Module, forward: Callable, inputs: Mapping[str, Any], output: Any) -> None:
    """Models may do something to hidden states before the head, or to logits after it. ``forward``: the model's own.

    It runs once, with some of the decoder's ``output``, which is there already, in the place of the decoder and a few
    rows in the place of the head: what comes out has to be those rows times the hidden states.

    Raises:
        ValueError: it is not.
    """
    model = plain(model)
    head = output_head(model)
    hidden = output[0].detach()[:1, :TRIED_TOKENS].float()
    weight = head.weight.detach()[:TRIED_CLASSES].float()
    bias = None if head.bias is None else head.bias.detach()[:TRIED_CLASSES].float()

    def few_rows(given: Tensor) -> Tensor:
        with torch.autocast(given.device.type, enabled=False):
            return F.linear(given.float(), weight, bias)

    def decoder(*args, **kwargs):
        if isinstance(output, Mapping):
            return type(output)(**{**output, "last_hidden_state": hidden})
        return (hidden, *output[1:])

    replaced = [(model.get_output_embeddings(), few_rows), (model.base_model, decoder)]
    inner = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    if inner is not model.base_model:  # OPT's forward calls it past its base_model, which does nothing else
        replaced.append((inner, decoder))
    with contextlib.ExitStack() as stack:
        for module, instead in replaced:
            stack.enter_context(forward_replaced(module, instead))
        found = forward(**inputs)
    found = (found["logits"] if isinstance(found, Mapping) else found[0]).float()
    expected = head.logit_scale * few_rows(hidden)
    # Two roundings to bfloat16, of 2^-8 each, are 8e-3; a factor that is looked for is much more than a hundredth off 1.
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-2, atol=1e-5, equal_nan=True):
        raise ValueError(
            f"the logits of the {role}, a {type(model).__name__}, are not {head.logit_scale:g} * head(hidden states): "
            "it does something of its own before or after the head; accepted: models whose logits are linear in their "
            "hidden states"
        )
