"""For the packaging tests: the build backend as modules, and fake tools that stand where real ones would."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from places import ROOT


def import_backend() -> None:
    """Makes ``import _build_backend`` work without putting the source tree, and its akd_ext, on ``sys.path``."""
    folder = ROOT / "_build_backend"
    spec = importlib.util.spec_from_file_location(
        "_build_backend", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    sys.modules["_build_backend"] = importlib.util.module_from_spec(spec)


def script(path: Path, body: str) -> Path:
    """A shell script at ``path``. It may use shell built-ins only: PATH is empty in these tests."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


# Writes its own name into the file after -o, as a compiler writes a program.
MAKES_THE_FILE = 'while [ "$1" ]; do [ "$1" = -o ] && echo "$0" > "$2"; shift; done; exit 0'


def compiler(path: Path, body: str = MAKES_THE_FILE) -> Path:
    return script(path, f'[ "$1" = --version ] && echo "fake 1.0" && exit 0\n{body}')


def toolkit(root: Path, version: str = "13.0", archs: str = "80 90 100", *, headers: bool = True) -> Path:
    """A CUDA toolkit in ``root``; returns its nvcc."""
    if headers:
        (root / "include").mkdir(parents=True)
        (root / "include" / "cuda_runtime.h").touch()
    listed = " ".join(f"compute_{arch}" for arch in archs.split())
    return script(
        root / "bin" / "nvcc",
        f"""case "$1" in
--version) echo "Cuda compilation tools, release {version}, V{version}.1"; exit 0;;
--list-gpu-arch) echo "{listed}"; exit 0;;
--dryrun) echo "#\\$ TOP={root}/bin/.." >&2; exit 0;;
esac
{MAKES_THE_FILE}""",
    )


def torch(folder: Path, version: str = "2.13.0+cu130", cuda: str | None = "13.0", *, headers: bool = True) -> Path:
    """A torch in the folder of packages ``folder``; returns ``folder``."""
    root = folder / "torch"
    (root / "lib").mkdir(parents=True)
    (root / "version.py").write_text(
        f"from typing import Optional\n__version__ = {version!r}\ndebug = False\ncuda: Optional[str] = {cuda!r}\n"
    )
    if headers:
        header = root / "include" / "torch" / "csrc" / "stable" / "library.h"
        header.parent.mkdir(parents=True)
        header.touch()
    return folder
