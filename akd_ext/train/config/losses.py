"""What a loss that a YAML names reads, as far as that can be told before it is built."""

from __future__ import annotations

from typing import Any

from torchdistill.losses import registry

from .document import Tagged
from .registries import choices
from .values import arguments_of

WRAPPERS = ("SimpleLossWrapper", "DictLossWrapper")


def is_plain(key: str) -> bool:
    """True for torch.nn's own losses, which compare two tensors and so need a criterion_wrapper around them."""
    return key in registry.LOSS_DICT and key not in registry.MIDDLE_LEVEL_LOSS_DICT


def finds_its_own(key: str) -> bool:
    """True for a loss that is given everything that both models have put out, and picks what it compares."""
    return key in registry.MIDDLE_LEVEL_LOSS_DICT


def is_of_torchdistill(key: str) -> bool:
    return str(getattr(choices("loss").get(key), "__module__", "")).startswith("torchdistill.")


def read_teacher(criterion: Any) -> bool:
    """Whether a stage's loss compares anything with the teacher; True where nobody can tell."""
    kwargs = criterion.get("kwargs") if isinstance(criterion, dict) else None
    if not isinstance(kwargs, dict) or not isinstance(kwargs.get("sub_terms"), dict):
        return not isinstance(kwargs, dict) or "model_term" not in kwargs
    return any(_reads_teacher(term) for term in kwargs["sub_terms"].values())


def _reads_teacher(term: dict) -> bool:
    loss, wrapper = term.get("criterion"), term.get("criterion_wrapper")
    if isinstance(wrapper, dict) and wrapper.get("key") in WRAPPERS:
        ends = wrapper.get("kwargs") or {}
        return isinstance(ends, Tagged) or any(
            (ends.get(end) or {}).get("is_from_teacher") for end in ("input", "target")
        )
    arguments = arguments_of(choices("loss").get(str(loss.get("key"))), 0) if isinstance(loss, dict) else None
    if arguments is None or not is_of_torchdistill(str(loss["key"])):
        return True
    return any("teacher" in name or name.endswith("_pairs") for name in arguments.named)
