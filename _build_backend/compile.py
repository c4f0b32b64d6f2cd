"""Compiles and links the two libraries with plain command lines.

No ninja and no torch.utils.cpp_extension: there are five files to compile, always all of them, and a thread pool does
that in twenty lines. What is not there cannot be missing on the user's machine.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from _build_backend import find_compiler, old_glibc
from _build_backend.find_compiler import Compiler
from _build_backend.find_cuda import Toolkit
from _build_backend.find_torch import Torch
from _build_backend.report import BuildError

MACOS = sys.platform == "darwin"
# The oldest torch whose symbols the libraries may use, whatever the headers offer: find_torch.OLDEST.
STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020a000000000000"]
# No -march=native: the kernels choose the instruction set when they run, so that one binary serves every CPU.
# No contraction: a * b + c has the same bits on every CPU and compiler, as the tests demand.
CXX_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra"]
NVCC_FLAGS = ["-std=c++17", "-O3", "--fmad=false", "-Xcompiler", "-fPIC,-fvisibility=hidden"]


def jobs() -> int:
    """How many compilers run at once: ``MAX_JOBS``, or the CPUs this process may use."""
    chosen = os.environ.get("MAX_JOBS", "")
    if chosen.isdigit() and int(chosen) > 0:
        return int(chosen)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Build:
    """One build of both libraries in a private folder. ``start_*`` queue the work, ``finish_*`` wait for it and link."""

    def __init__(self, root: Path, scratch: Path, compiler: Compiler, torch: Torch):
        self.csrc, self.scratch, self.compiler, self.torch = root / "csrc", scratch, compiler, torch
        # The user's flags come last, so that they win. ARCHFLAGS is macOS's: -arch arm64.
        arch = find_compiler.flags("ARCHFLAGS")
        self.cxx_flags = [*CXX_FLAGS, *arch, *find_compiler.flags("CXXFLAGS")]
        self.link_flags = [*arch, *find_compiler.flags("LDFLAGS")]
        self.pool = ThreadPoolExecutor(jobs())
        self.cpu_objects, self.cuda_objects = [], []

    def __enter__(self) -> Build:
        return self

    def __exit__(self, *_error) -> None:
        self.pool.shutdown(cancel_futures=True)

    def start_cpu(self) -> None:
        for source in [*sorted(self.csrc.glob("*.cpp")), *sorted((self.csrc / "cpu").glob("*.cpp"))]:
            self.cpu_objects.append(self._compile(source, self._cxx()))
        self.cpu_objects += self._compat()

    def finish_cpu(self) -> Path:
        # torch loads its libraries out of sight of others, so the name of the one that has our symbols must be in ours.
        # It is found by that name among the libraries already loaded: no path is stored.
        link = ["-undefined", "dynamic_lookup"] if MACOS else self._link_to("torch_cpu")
        return self._link("libakd_cpu.so", [*self.compiler.command, "-shared", "-fPIC"], self.cpu_objects, link)

    def start_cuda(self, toolkit: Toolkit, archs: list[str]) -> None:
        nvcc = [str(toolkit.nvcc), *NVCC_FLAGS, "-ccbin", self.compiler.path, f"--threads={jobs()}", *_gencode(archs)]
        for source in sorted((self.csrc / "cuda").glob("*.cu")):  # first: they take the longest
            self.cuda_objects.append(self._compile(source, [*nvcc, *STABLE_ABI, "-DUSE_CUDA", *self._includes()]))
        for source in sorted((self.csrc / "cuda").glob("*.cpp")):
            extra = ["-DUSE_CUDA", "-isystem", str(toolkit.include)]
            self.cuda_objects.append(self._compile(source, [*self._cxx(), *extra]))
        self.cuda_objects += self._compat()

    def finish_cuda(self, toolkit: Toolkit) -> Path:
        # nvcc links the CUDA runtime statically: the library runs with the CUDA of any torch, if the driver is new enough.
        nvcc = [str(toolkit.nvcc), "-shared", "-ccbin", self.compiler.path]
        return self._link("libakd_cuda.so", nvcc, self.cuda_objects, self._link_to("torch_cpu", "torch_cuda"))

    def _cxx(self) -> list[str]:
        return [*self.compiler.command, *self.cxx_flags, *STABLE_ABI, *self._includes()]

    def _includes(self) -> list[str]:
        # -isystem: warnings in torch's headers are not ours to fix.
        return ["-isystem", str(self.torch.include)]

    def _compat(self) -> list:
        if platform.system() != "Linux":
            return []
        return [self._compile(Path(__file__).with_name("compat.cpp"), [*self.compiler.command, *self.cxx_flags])]

    def _compile(self, source: Path, command: list[str]):
        target = self.scratch / f"{len(self.cpu_objects)}.{len(self.cuda_objects)}.{source.stem}.o"
        return self.pool.submit(run, [*command, "-c", str(source), "-o", str(target)], target)

    def _link_to(self, *names: str) -> list[str]:
        """Linker flags for libraries of torch. A CPU-only torch has no libtorch_cuda.so: an empty one of that name will do."""
        flags = ["-Wl,--no-as-needed"]
        for name in names:
            folder = self.torch.lib
            if not (folder / f"lib{name}.so").is_file():
                folder = self.scratch
                empty = folder / "empty.cpp"
                empty.touch()
                target = folder / f"lib{name}.so"
                run(
                    [*self.compiler.command, "-shared", f"-Wl,-soname,{target.name}", str(empty), "-o", str(target)],
                    target,
                )
            flags += [f"-L{folder}", f"-l{name}"]
        if os.environ.get("AKD_EXT_MANYLINUX") == "1":
            flags += old_glibc.link_flags(self.scratch, self.compiler.path, run)
        return flags

    def _link(self, name: str, command: list[str], objects: list, flags: list[str]) -> Path:
        target = self.scratch / name
        nvcc = Path(command[0]).name == "nvcc"
        if nvcc:  # it knows neither -Wl nor files named *.so.0
            flags = [word for flag in flags for word in ("-Xlinker", flag.removeprefix("-Wl,"))]
        flags = [*flags, *(_for_nvcc(self.link_flags) if nvcc else self.link_flags)]
        return run([*command, *(str(item.result()) for item in objects), *flags, "-o", str(target)], target)


def _for_nvcc(link_flags: list[str]) -> list[str]:
    """LDFLAGS as nvcc takes them: what is for the linker to the linker, all else (-pthread) to the compiler that links."""
    linker = ("-Wl,", "-L", "-l")
    return [
        word
        for flag in link_flags
        for word in (("-Xlinker", flag.removeprefix("-Wl,")) if flag.startswith(linker) else ("-Xcompiler", flag))
    ]


def _gencode(archs: list[str]) -> list[str]:
    return [f"-gencode=arch={arch.replace('sm_', 'compute_')},code={arch}" for arch in archs]


def run(command: list[str], target: Path) -> Path:
    """Runs one compiler, shows the command (``pip install -v``), and returns what it made.

    Raises:
        BuildError: it failed; the text ends with what it said.
    """
    print(shlex.join(command), flush=True)
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, stdin=subprocess.DEVNULL
    )
    if done.stdout.strip():
        print(done.stdout, flush=True)
    if done.returncode or not target.is_file():
        said = [line for line in done.stdout.splitlines() if "error" in line.lower()] or done.stdout.splitlines()[-1:]
        raise BuildError(
            f"{Path(command[0]).name} failed on {target.name}: {said[0].strip() if said else 'no message'}"
        )
    return target
