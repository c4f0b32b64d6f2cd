"""Finds and loads the compiled kernels, and remembers why one is not there."""

from __future__ import annotations

import json
import os
import runpy
import warnings
from pathlib import Path

import torch

from akd_ext.version import __version__

from . import driver as _driver
from . import private_torch as _private

OP = "akd_ext::annealed_mse"
OWN = Path(__file__).parents[1] / "lib"  # beside the Python files

# The same text as csrc/schema.cpp, for installations without a compiled library; a test compares the two.
SCHEMA = (
    (
        "annealed_mse(Tensor student, Tensor teacher, Tensor? phi_tensor, float phi, Tensor? mask, "
        "Tensor? weight, Tensor? divisor, int reduction, bool with_gradient) -> (Tensor, Tensor)"
    ),
    "scale_(Tensor(a!) tensor, Tensor factor, float constant) -> ()",
)

_why_not: dict[str, str] = {}


def _find() -> Path:
    """Where the kernels are. A source tree without any takes those of the same akd_ext, if it is installed.

    In a clone Python finds the tree before the package that ``pip install .`` has just built.
    """
    if (OWN / "libakd_cpu.so").exists() or not _is_source_tree():
        return OWN
    from importlib import metadata  # a source tree only: it takes a while

    for installed in metadata.distributions(name="akd_ext"):
        folder = Path(str(installed.locate_file("akd_ext/lib")))
        if installed.version == __version__ and _has_our_schema(folder / "libakd_cpu.so"):
            return folder
    return OWN


def _is_source_tree() -> bool:
    return (OWN.parents[1] / "setup.py").exists()


def _has_our_schema(library: Path) -> bool:
    """Equal versions are not enough while one of the two is being changed; asked before loading, which cannot be undone."""
    try:
        content = library.read_bytes()
    except OSError:
        return False
    return all(schema.encode() in content for schema in SCHEMA)


FOLDER = _find()


def load() -> torch.library.Library:
    """Load what there is; define the ops in Python where no library did. Returns the handle for Python kernels.

    Raises:
        ImportError: the process holds the ops of another copy of akd_ext, or the library is of another version.
    """
    _refuse_another_copy()
    if _load("cpu"):
        _refuse_another_version()
        _warn_of_changed_sources()
        _load("cuda")
        return torch.library.Library("akd_ext", "FRAGMENT")
    _why_not["cuda"] = "libakd_cpu, which declares the ops, is not loaded"
    library = torch.library.Library("akd_ext", "DEF")
    for schema in SCHEMA:
        library.define(schema)
    return library


def _load(name: str) -> bool:
    path = FOLDER / f"libakd_{name}.so"
    if name == "cuda" and torch.version.cuda is None:
        _why_not[name] = "this torch is built without CUDA"
    elif not path.exists():
        _not_built(name)
    elif name == "cuda" and (reason := _driver.why_too_old(FOLDER / "build.json")):
        _why_not[name] = reason
        warnings.warn(f"akd_ext: the {name} kernels are off, plain PyTorch runs instead: {reason}", stacklevel=2)
    else:
        try:
            torch.ops.load_library(path)
            return True
        except (OSError, RuntimeError) as error:
            _why_not[name] = f"{path.name} does not load: {error}"
            warnings.warn(f"akd_ext: the {name} kernels are off, plain PyTorch runs instead: {error}", stacklevel=2)
    return False


def _not_built(name: str) -> None:
    """Remembers why; for the CPU kernel it also warns, unless somebody chose to build none."""
    mode, reason = _what_the_build_says(name)
    is_surprise = True
    if reason:
        _why_not[name] = f"not built: {reason}"
        is_surprise = mode != "none"
    elif _is_source_tree():
        _why_not[name] = (
            f"this is the source tree {OWN.parents[1]}, no kernel was built into it, and no akd_ext {__version__} "
            "with the same ops is installed: pip install -e ."
        )
    else:
        _why_not[name] = "not built (python -m akd_ext.info says what the build found)"
        is_surprise = False
    if name == "cpu" and is_surprise:
        warnings.warn(f"akd_ext: plain PyTorch runs, without kernels: {_why_not[name]}", stacklevel=3)


def _what_the_build_says(name: str) -> tuple[str, str]:
    """The build's mode and why it made no such kernel, from its build.json; "" for what is not known."""
    build = _read_build()
    try:
        return build["mode"], build[name]["why_not"]
    except (KeyError, TypeError):
        return "", ""


def _read_build() -> dict:
    try:
        return json.loads((FOLDER / "build.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _warn_of_changed_sources() -> None:
    """In a source tree the kernels may be those of before a change in csrc/, and nobody would notice."""
    tree = OWN.parents[1]
    hasher, built_of = tree / "_build_backend" / "sources.py", _read_build().get("sources")
    if not built_of or not _is_source_tree() or not hasher.exists():
        return
    if runpy.run_path(str(hasher))["digest"](tree / "csrc") != built_of:
        again = "python -m _build_backend.native" if FOLDER == OWN else "pip install ."
        warnings.warn(
            f"akd_ext: {tree / 'csrc'} has changed since the kernels in {FOLDER} were built: `{again}` in {tree} builds them anew",
            stacklevel=3,
        )


def _refuse_another_copy() -> None:
    # Declaring an op twice ends the process, without a word when it is a library that does.
    library = os.path.realpath(FOLDER / "libakd_cpu.so")
    if hasattr(torch.ops.akd_ext, "annealed_mse") and library not in torch.ops.loaded_libraries:
        raise ImportError(
            f"akd_ext in {OWN.parent}: this process already holds the ops of another akd_ext, or of this one before "
            "its kernels were built; restart Python"
        )


def _refuse_another_version() -> None:
    for schema in SCHEMA:
        op = getattr(torch.ops.akd_ext, schema.partition("(")[0], None)
        same = op is not None and _private.has_schema(op.default, f"akd_ext::{schema}")
        if same is None:
            same = _has_our_schema(FOLDER / "libakd_cpu.so")
        if not same:
            raise ImportError(
                f"{FOLDER / 'libakd_cpu.so'} is of another version of akd_ext than its Python files; install akd_ext again"
            )


def load_report() -> dict[str, str]:
    """Why a kernel is not active, by name (``"cpu"``, ``"cuda"``); active kernels do not appear.

    >>> isinstance(load_report(), dict)
    True
    """
    return dict(_why_not)


def backend(device_type: str) -> str:
    """Which implementation runs for tensors on ``device_type``: ``"cpu"``, ``"cuda"`` or ``"reference"``.

    Raises:
        TypeError: ``device_type`` is no string.

    >>> backend("cpu") in ("cpu", "reference")
    True
    """
    if not isinstance(device_type, str):
        raise TypeError(f"device_type is a {type(device_type).__name__}; accepted: a string such as 'cpu' or 'cuda'")
    if device_type not in ("cpu", "cuda"):
        return "reference"
    has_kernel = _private.has_kernel(OP, device_type.upper())
    if has_kernel is None:
        has_kernel = device_type not in _why_not
    return device_type if has_kernel else "reference"
