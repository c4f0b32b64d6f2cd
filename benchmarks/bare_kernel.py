"""Builds ``benchmarks/native/bare_kernel.cpp`` and calls it with tensors. Needs pybind11 and a C++ compiler."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
SOURCES = (ROOT / "benchmarks/native/bare_kernel.cpp", ROOT / "csrc/cpu/kernels.cpp")
# The order of akd::Type.
TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def build(folder: str | os.PathLike) -> ModuleType:
    """Compile the binding into ``folder`` and import it, with the flags the package itself is built with."""
    import pybind11

    library = Path(folder) / ("akd_bare_kernel" + sysconfig.get_config_var("EXT_SUFFIX"))
    includes = [pybind11.get_include(), sysconfig.get_paths()["include"]]
    command = [
        os.environ.get("CXX", "c++"), "-std=c++17", "-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-ffp-contract=off",
        *(f"-I{path}" for path in includes), "-isystem", str(Path(torch.__file__).parent / "include"),
        *map(str, SOURCES), "-o", str(library),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    spec = importlib.util.spec_from_file_location("akd_bare_kernel", library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(
    module: ModuleType, student: Tensor, teacher: Tensor, gradient: Tensor | None, phi: float, scale: float
) -> float:
    """Sum of squares of contiguous CPU tensors; ``gradient``, of the student's dtype, is overwritten."""
    return module.run(
        TYPES.index(student.dtype), TYPES.index(teacher.dtype), student.data_ptr(), teacher.data_ptr(),
        0 if gradient is None else gradient.data_ptr(), student.numel(), phi, scale,
    )  # fmt: skip
