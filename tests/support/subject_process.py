"""Runs Python in a fresh process that sees one certain copy of akd_ext."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from places import ROOT, SUPPORT

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


def run_op_tests(names, folder, *options, timeout=300, **environment):
    """pytest with these files of tests/op on the copy of the package in ``folder``; at least one test must pass."""
    settings = [
        "--override-ini",
        "addopts=",
        "--override-ini",
        f"pythonpath={SUPPORT}",
        "--rootdir",
        str(ROOT / "tests"),
    ]
    files = [str(ROOT / "tests" / "op" / name) for name in names]
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", *settings, *options, *files]
    assert " passed" in run(command, folder, timeout, **environment)


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
