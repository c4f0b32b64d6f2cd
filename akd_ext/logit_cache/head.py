"""A teacher's output head beside its cached states: stored, and told in the identity by its bytes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .file import DTYPES
from .fingerprint import hash_of


class TeacherHead(NamedTuple):
    """``logits = logit_scale * (hidden @ weight.T + bias)``, as :func:`akd_ext.linear.output_head` reads it off a model."""

    weight: Tensor
    bias: Tensor | None = None
    logit_scale: float = 1.0


def describe_head(head: tuple) -> dict[str, Any]:
    """A head ``(weight, bias, logit_scale)`` by its form and its bytes.

    >>> a, b = TeacherHead(torch.zeros(5, 2)), TeacherHead(torch.zeros(5, 2), torch.ones(5))
    >>> describe_head(a)["vocabulary"], [key for key in describe_head(a) if describe_head(a)[key] != describe_head(b)[key]]
    (5, ['values'])
    """
    weight, bias, logit_scale = checked_head(head)
    return {
        "vocabulary": weight.shape[0],
        "width": weight.shape[1],
        "dtype": str(weight.dtype).removeprefix("torch."),
        "values": hash_of([weight, bias]),
        "logit_scale": logit_scale,
    }


def checked_head(head: Any) -> TeacherHead:
    if not isinstance(head, tuple) or not 1 <= len(head) <= 3:
        raise TypeError(f"head is a {type(head).__name__}; accepted: (weight, bias or None, logit_scale)")
    weight, bias, scale = TeacherHead(*head)
    for name, tensor, dimensions in (("weight", weight, 2), ("bias", bias, 1)):
        if tensor is None and name == "bias":
            continue
        if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.dtype not in DTYPES.values():
            what = f"{type(tensor).__name__} of {getattr(tensor, 'dtype', 'no dtype')}"
            raise TypeError(
                f"head: its {name} is a {what}; accepted: a tensor of {', '.join(map(str, DTYPES.values()))}"
            )
        if tensor.ndim != dimensions or not tensor.numel() or len(tensor) != len(weight):
            raise ValueError(f"head: its {name} has shape {list(tensor.shape)}; accepted: weight [V, H], bias [V]")
    return TeacherHead(weight.detach(), None if bias is None else bias.detach(), float(scale))


def with_head(identity: dict, head: TeacherHead | None) -> dict:
    if head is None:
        return identity
    described = describe_head(head)
    if identity.get("head", described) != described:
        raise ValueError("identity['head'] is not the description of the argument head; accepted: none, or that one")
    return {**identity, "head": described}
