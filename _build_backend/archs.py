"""Which GPUs the CUDA kernel is compiled for."""

from __future__ import annotations

import os
import re
import subprocess

from _build_backend.report import BuildError

# One for each generation the project promises; 8.7, 10.3, 12.1, ... run the code of their generation.
RELEASE = ("80", "86", "89", "90", "100", "120")


def choose(known: tuple[str, ...]) -> list[str]:
    """What to build, as nvcc names it: ``["sm_80", ..., "sm_120", "compute_120"]``. ``known``: what nvcc can do.

    ``AKD_EXT_CUDA_ARCHS`` decides, then ``TORCH_CUDA_ARCH_LIST``: "8.0;9.0+PTX", "80 90", "sm_90", "all" or "native".
    Without them it is "all": the list of the project as far as nvcc knows it. Not the GPU that happens to be visible: the
    wheel may be carried to another machine, and the whole list costs a minute of one core. The newest one also goes in as PTX,
    which the driver compiles for the generations that nvcc does not know yet.

    Raises:
        BuildError: a name that is no architecture, or one this nvcc does not know.
    """
    for name in ("AKD_EXT_CUDA_ARCHS", "TORCH_CUDA_ARCH_LIST"):
        text = os.environ.get(name, "").strip()
        if text:
            return _parse(name, text, known)
    return _all(known)


def _all(known: tuple[str, ...]) -> list[str]:
    able = [arch for arch in RELEASE if arch in known]
    if not able:
        raise BuildError(f"this nvcc compiles for none of {', '.join('sm_' + arch for arch in RELEASE)}")
    # The oldest one as PTX, too: integrated GPUs (Orin, sm_87; Thor, sm_101 and sm_110) lie between the generations.
    ptx = dict.fromkeys((able[0], able[-1]))
    return [*(f"sm_{arch}" for arch in able), *(f"compute_{arch}" for arch in ptx)]


def _parse(name: str, text: str, known: tuple[str, ...]) -> list[str]:
    if text.lower() == "all":
        return _all(known)
    words = _native() if text.lower() == "native" else re.split(r"[;,\s]+", text.strip(";, "))
    real, ptx = [], []
    for word in words:
        match = re.fullmatch(r"(?:sm_)?(\d+)(?:\.(\d))?([a-z]?)(\+PTX)?", word, re.IGNORECASE)
        arch = f"{match[1]}{match[2] or ''}{match[3].lower()}" if match else ""
        if arch not in known and arch.rstrip("acf") not in known:
            raise BuildError(f'{name}="{text}": {word} is none of the architectures of this nvcc: {", ".join(known)}')
        real.append(f"sm_{arch}")
        ptx += [f"compute_{arch}"] if match[4] else []
    # Never without PTX: a GPU newer than the list would have nothing to run.
    return list(dict.fromkeys([*real, *(ptx or [real[-1].replace("sm_", "compute_")])]))


def _native() -> list[str]:
    try:
        command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        found = sorted(set(subprocess.check_output(command, text=True, timeout=60).split()), key=float)
    except (OSError, subprocess.SubprocessError, ValueError):
        found = []
    if not found:
        raise BuildError('AKD_EXT_CUDA_ARCHS="native", but nvidia-smi shows no GPU')
    return found
