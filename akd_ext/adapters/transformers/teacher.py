"""Where the teacher's hidden states come from: the teacher itself, or a cache of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from akd_ext.linear import OutputHead, output_head
from akd_ext.linear.output_head import forward_replaced
from akd_ext.logit_cache import describe_head

from .decoder import check_logits, check_model, run_decoder

# Names a text of the data set; in a row of packed texts one number for each of them.
INDEX = "index"


class Teacher(Protocol):
    """Gives hidden states ``[B, L, Ht]`` for a batch. ``head``: what they are multiplied with."""

    head: OutputHead

    def __call__(self, inputs: Mapping[str, Any], index: Tensor | None) -> Tensor: ...


class OnlineTeacher(Teacher):
    """A causal language model, frozen, which runs for every batch; its head is never called."""

    def __init__(self, model: nn.Module, device: torch.device, is_to_be_moved: bool) -> None:
        # Wrapped or sharded, it runs in its own wrappers, too.
        self._wrapped, self._model = model, extract_model_from_parallel(model, keep_torch_compile=False)
        weight = check_model("teacher", self._model).weight
        if is_to_be_moved and getattr(model, "hf_device_map", None) is None and not isinstance(weight, DTensor):
            model.to(device)
        model.eval()
        head = check_model("teacher", self._model)
        self.head = OutputHead(*(_frozen(x) if isinstance(x, Tensor) else x for x in head))
        self._is_checked = False

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, Any], index: Tensor | None) -> Tensor:
        model, own = self._model, self._model.forward
        if model.training:
            self._wrapped.eval()

        def forward(**given):
            output = run_decoder(model, given)
            if not self._is_checked:
                check_logits("teacher", model, own, given, output)
                self._is_checked = True
            return output[0]

        with forward_replaced(model, forward):
            return self._wrapped(**inputs, use_cache=False)


def _frozen(tensor: Tensor) -> Tensor:
    """Whole, and without a gradient: the losses refuse a teacher's head that learns."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class CachedTeacher(Teacher):
    """The states of each text, from ``states[index]``, put where the batch has its tokens."""

    def __init__(self, states: Any, head: Any, device: torch.device) -> None:
        self._states = states
        given, head = head is not None, as_head(getattr(states, "head", None) if head is None else head)
        if given:
            _check_head(head, getattr(states, "identity", {}).get("head"))
        self.head = OutputHead(*(x.detach().to(device) if isinstance(x, Tensor) else x for x in head))

    def __call__(self, inputs: Mapping[str, Any], index: Tensor | None) -> Tensor:
        ids = inputs["input_ids"]
        if index is None:
            raise ValueError(
                f"the training batch has no column {INDEX!r}, the place of each text in teacher_states; it has "
                f"{sorted(inputs)}"
            )
        attention = inputs.get("attention_mask")
        has_tokens = attention.ne(0) if attention is not None and attention.shape == ids.shape else None
        rows = []
        for row, texts in enumerate(index.reshape(len(ids), -1).tolist()):
            found = torch.cat([self._states[text] for text in texts if text >= 0]).to(ids.device)
            rows.append(_placed(found, ids[row], None if has_tokens is None else has_tokens[row], texts))
        return torch.stack(rows)


def _placed(states: Tensor, ids: Tensor, has_tokens: Tensor | None, texts: list[int]) -> Tensor:
    """``[L, Ht]``, 0 where there is no token."""
    if has_tokens is None:  # only padding at the end can be told without a mask
        has_tokens = torch.arange(len(ids), device=ids.device) < len(states)
    count = int(has_tokens.sum())
    if count != len(states):
        raise ValueError(
            f"teacher_states has {len(states)} tokens for index {texts}, the batch {count}; accepted: the same texts, "
            "cut and tokenized as when the states were made"
        )
    placed = states.new_zeros(len(ids), states.shape[-1])
    placed[has_tokens] = states
    return placed


def _check_head(head: OutputHead, described: Any) -> None:
    """``described``: what the states' identity says of the head that they belong to, if it says anything."""
    if not isinstance(described, Mapping):
        return
    differ = [key for key, value in describe_head(tuple(head)).items() if described.get(key) != value]
    if differ:
        raise ValueError(
            f"teacher_head differs in {', '.join(differ)} from the head in the identity of teacher_states; accepted: the "
            "head that the states were made for"
        )


def as_head(head: Any) -> OutputHead:
    """From a layer, a model, a weight, or what :func:`akd_ext.linear.output_head` returns."""
    if head is None:
        raise ValueError(
            "teacher_head is missing: teacher_states holds none; accepted: the teacher's head, a layer, its weight or "
            "akd_ext.linear.output_head(teacher)"
        )
    if isinstance(head, tuple):
        return OutputHead(*head)
    return OutputHead(head, None, 1.0) if isinstance(head, Tensor) else output_head(head)
