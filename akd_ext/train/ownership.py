"""One run at a time writes into a folder; a second one is told who has it."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import time
from collections.abc import Iterator

from akd_ext._exclusive import only_owner
from akd_ext.train.system.errors import ConfigError

logger = logging.getLogger(__name__)
LOCK = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextlib.contextmanager
def only_run(program: str, place: str, path: str | os.PathLike, lock: str | None = None) -> Iterator[None]:
    """Holds ``path`` for this process until the block ends, or the process does.

    The lock is the system's (flock), so what a killed run leaves behind locks nothing. Where a file system has none, as
    some network shares, a warning says that nobody watches.

    Args:
        program: who asks, for the message to a second one.
        place: where the user named ``path``: a flag, or a key of the YAML.
        path: what is to be held.
        lock: the file to lock; None: ``.lock`` in the folder ``path``.

    Raises:
        ConfigError: another run holds it, or it cannot be written to.
    """
    lock = lock or os.path.join(path, LOCK)
    about = f"{program}, process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}"
    with contextlib.ExitStack() as stack:
        try:
            os.makedirs(os.path.dirname(lock) or ".", exist_ok=True)
            stack.enter_context(only_owner(lock, about))
        except BlockingIOError as error:
            raise ConfigError(
                f"{place}: '{path}' is in use by {error.strerror}; wait for it, end it, or write elsewhere"
            ) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise ConfigError(f"{place}: '{error.filename}' cannot be written to: {error.strerror}") from error
            logger.warning("%s: '%s' cannot be locked (%s): see to it that no other run writes there", place, path,
                           error.strerror)  # fmt: skip
        yield
