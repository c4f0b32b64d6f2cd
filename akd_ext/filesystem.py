"""Files that are whole or not there, errors that name them, and locks that end with their process."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout


class InUse(Exception):
    """Another process holds a lock; the text is what that one said about itself."""


@contextlib.contextmanager
def errors_name_path(path: str | os.PathLike) -> Iterator[None]:
    """What fails inside for want of room, rights or a working disk becomes an OSError that names ``path``.

    ``write`` itself names no file, the libraries written in Rust give the number in a text, and torch.save raises
    another error while it handles the one that matters.

    >>> with errors_name_path("results.json"):
    ...     raise OSError(28, "No space left on device")
    Traceback (most recent call last):
    OSError: [Errno 28] No space left on device: 'results.json'
    """
    try:
        yield
    except Exception as error:
        number = _system_error(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), os.fspath(path)) from error


def _system_error(error: BaseException | None) -> int | None:
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        if found := re.search(r"\(os error (\d+)\)", str(error)):
            return int(found[1])
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def replacing(path: str | os.PathLike, *, durable: bool = False) -> Iterator[str]:
    """Gives a temporary name beside ``path``; moves it onto ``path`` if the block ends well, else deletes it.

    ``durable`` waits for the disk, so that a power cut leaves one of the two files as well.

    Raises:
        OSError: it cannot be written; the error names ``path``.
    """
    path = os.fspath(path)
    folder = os.path.dirname(path) or "."
    with errors_name_path(path):
        os.makedirs(folder, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{os.path.basename(path)}.", suffix=".tmp", dir=folder)
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
            Path(temporary).unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str, *, durable: bool = False) -> None:
    with replacing(path, durable=durable) as temporary:
        Path(temporary).write_text(text, encoding="utf-8")


def remove_leftovers(folder: str | os.PathLike, of: str = "") -> None:
    """Deletes what `replacing` could not, because its process was killed. Nobody else may be writing there.

    Args:
        of: the name of one file; leftovers of others stay.
    """
    for leftover in Path(folder).glob(f".{of}*.tmp"):
        leftover.unlink(missing_ok=True)


def public_mode() -> int:
    """The permissions that a file gets when a program simply opens it for writing."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def sync(path: str | os.PathLike) -> None:
    """Waits until a file's content, or a folder's names, are on the disk and survive a power cut as well."""
    if os.path.isdir(path) and os.name != "posix":
        return  # only there can a folder be opened
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def only_owner(lock: str | os.PathLike, program: str) -> Iterator[None]:
    """Holds the file ``lock`` until the block or the process ends; a file that is left over locks nothing.

    Raises:
        InUse: another process holds it.
        OSError: the folder cannot be written to, or its file system has no locks.
    """
    lock = os.fspath(lock)
    owner = Path(f"{lock}.owner")
    held = _acquire(lock, wait=False)
    if held is None:
        raise InUse(_read(owner))
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        write_text(owner, f"{program}, process {os.getpid()} on {socket.gethostname()}, since {since}")
        yield
    finally:
        owner.unlink(missing_ok=True)
        _release(held)


@contextlib.contextmanager
def build_once(path: str | os.PathLike, on_wait: Callable[[], None]) -> Iterator[BinaryIO | None]:
    """Gives an empty file, which becomes ``path`` when the block ends well; None if ``path`` was made meanwhile.

    Of several processes one builds and the others wait; when the builder dies, the next one builds.

    Args:
        path: the file.
        on_wait: called if another process is building.

    Raises:
        OSError: the folder cannot be written to, or its file system has no locks.
    """
    path = os.fspath(path)
    folder, name = os.path.split(path)
    lock = os.path.join(folder, f".{name}.lock")
    held = _acquire(lock, wait=False)
    if held is None:
        on_wait()
        held = _acquire(lock, wait=True)
    try:
        if os.path.exists(path):
            yield None
            return
        _remove_dead_builders(folder or ".")
        remove_leftovers(folder or ".", of=name)
        with replacing(path, durable=True) as temporary, open(temporary, "r+b") as file:
            yield file
            file.flush()
    finally:
        _release(held)


def _remove_dead_builders(folder: str) -> None:
    """A killed builder leaves its lock and what it had written; whoever gets the lock may remove both."""
    for lock in Path(folder).glob(".*.lock"):
        held = _acquire(str(lock), wait=False)
        if held is not None:
            remove_leftovers(folder, of=lock.name[1:].removesuffix(".lock"))
            _release(held)


def _read(owner: Path) -> str:
    for _ in range(20):  # it may be about to write it
        with contextlib.suppress(FileNotFoundError):
            return owner.read_text(encoding="utf-8")
        time.sleep(0.05)
    return "another process"


def _acquire(lock: str, *, wait: bool) -> FileLock | None:
    """The lock; None if another process holds it."""
    os.makedirs(os.path.dirname(lock) or ".", exist_ok=True)
    with errors_name_path(lock):
        held = FileLock(lock, mode=public_mode())  # not a private file: several users may share a folder
        with contextlib.suppress(Timeout):
            held.acquire(timeout=-1 if wait else 0)
            return held
    return None


def _release(held: FileLock) -> None:
    if held.is_locked:  # else this is a forked worker, and the lock its parent's
        Path(held.lock_file).unlink(missing_ok=True)  # whoever waits for a removed file takes a new one
        held.release()
