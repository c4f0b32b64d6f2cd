"""Every name of torch's that is nobody's promise, in one place, each with what happens in a torch without it.

Without one of them everything is as right as before, at most slower: what a name would have told is taken for the answer
that leads to plain PyTorch operations. ``MISSING`` lists those that this torch lacks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

MISSING: list[str] = []


def _find(path: str, fallback: Any) -> Any:
    """``torch._C.<path>``, or ``fallback``."""
    found = torch._C
    for name in path.split("."):
        found = getattr(found, name, None)
    if found is None:
        MISSING.append(f"torch._C.{path}")
        return fallback
    return found


# The question of autograd, whether somebody else will see the graph again. Without it every graph counts as kept.
graph_is_kept: Callable[[], bool] = _find("_autograd._get_current_graph_task_keep_graph", lambda: True)
# Whether a transform of torch.func wraps the tensor, or the legacy batching of autograd.grad. Without: it may.
is_wrapped: Callable[[Tensor], bool] = _find("_functorch.is_functorch_wrapped_tensor", lambda tensor: True)
is_batched: Callable[[Tensor], bool] = _find("_functorch.is_legacy_batchedtensor", lambda tensor: True)
# Whether a transform of torch.func is under way. Without: it may.
transforms_are_active: Callable[[], bool] = _find("_are_functorch_transforms_active", lambda: True)
# Past autograd's kernels. Without: through them, told that nobody wants a gradient.
below_autograd: Callable[[], Any] = _find("_AutoDispatchBelowAutograd", torch.no_grad)
_call_boxed = _find("_dispatch_call_boxed", None)
_parse_schema = _find("parse_schema", None)
_has_kernel = _find("_dispatch_has_kernel_for_dispatch_key", None)


def without_overrides(op: Any) -> Callable:
    """``op``, not looking for ``__torch_function__`` among its arguments, which takes longer than a small kernel."""
    handle = getattr(op, "_handle", None)
    return op if handle is None or _call_boxed is None else functools.partial(_call_boxed, handle)


def constant_when_compiled(function: Callable) -> Callable:
    """torch.compile runs ``function`` once, while it compiles, and does not look inside: `torch.compiler.assume_constant_result`

    without its import of the compiler, which takes a second. Without the name the compiler looks inside.
    """
    function._dynamo_marked_constant = True
    return function


def forward_mode_is_active() -> bool:
    """Whether forward-mode AD is under way. Without the name: it may."""
    return getattr(forward_ad, "_current_level", 0) >= 0


def has_schema(op: Any, schema: str) -> bool | None:
    """Whether ``op`` was declared with ``schema``; None where this torch does not tell."""
    declared = getattr(op, "_schema", None)
    if declared is None or _parse_schema is None:
        return None
    return str(declared) == str(_parse_schema(schema))


def has_kernel(op: str, dispatch_key: str) -> bool | None:
    """Whether ``op`` has a kernel of its own there; None where this torch does not tell."""
    return None if _has_kernel is None else _has_kernel(op, dispatch_key)


def is_compiled(module: torch.nn.Module) -> bool:
    """Whether ``module.compile()`` was called. Without the name: no, and it is compiled once more."""
    return getattr(module, "_compiled_call_impl", None) is not None


def kept_iterator(loader: Any) -> Any:
    """The iterator, with its workers, that a DataLoader of ``persistent_workers`` keeps for the next epoch, or None."""
    return getattr(loader, "_iterator", None)


def forget_iterator(loader: Any) -> None:
    loader._iterator = None
