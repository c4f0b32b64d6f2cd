"""Runs Python in a fresh process that sees one certain copy of akd_ext."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import akd_ext

PACKAGE = Path(akd_ext.__file__).parent


def run(arguments, folder=PACKAGE.parent, timeout=300, **environment):
    """``python *arguments`` with ``folder`` first on the path; returns stdout, raises with both outputs on failure."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if done.returncode != 0:
        raise AssertionError(f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def copy_of_the_package(folder, with_library):
    """A copy of the library (not of the plug-in, the adapters and the commands) in ``folder``."""
    target = Path(folder) / "akd_ext"
    for inside in (".", "op", "logit_cache"):
        (target / inside).mkdir(parents=True)
        for source in (PACKAGE / inside).glob("*.py"):
            shutil.copy(source, target / inside)
    (target / "lib").mkdir()
    if with_library:
        for source in (PACKAGE / "lib").glob("*.so"):
            shutil.copy(source, target / "lib")
    return Path(folder)
