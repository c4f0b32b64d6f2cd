"""Files that are either the old ones or the new ones, never half of one, whatever kills the process."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from akd_ext._exclusive import sync
from akd_ext._naming import naming


@contextmanager
def replacing(path: str | os.PathLike, *, durable: bool = False) -> Iterator[str]:
    """Gives a temporary name beside ``path``; moves it onto ``path`` if the block ends well, else deletes it.

    ``durable`` waits for the disk, so that a power cut leaves one of the two files as well.

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
            if durable:
                sync(temporary)
            os.replace(temporary, path)
            if durable:
                sync(folder)
        finally:
            if os.path.exists(temporary):
                os.remove(temporary)


def write_text(path: str | os.PathLike, text: str, *, durable: bool = False) -> None:
    with replacing(path, durable=durable) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(text)


def remove_leftovers(folder: str | os.PathLike) -> None:
    """Deletes what `replacing` could not, because its process was killed. Nobody else may be writing there."""
    for name in os.listdir(folder):
        if name.startswith(".") and name.endswith(".tmp"):
            os.remove(os.path.join(folder, name))


def public_mode() -> int:
    """The permissions that a file gets when a program simply opens it for writing."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
