"""Finds the C++ compiler."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from dataclasses import dataclass, replace

from _build_backend.report import BuildError


@dataclass(frozen=True)
class Compiler:
    path: str
    version: str  # the first line of --version
    launcher: tuple[str, ...] = ()  # what stands before it in $CXX, such as ccache
    arguments: tuple[str, ...] = ()  # and behind it, such as -m64

    @property
    def command(self) -> list[str]:
        return [*self.launcher, self.path, *self.arguments]


def find() -> Compiler | None:
    """``$CXX`` if it is set, else g++, c++ or clang++ from PATH, the first one that runs; None if there is none.

    ``$CXX`` may be a command line, ``ccache g++ -m64``, or the path of one program, with blanks or without.
    """
    chosen = os.environ.get("CXX", "").strip()
    for words in _words(chosen) if chosen else (["g++"], ["c++"], ["clang++"]):
        found = [shutil.which(word) if not word.startswith("-") else None for word in words]
        # The last program is the compiler, the ones before it launch it.
        last = max((i for i, path in enumerate(found) if path), default=-1)
        if last < 0 or None in found[:last]:
            continue
        compiler = Compiler(found[last], "", tuple(found[:last]), tuple(words[last + 1 :]))
        version = first_line([*compiler.command, "--version"])
        if version:
            return replace(compiler, version=version)
    return None


def _words(chosen: str) -> list[list[str]]:
    try:
        return [[chosen], shlex.split(chosen)]
    except ValueError:  # a quote that is never closed
        return [[chosen]]


def flags(name: str) -> list[str]:
    """The words of ``$CXXFLAGS``, ``$LDFLAGS`` or ``$ARCHFLAGS``.

    Raises:
        BuildError: a quote that is never closed.
    """
    try:
        return shlex.split(os.environ.get(name, ""))
    except ValueError as error:
        raise BuildError(f"{name}={os.environ[name]!r}: {error}") from error


def first_line(command: list[str]) -> str:
    """The first line a command prints, or "" if it does not run or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = done.stdout.strip().splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else ""
