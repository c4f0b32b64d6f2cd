"""Is the NVIDIA driver new enough for the CUDA kernel?

The kernel library carries its CUDA runtime inside, so it runs beside the CUDA of any torch. What it needs from the machine is a
driver of at least the runtime's major version; with an older one every launch would fail.
"""

from __future__ import annotations

import ctypes
import json
from pathlib import Path


def why_too_old(build: Path) -> str:
    """Why the kernel that ``build`` (build.json) tells of cannot run with the driver here; "" when it can.

    Without a driver there is no GPU, and nothing that could fail: "" as well.
    """
    try:
        built_with = json.loads(build.read_text(encoding="utf-8"))["cuda"]["cuda_version"]
        needed = int(built_with.split(".")[0])
    except (OSError, ValueError, KeyError):
        return ""  # built by hand: nothing known, so nothing to say
    version = driver_version()
    if version is None or version // 1000 >= needed:
        return ""
    return (
        f"the NVIDIA driver supports CUDA {version // 1000}.{version % 1000 // 10}, the kernel was built with CUDA {built_with}; "
        "update the driver, or build akd_ext on this machine from its source"
    )


def driver_version() -> int | None:
    """13020 for a driver that supports CUDA up to 13.2; None when there is none. Does not initialise CUDA."""
    found = ctypes.c_int(0)
    try:
        failed = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(found))
    except (OSError, AttributeError):
        return None
    return found.value if failed == 0 and found.value else None
