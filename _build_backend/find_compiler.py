"""Finds the C++ compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass


@dataclass(frozen=True)
class Compiler:
    path: str
    version: str  # the first line of --version


def find() -> Compiler | None:
    """``$CXX`` if it is set, else g++, c++ or clang++ from PATH, the first one that runs; None if there is none."""
    chosen = os.environ.get("CXX")
    for name in [chosen] if chosen else ["g++", "c++", "clang++"]:
        path = shutil.which(name)
        version = first_line([path, "--version"]) if path else ""
        if path and version:
            return Compiler(path, version)
    return None


def first_line(command: list[str]) -> str:
    """The first line a command prints, or "" if it does not run or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = done.stdout.strip().splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else ""
