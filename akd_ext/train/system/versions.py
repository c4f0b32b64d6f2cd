"""The versions a result depends on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

_PACKAGES = ("torch", "torchvision", "torchdistill", "numpy")


def versions(device: torch.device, more: tuple[str, ...] = ()) -> dict[str, str]:
    """Python, the packages that decide the numbers, CUDA and cuDNN if used, and which of our kernels runs."""
    import akd_ext

    found = {"python": platform.python_version(), "akd_ext": getattr(akd_ext, "__version__", "unknown")}
    for name in (*_PACKAGES, *more):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    if device.type == "cuda":
        found["cuda"] = str(torch.version.cuda)
        found["cudnn"] = str(torch.backends.cudnn.version())
    if hasattr(akd_ext, "backend"):
        found["akd_kernel"] = akd_ext.backend(device.type)
    return found
