"""The name of the file in an error about it."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
    """What fails inside for want of room, rights or a working disk becomes an OSError that names ``path``.

    ``write`` itself names no file, the libraries written in Rust give the number in a text, and torch.save raises
    another error while it handles the one that matters.

    >>> with naming("results.json"):
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
        raise OSError(number, os.strerror(number), path) from error


def _system_error(error: BaseException | None) -> int | None:
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        if found := re.search(r"\(os error (\d+)\)", str(error)):
            return int(found[1])
        error = error.__cause__ or error.__context__
    return None
