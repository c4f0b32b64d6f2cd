"""An environment with pip, torch and what torch itself needs, and nothing else: torch is linked, not fetched again."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path


def requirements_of(name: str) -> set[str]:
    """The distributions here that ``name`` needs, with those that they need, and itself; without extras."""
    found, waiting = set(), [name]
    while waiting:
        one = canonical(waiting.pop())
        try:
            needs = importlib.metadata.requires(one) or [] if one not in found else []
        except importlib.metadata.PackageNotFoundError:  # of another system, or another Python
            continue
        found.add(one)
        # An extra's name stands behind the marker; `cuda-toolkit[cublas]` asks for all that torch links to.
        waiting += [re.match(r"[\w.-]+", need)[0] for need in needs if "extra ==" not in need or one == "cuda-toolkit"]
    return found


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def top_level(name: str) -> set[str]:
    """What a distribution has put into site-packages: packages, modules, its metadata."""
    files = importlib.metadata.distribution(name).files or ()
    return {file.parts[0] for file in files if file.parts[0] not in ("..", "__pycache__")}


class CleanEnvironment:
    """``folder/environment``. Its torch lies in ``folder/torch``, outside of it, where pip finds it and changes nothing."""

    def __init__(self, folder: Path):
        self.folder = folder / "environment"
        subprocess.run([sys.executable, "-m", "venv", str(self.folder)], check=True)
        self.bin = self.folder / "bin"
        linked = folder / "torch"
        linked.mkdir()
        for name in requirements_of("torch"):
            home = Path(importlib.metadata.distribution(name).locate_file(""))
            for entry in top_level(name):
                if (home / entry).exists() and not (linked / entry).exists():
                    (linked / entry).symlink_to(home / entry)
        (packages,) = self.folder.glob("lib/python*/site-packages")
        (packages / "torch_is_here.pth").write_text(f"{linked}\n")

    def run(self, line: str, cwd: Path, **variables: str) -> str:
        """A line of shell with this environment's commands first; AssertionError with what it said if it fails."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AKD_EXT_", "PYTHON"))}
        path = f"{self.bin}{os.pathsep}{os.environ['PATH']}"
        environment = {**kept, "PATH": path, "VIRTUAL_ENV": str(self.folder), **variables}
        done = subprocess.run(["bash", "-ec", line], cwd=cwd, env=environment, text=True, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stdout[-5000:]}"
        return done.stdout
