"""Files that are either the old ones or the new ones, never half of one, whatever kills the process."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from akd_ext._naming import naming


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[str]:
    """Gives a temporary name beside ``path``; moves it onto ``path`` if the block ends well, else deletes it.

    Raises:
        OSError: it cannot be written; the error names ``path``.
    """
    path = os.fspath(path)
    folder = os.path.dirname(path) or "."
    with naming(path):
        os.makedirs(folder, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix="." + os.path.basename(path) + ".", suffix=".tmp", dir=folder)
        os.close(handle)
        try:
            yield temporary
            os.chmod(temporary, public_mode())  # mkstemp makes private files; results are for everybody
            os.replace(temporary, path)
        finally:
            if os.path.exists(temporary):
                os.remove(temporary)


def write_text(path: str | os.PathLike, text: str) -> None:
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(text)


def public_mode() -> int:
    """The permissions that a file gets when a program simply opens it for writing."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
