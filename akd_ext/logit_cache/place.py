"""Where a cache lies: found by its identity, or built there by one process while others wait; opened, or refused."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import BinaryIO

from akd_ext.filesystem import build_once

from .file import SUFFIX, Kind, LogitCacheError, MappedFile, seal, unusable
from .fingerprint import as_json, differences, short_name

logger = logging.getLogger(__name__)


def find_or_build(place: str | os.PathLike, kind: Kind, identity: dict, write: Callable[[BinaryIO], None]) -> str:
    """The path of the cache of ``identity``, which exists then.

    Args:
        place: a file, if it ends in ``.safetensors``, or a folder.
        write: fills the empty file that it is given, but for the checksum.
    """
    path = os.path.expanduser(os.fspath(place))
    if not path.endswith(SUFFIX):
        path = os.path.join(path, short_name(identity) + SUFFIX)
    if not os.path.exists(path):
        _log_nearest(os.path.dirname(path), kind, identity)
        with build_once(path, lambda: logger.info("waiting for the process that writes %s", path)) as file:
            if file is not None:
                write(file)
                seal(file)
    return path


def opened(path: str | os.PathLike, kind: Kind, identity: dict | None, verify: bool) -> MappedFile:
    """The file ``path``; LogitCacheError if it is damaged, or not of ``identity`` (None: any)."""
    file = MappedFile(os.fspath(path), kind)
    different = [] if identity is None else differences(file.identity, as_json(identity))
    if different:
        raise unusable(file.path, f"it holds the {kind.holds} of something else: {'; '.join(different)}")
    if verify and not file.is_unchanged():
        raise unusable(file.path, "its content has changed since it was written (the checksum differs)")
    return file


def _log_nearest(folder: str, kind: Kind, identity: dict) -> None:
    """Says why what is there does not fit: a cache that is built again for no visible reason is a riddle."""
    found: list[tuple[str, list[str]]] = []
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        if name.endswith(SUFFIX):
            try:
                found.append((name, differences(MappedFile(os.path.join(folder, name), kind).identity, identity)))
            except (LogitCacheError, OSError):
                continue
    if found:
        name, different = min(found, key=lambda pair: len(pair[1]))
        logger.info("no teacher %s in %s fit; nearest is %s, but %s", kind.holds, folder, name, "; ".join(different))
