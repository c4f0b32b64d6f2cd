"""Decides which kernels to build, builds them, and puts them into a folder.

``python -m _build_backend.native`` builds into the source tree, as ``pip install -e .`` does.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from _build_backend import archs, find_compiler, find_cuda, find_torch, sources
from _build_backend.compile import NVCC_FLAGS, Build
from _build_backend.find_cuda import Toolkit
from _build_backend.find_torch import Torch
from _build_backend.report import BuildError, Report

MODES = ("auto", "cuda", "cpu", "none")
LIBRARIES = ("libakd_cpu.so", "libakd_cuda.so")


def mode() -> str:
    """``AKD_EXT_BUILD``: "auto" builds what it can and never fails, "cuda" both kernels, "cpu" one, "none" none.

    Raises:
        BuildError: any other word.
    """
    chosen = os.environ.get("AKD_EXT_BUILD", "").strip().lower() or "auto"
    if chosen not in MODES:
        raise BuildError(f'AKD_EXT_BUILD="{chosen}"; accepted: {", ".join(MODES)}')
    return chosen


def wants_torch() -> bool:
    """Whether a build here compiles something, but has no torch to compile against."""
    return mode() != "none" and _why_no_compiler() == "" and find_torch.find() is None


def build(root: Path, out: Path) -> Report:
    """Builds the kernels of ``root/csrc``, leaves the libraries and ``build.json`` in ``out``, and says what it did.

    Everything happens in a private folder; each file then appears in ``out`` in one step. So two builds may run at once, and
    a running program keeps the library it has loaded.

    Raises:
        BuildError: ``AKD_EXT_BUILD`` is "cpu" or "cuda" and that kernel cannot be built.
    """
    report = Report(mode(), sources=sources.digest(root / "csrc"))
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="akd_ext-build-") as scratch:
        made = _build(root, Path(scratch), report)
        for name in LIBRARIES:
            if name in made:
                private = out / f".{name}.{os.getpid()}"
                shutil.copyfile(made[name], private)
                private.replace(out / name)
            else:  # an older build may have left one
                (out / name).unlink(missing_ok=True)
    report.write(out)
    print(report.line(), file=sys.stderr, flush=True)
    return report


def _build(root: Path, scratch: Path, report: Report) -> dict[str, Path]:
    compiler, torch = find_compiler.find(), find_torch.find()
    why_not = "AKD_EXT_BUILD=none" if report.mode == "none" else _why_no_compiler()
    if not why_not and torch is None:
        why_not = f"no torch >= {'.'.join(map(str, find_torch.OLDEST))} to build against"
    if why_not:
        report.cpu.why_not = report.cuda.why_not = why_not
        _fail_if_asked_for(report)
        return {}
    report.torch, report.torch_cuda = torch.version, torch.cuda
    toolkit = _find_toolkit(report, torch)
    made = {}
    with ExitStack() as stack:
        work = stack.enter_context(Build(root, scratch, compiler, torch))
        if toolkit:
            work.start_cuda(toolkit, report.cuda.archs)
        work.start_cpu()
        try:
            made["libakd_cpu.so"] = work.finish_cpu()
            report.cpu.built, report.cpu.compiler, report.cpu.flags = True, compiler.version, work.cxx_flags
        except BuildError as error:
            report.cpu.why_not = str(error)
            report.cuda.why_not = report.cuda.why_not or "it needs the cpu kernel, which declares the op"
            toolkit = None
        _fail_if_asked_for(report)
        try:
            if toolkit:
                made["libakd_cuda.so"] = work.finish_cuda(toolkit)
                report.cuda.built, report.cuda.compiler = True, f"nvcc {toolkit.version}"
                report.cuda.flags, report.cuda.cuda_version = NVCC_FLAGS, toolkit.version
        except BuildError as error:
            report.cuda.why_not = str(error)
            report.cuda.archs = []
            _fail_if_asked_for(report)
    return made


def _find_toolkit(report: Report, torch: Torch) -> Toolkit | None:
    """The toolkit to build the CUDA kernel with; None, and the reason in the report, if it is not to be built."""
    toolkit, why_not = None, ""
    if report.mode == "cpu":
        why_not = "AKD_EXT_BUILD=cpu"
    elif not sys.platform.startswith("linux"):
        why_not = f"the CUDA kernel is for Linux, this is {sys.platform}"
    elif report.mode == "auto" and not torch.cuda:
        # It could be: the headers needed are there. But this torch would never load it. "cuda" builds it, for a release.
        why_not = f"torch {torch.version} is built without CUDA"
    else:
        toolkit, why_not = find_cuda.find()
    if toolkit and torch.cuda and torch.cuda.split(".")[0] != toolkit.version.split(".")[0]:
        why_not = f"CUDA {toolkit.version} in {toolkit.root} has another major version than torch {torch.version}"
    if toolkit and not why_not:
        try:
            report.cuda.archs = archs.choose(toolkit.archs)
        except BuildError as error:
            why_not = str(error)
    report.cuda.why_not = why_not
    return None if why_not else toolkit


def _fail_if_asked_for(report: Report) -> None:
    if report.mode in ("cpu", "cuda") and report.cpu.why_not:
        raise BuildError(f"AKD_EXT_BUILD={report.mode}, but the cpu kernel cannot be built: {report.cpu.why_not}")
    if report.mode == "cuda" and report.cuda.why_not:
        raise BuildError(f"AKD_EXT_BUILD=cuda, but the cuda kernel cannot be built: {report.cuda.why_not}")


def _why_no_compiler() -> str:
    if sys.platform == "win32":
        return "Windows is not supported yet"
    if find_compiler.find() is None:
        tried = f"CXX={os.environ['CXX']}" if os.environ.get("CXX") else "g++, c++ and clang++"
        return f"no C++ compiler that runs: {tried} tried"
    return ""


if __name__ == "__main__":
    here = Path(__file__).resolve().parents[1]
    try:
        build(here, here / "akd_ext" / "lib")
    except BuildError as error:
        sys.exit(f"error: {error}")
