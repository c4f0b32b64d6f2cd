"""Finds a CUDA toolkit: a compiler *and* its headers.

The nvcc on PATH may be a wrapper script, a link, or a package without headers, so the folder above it proves nothing:
``cuda_runtime.h`` does.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from _build_backend import find_torch


@dataclass(frozen=True)
class Toolkit:
    root: Path
    nvcc: Path
    version: str  # "13.0"
    archs: tuple[str, ...]  # what nvcc can compile for: "80", "86", ...

    @property
    def include(self) -> Path:
        return _headers(self.root)


def find(roots: Iterable[Path] | None = None) -> tuple[Toolkit | None, str]:
    """A toolkit from the first root (default: ``places()``) that has all of it, or None and the reason."""
    without_headers = []
    for root in dict.fromkeys(places() if roots is None else roots):
        nvcc = root / "bin" / "nvcc"
        if not nvcc.is_file():
            continue
        if _headers(root) is None:
            without_headers.append(str(root))
            continue
        version = re.search(r"release (\d+\.\d+)", _output([str(nvcc), "--version"]))
        if version:
            return Toolkit(root, nvcc, version[1], _archs(nvcc)), ""
    if without_headers:
        return None, f"nvcc without cuda_runtime.h in {', '.join(without_headers)}"
    return None, "no CUDA toolkit: CUDA_HOME, CUDA_PATH, nvcc on PATH and /usr/local/cuda* were tried"


def places() -> Iterator[Path]:
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(name):
            yield Path(os.environ[name])
    nvcc = shutil.which("nvcc")
    if nvcc:
        yield from _roots_of(nvcc)
    yield Path("/usr/local/cuda")
    # 13.0 before 12.8 before 12.10 would be wrong: compare numbers.
    yield from sorted(Path("/usr/local").glob("cuda-*"), key=_numbers, reverse=True)
    for folder in find_torch.places():  # NVIDIA's pip packages (nvidia-cuda-nvcc and nvidia-cuda-runtime of one major)
        yield from sorted(folder.glob("nvidia/cu[0-9]*"), key=_numbers, reverse=True)


def _roots_of(nvcc: str) -> Iterator[Path]:
    # nvcc itself knows where it lives, also behind a wrapper script: it prints TOP=... under --dryrun.
    top = re.search(r"^#\$ TOP=(.*)$", _output([nvcc, "--dryrun", "-x", "cu", "-c", os.devnull]), re.MULTILINE)
    if top:
        yield Path(top[1].strip()).resolve()
    yield Path(nvcc).resolve().parents[1]


def _headers(root: Path) -> Path | None:
    for folder in [root / "include", *sorted(root.glob("targets/*/include"))]:
        if (folder / "cuda_runtime.h").is_file():
            return folder
    return None


def _archs(nvcc: Path) -> tuple[str, ...]:
    return tuple(re.findall(r"compute_(\d+[a-z]?)", _output([str(nvcc), "--list-gpu-arch"])))


def _numbers(path: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", path.name)]


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr
