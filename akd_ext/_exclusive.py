"""One process writes a file while others wait for it, and whatever is killed leaves nothing that looks like the file."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger("akd_ext.logit_cache")
_SUFFIX = ".akd_part"


@contextlib.contextmanager
def exclusive_writer(path: str) -> Iterator[BinaryIO | None]:
    """Gives an empty file, which becomes ``path`` when the block ends well; None if ``path`` was made meanwhile.

    The unfinished file is its own lock (flock): the system opens it when its owner dies, however that happens, and the
    next one who locks it starts it afresh.

    Raises:
        OSError: the folder cannot be written to, or the system has no such locks.
    """
    part, folder = path + _SUFFIX, os.path.dirname(path) or "."
    os.makedirs(folder, exist_ok=True)
    file = _locked(part)
    try:
        if os.path.exists(path):
            yield None
            return
        _remove_leftovers(folder)
        file.truncate(0)
        yield file
        file.flush()
        os.fsync(file.fileno())
        os.replace(part, path)
        _sync(folder)
    finally:
        if _is_at(file, part):
            os.unlink(part)
        fcntl.flock(file, fcntl.LOCK_UN)  # closing is not enough: a forked worker may hold the file open, too
        file.close()


def _locked(part: str) -> BinaryIO:
    if fcntl is None:
        raise OSError(f"{part}: this system has no flock, so processes cannot share a file; keep the cache in memory")
    while True:
        file = open(os.open(part, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("waiting for the process that writes %s", part.removesuffix(_SUFFIX))
                fcntl.flock(file, fcntl.LOCK_EX)
            if _is_at(file, part):  # else its owner finished or removed it while this process waited
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def _remove_leftovers(folder: str) -> None:
    """Unfinished files that nobody holds a lock on: their writers are dead."""
    for name in os.listdir(folder):
        part = os.path.join(folder, name)
        if not name.endswith(_SUFFIX):
            continue
        with contextlib.suppress(OSError), open(part, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(file, part):
                os.unlink(part)


def _is_at(file: BinaryIO, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _sync(folder: str) -> None:
    """Makes the new name survive a power cut as well."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
