"""What a build found and did. It is shipped as ``akd_ext/lib/build.json``, because pip hides what a build prints."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path


class BuildError(Exception):
    """One sentence for the person who builds: what is missing and what to do about it."""


@dataclass
class Kernel:
    """One of the two kernel libraries."""

    built: bool = False
    why_not: str = ""
    compiler: str = ""
    flags: list[str] = field(default_factory=list)
    cuda_version: str = ""
    archs: list[str] = field(default_factory=list)


@dataclass
class Report:
    mode: str
    torch: str = ""
    torch_cuda: str = ""
    sources: str = ""  # see sources.py
    cpu: Kernel = field(default_factory=Kernel)
    cuda: Kernel = field(default_factory=Kernel)

    @property
    def any_built(self) -> bool:
        return self.cpu.built or self.cuda.built

    def line(self) -> str:
        """One line on what was built, and why not the rest."""
        return f"akd_ext build: {_words('cpu', self.cpu)}; {_words('cuda', self.cuda)}"

    def write(self, folder: Path) -> None:
        """Puts ``build.json`` into ``folder`` in one step: a second build may be writing the same file."""
        text = json.dumps({"line": self.line(), **asdict(self)}, indent=2) + "\n"
        private = folder / f".build.json.{os.getpid()}"
        private.write_text(text, encoding="utf-8")
        private.replace(folder / "build.json")


def _words(name: str, kernel: Kernel) -> str:
    if not kernel.built:
        return f"no {name} kernel ({kernel.why_not})"
    archs = f" for {' '.join(kernel.archs)}" if kernel.archs else ""
    return f"{name} kernel built ({kernel.compiler}{archs})"
