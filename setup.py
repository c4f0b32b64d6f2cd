"""Only what pyproject.toml cannot say. How to build: ``pip install .``; what happens then: ``_build_backend/backend.py``."""

import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).resolve().parent))
from _build_backend import commands

setup(
    distclass=commands.AkdDistribution,
    cmdclass={"build_py": commands.BuildPy, "bdist_wheel": commands.BdistWheel},
    options=commands.options(),
)
