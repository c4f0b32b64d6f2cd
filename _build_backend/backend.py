"""The PEP 517 and PEP 660 hooks: setuptools, with the kernels compiled first.

With torch in the target environment, a build uses that one and asks for no other (see ``find_torch.places``).
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import build_sdist  # noqa: F401 -- a hook, found by name

from _build_backend import commands, find_torch, native
from _build_backend.report import BuildError

TORCH = f"torch>={'.'.join(map(str, find_torch.OLDEST))}"


def get_requires_for_build_sdist(config_settings=None) -> list[str]:
    return []


def get_requires_for_build_wheel(config_settings=None) -> list[str]:
    with _plain_errors():
        if not native.wants_torch():
            return []
        # pip shows it with -v only; docs/installation.md says what is seen without.
        print(f"akd_ext build: no {TORCH} here to compile against: one is fetched for the build alone, gigabytes; "
              "`pip install torch` first spares that", file=sys.stderr, flush=True)  # fmt: skip
        return [TORCH]


get_requires_for_build_editable = get_requires_for_build_wheel


def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None) -> str:
    with _private_folder():
        return build_meta.prepare_metadata_for_build_wheel(metadata_directory, config_settings)


def prepare_metadata_for_build_editable(metadata_directory, config_settings=None) -> str:
    with _private_folder():
        return build_meta.prepare_metadata_for_build_editable(metadata_directory, config_settings)


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None) -> str:
    with _plain_errors(), _private_folder() as folder:
        commands.libraries = folder / "lib"
        native.build(commands.ROOT, commands.libraries)
        return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None) -> str:
    with _plain_errors(), _private_folder():
        commands.libraries = commands.ROOT / "akd_ext" / "lib"
        native.build(commands.ROOT, commands.libraries)
        return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)


@contextmanager
def _private_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="akd_ext-wheel-") as folder:
        commands.scratch = Path(folder)
        yield commands.scratch


@contextmanager
def _plain_errors() -> Iterator[None]:
    """One sentence instead of a traceback through pip, setuptools and this file."""
    try:
        yield
    except BuildError as error:
        raise SystemExit(f"akd_ext: {error}") from None
