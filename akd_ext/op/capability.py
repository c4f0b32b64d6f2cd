"""GPUs that are older than everything the CUDA kernel was built for: plain PyTorch runs there."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import torch
from torch import Tensor

from . import library as _library
from . import private_torch as _private


def oldest_arch(build: Path) -> int:
    """The oldest architecture that ``build`` (build.json) says the kernel is for, 80 for sm_80; 0 when it does not say."""
    try:
        archs = json.loads(build.read_text(encoding="utf-8"))["cuda"]["archs"]
        return min((int(re.sub(r"\D", "", arch)) for arch in archs), default=0)
    except (OSError, ValueError, KeyError, TypeError):
        return 0  # built by hand: nothing known, so nothing to say


OLDEST = oldest_arch(_library.FOLDER / "build.json")
_too_old: dict[int, bool] = {}


def has_no_kernel(tensor: Tensor) -> bool:
    """Whether ``tensor`` lies on a GPU for which the CUDA kernel has no code. The first answer for a GPU is remembered."""
    return tensor.is_cuda and _is_too_old(tensor.device.index)


@_private.constant_when_compiled
def _is_too_old(index: int) -> bool:
    found = _too_old.get(index)
    return _ask(index) if found is None else found


def _ask(index: int) -> bool:
    if not torch.cuda.is_initialized():  # a fake tensor: there may be no GPU at all
        return False
    # Not when akd_ext is imported: it would initialise CUDA, and a process that has done that cannot fork.
    major, minor = torch.cuda.get_device_capability(index)
    _too_old[index] = is_old = _library.backend("cuda") == "cuda" and 10 * major + minor < OLDEST
    if is_old:
        warnings.warn(
            f"akd_ext: plain PyTorch runs on cuda:{index}, which has compute capability {major}.{minor}; the CUDA kernel "
            f"was built for {OLDEST // 10}.{OLDEST % 10} and newer",
            stacklevel=2,
        )
    return is_old
