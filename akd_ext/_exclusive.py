"""One process writes a file while others wait for it, and whatever is killed leaves nothing that looks like the file."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections.abc import Iterator
from typing import BinaryIO

from akd_ext._naming import naming

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger("akd_ext.logit_cache")
_SUFFIX = ".akd_part"
_held: set[BinaryIO] = set()


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
        with naming(path):
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        sync(folder)
    finally:
        _unlock(file)


@contextlib.contextmanager
def only_owner(path: str, about: str) -> Iterator[None]:
    """Holds the lock of the file ``path``, which says ``about``, and removes it in the end.

    The lock goes with the process, however it ends; a file that is left over is no lock.

    Raises:
        BlockingIOError: another process holds it; the message is what that one said about itself.
        OSError: the folder cannot be written to, or the system has no such locks.
    """
    try:
        file = _locked(path, wait=False)
    except BlockingIOError as error:
        raise BlockingIOError(error.errno, _read(path)) from None
    try:
        with naming(path):
            file.truncate(0)
            file.write(about.encode())
            file.flush()
        yield
    finally:
        _unlock(file)


def _read(path: str) -> str:
    for _ in range(20):  # its owner may be about to write it
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
            if text := file.read().decode(errors="replace"):
                return text
        time.sleep(0.05)
    return "another process"


def _locked(path: str, wait: bool = True) -> BinaryIO:
    if fcntl is None:
        raise OSError(errno.ENOSYS, "this system has no flock, so processes cannot share files", path)
    while True:
        file = open(path, "r+b", opener=lambda path, flags: os.open(path, flags | os.O_CREAT, 0o666))
        try:
            with naming(path):
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if not wait:
                        raise
                    logger.info("waiting for the process that writes %s", path.removesuffix(_SUFFIX))
                    fcntl.flock(file, fcntl.LOCK_EX)
            if _is_at(file, path):  # else its owner finished or removed it while this process waited
                _held.add(file)
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def _unlock(file: BinaryIO) -> None:
    if file.closed:  # this is a forked worker, and the lock its parent's
        return
    if _is_at(file, file.name):
        os.unlink(file.name)
    _held.discard(file)
    fcntl.flock(file, fcntl.LOCK_UN)
    with contextlib.suppress(OSError):  # what could not be written cannot be written now, and has been reported
        file.close()


def _leave_to_parent() -> None:
    """In a forked worker: a lock lasts until everybody has closed its file, so a worker would keep it for a dead parent."""
    for file in _held:
        file.close()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


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


def sync(path: str | os.PathLike) -> None:
    """Waits until a file's content, or a folder's names, are on the disk and survive a power cut as well."""
    if os.path.isdir(path) and os.name != "posix":
        return  # only there can a folder be opened
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
