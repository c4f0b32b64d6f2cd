"""Which sources a build was made of: one number for all of csrc/, which build.json keeps.

In a source tree ``akd_ext`` runs this file as well, and compares: a kernel from before a change would else run without a word.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

COMPILED = (".cpp", ".cu", ".cuh", ".h", ".inc")


def digest(csrc: Path) -> str:
    """SHA-256 over names and contents of all that is compiled from ``csrc``; "" where there is none of it."""
    sha, found = hashlib.sha256(), False
    for path in sorted(csrc.rglob("*")):
        if path.suffix in COMPILED:
            found = True
            sha.update(f"{path.relative_to(csrc).as_posix()}\0{path.stat().st_size}\0".encode())
            sha.update(path.read_bytes())
    return sha.hexdigest() if found else ""
