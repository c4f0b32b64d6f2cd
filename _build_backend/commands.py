"""What setup.py adds to setuptools: the built libraries and the configs go into the wheel, and the wheel gets its right tag."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import Distribution
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parents[1]
# Source folder -> folder in the installed package. akd_ext/reproduce/recipes.py finds either.
CONFIGS = ROOT / "torchdistill_configs", "akd_ext/torchdistill_configs"

# Where backend.py has put the compiled libraries; None: nothing compiled (an sdist, metadata, "setup.py" by hand).
libraries: Path | None = None
# Where setuptools may write; None: in the source tree.
scratch: Path | None = None


def options() -> dict:
    """Moves what setuptools leaves in the source tree (build/, *.egg-info) to a private folder: builds may run in parallel."""
    if scratch is None:
        return {}
    return {"build": {"build_base": str(scratch / "build")}, "egg_info": {"egg_base": str(scratch)}}


class AkdDistribution(Distribution):
    def has_ext_modules(self) -> bool:
        return libraries is not None and any(libraries.glob("*.so"))


class BuildPy(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:  # -e uses the folders of the source tree
            for source, target in self._extra():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)

    def _extra(self) -> list[tuple[Path, Path]]:
        built = Path(self.build_lib)
        pairs = [(f, built / "akd_ext" / "lib" / f.name) for f in sorted(libraries.glob("*"))] if libraries else []
        folder, inside = CONFIGS
        return pairs + [(f, built / inside / f.relative_to(folder)) for f in sorted(folder.rglob("*.yaml"))]

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        extra = [] if self.editable_mode else [str(target) for _, target in self._extra()]
        return [*super().get_outputs(include_bytecode), *extra]


class BdistWheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        # The libraries hold no Python: any version loads them.
        return "py3", "none", super().get_tag()[2]
