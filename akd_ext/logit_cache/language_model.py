"""A Hugging Face language model's hidden states: the pass over its decoder, and what they were computed from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .fingerprint import describe_teacher, hash_of, raw_bytes
from .head import describe_head

# What loading, saving and the version of transformers change in a configuration, and the states do not depend on.
_NOT_THE_MODEL = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache")


def hidden_states_of(model: nn.Module, batches: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """What :class:`akd_ext.logit_cache.HiddenStateCache` is filled with. The model's head is never called.

    Runs ``model.get_decoder()`` in eval mode, without gradients, on the device of its parameters; afterwards every
    module is in the mode it was in. What a model does to these states before its head or to logits behind it
    (Falcon-H1, MiniCPM3) is neither done nor noticed: for a new kind of model compare some logits once.

    Args:
        model: a causal language model of transformers, or anything with a ``get_decoder()`` whose output has
            ``.last_hidden_state``.
        batches: mappings with ``index``, int64 ``[B]``, ``input_ids`` and, where there is padding, ``attention_mask``, both
            ``[B, L]``; ``labels`` are left aside, everything else goes to the decoder. One sample a row, not packed. A model with
            absolute positions (GPT-2) needs padding on the right, or ``position_ids``.

    Yields:
        ``(index, hidden, attention_mask)``, for ``fill``.

    ::

        states = lambda: hidden_states_of(teacher, DataLoader(data, batch_size=16, collate_fn=collate))
        cache = HiddenStateCache.build_or_open("states", identity, states, num_samples=len(data))
    """
    decoder = model.get_decoder()
    device = next(decoder.parameters()).device
    for batch in batches:
        inputs = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
        if "index" not in inputs or "input_ids" not in inputs:
            raise ValueError(
                f"a batch has {sorted(inputs)}; accepted: index, input_ids and what else the decoder takes"
            )
        index, _ = inputs.pop("index"), inputs.pop("labels", None)
        in_training = [module for module in decoder.modules() if module.training]
        try:
            decoder.eval()
            with torch.no_grad():  # closed before the yield: it would hold for the caller, too
                hidden = decoder(**inputs, use_cache=False).last_hidden_state
        finally:
            for module in in_training:
                module.training = True
        mask = inputs.get("attention_mask")
        yield index, hidden, torch.ones_like(inputs["input_ids"]) if mask is None else mask


def describe_language_model(
    model: nn.Module, head: tuple, tokenizer: Any, texts: Iterable[Sequence[int] | Tensor]
) -> dict[str, Any]:
    """The identity of a language model's cached states: teacher, head, tokenizer and texts.

    Args:
        model: the teacher. Class, structure and weights of its decoder count, and its configuration.
        head: ``(weight, bias, logit_scale)``, as :func:`akd_ext.linear.output_head` gives it: form and bytes count.
        tokenizer: its class, vocabulary and special tokens count; ``None`` where there is none.
        texts: the ids of every sample, in order, as the model sees them: a column ``input_ids``. All of them count.

    Where the fill keeps other tokens than those of the attention mask, or autocast is on, enter that as well.

    ::

        identity = describe_language_model(teacher, akd_ext.linear.output_head(teacher), tokenizer, data["input_ids"])
    """
    teacher = describe_teacher(model.get_decoder())
    config = getattr(model, "config", None)
    if config is not None:
        told = json.loads(config.to_json_string(use_diff=False))
        teacher["config"] = {key: value for key, value in told.items() if key not in _NOT_THE_MODEL}
    return {
        "teacher": teacher,
        "head": describe_head(head),
        "tokenizer": None if tokenizer is None else _describe_tokenizer(tokenizer),
        "texts": _describe_texts(texts),
    }


def _describe_tokenizer(tokenizer: Any) -> dict[str, Any]:
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    vocabulary = tokenizer.get_vocab()
    return {
        "class": f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}",
        "entries": len(vocabulary),
        "vocabulary": hash_of(vocabulary),
        "special": special,
    }


def _describe_texts(texts: Iterable[Sequence[int] | Tensor]) -> dict[str, Any]:
    sha, samples, tokens = hashlib.sha256(), 0, 0
    for ids in texts:
        ids = torch.as_tensor(ids, dtype=torch.int64, device="cpu").contiguous()
        if ids.ndim != 1:
            raise ValueError(f"texts: sample {samples} has ids of shape {list(ids.shape)}; accepted: [tokens]")
        sha.update(len(ids).to_bytes(8, "little"))
        sha.update(raw_bytes(ids))
        samples, tokens = samples + 1, tokens + len(ids)
    return {"samples": samples, "tokens": tokens, "ids": sha.hexdigest()}
