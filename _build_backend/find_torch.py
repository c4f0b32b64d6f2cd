"""Finds the torch to build against: where it lies and which one it is, without importing it."""

from __future__ import annotations

import re
import site
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

# The first release whose stable ABI has what csrc/ uses (TORCH_TARGET_VERSION in compile.py says the same).
OLDEST = (2, 10)


@dataclass(frozen=True)
class Torch:
    root: Path
    version: str
    cuda: str  # "" in a build without CUDA (CPU only, ROCm)

    @property
    def include(self) -> Path:
        return self.root / "include"

    @property
    def lib(self) -> Path:
        return self.root / "lib"

    @property
    def usable(self) -> bool:
        numbers = re.match(r"(\d+)\.(\d+)", self.version)
        new_enough = numbers is not None and (int(numbers[1]), int(numbers[2])) >= OLDEST
        return new_enough and (self.include / "torch" / "csrc" / "stable" / "library.h").is_file()


def find(folders: Iterable[Path] | None = None) -> Torch | None:
    """The first usable torch in ``folders`` (default: ``places()``), or None."""
    for folder in places() if folders is None else folders:
        torch = _read(folder / "torch")
        if torch is not None and torch.usable:
            return torch
    return None


def places() -> list[Path]:
    """Where packages lie: first what this build may import, then the environment that pip installs into.

    pip hides the target environment from ``sys.path`` while it builds in isolation. But it runs the interpreter of
    that environment, so ``sysconfig`` and ``site`` still tell where it is. (``python -m build`` and uv build
    in an environment of their own, where torch has to be installed first: they ask ``backend`` for it.)
    """
    found = [*sys.path, sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    if site.ENABLE_USER_SITE:
        found.append(site.getusersitepackages())
    return [Path(folder) for folder in dict.fromkeys(found) if folder]


def _read(root: Path) -> Torch | None:
    try:
        text = (root / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    return Torch(root, _value(text, "__version__"), _value(text, "cuda"))


def _value(text: str, name: str) -> str:
    """The string that ``name`` is set to in torch/version.py: ``cuda: Optional[str] = '13.2'``."""
    match = re.search(rf"^{name}\b[^=\n]*=\s*['\"]([^'\"]*)['\"]", text, re.MULTILINE)
    return match[1] if match else ""
