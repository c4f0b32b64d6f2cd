"""The folder of a run: what every file in it is called, who may write there, whether the run is complete."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from akd_ext.filesystem import InUse, only_owner, remove_leftovers

from .system.errors import ConfigError

logger = logging.getLogger(__name__)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


class RunFolder:
    """``--output_dir`` of ``akd-train``.

    >>> str(RunFolder("runs/mine").results)
    'runs/mine/results.json'
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.results = self.path / "results.json"
        self.test = self.path / "test.json"  # of -test_only
        self.checkpoint = self.path / "checkpoint.pt"  # the best student, as torchdistill writes it
        self.hf_folder = self.path / "checkpoint"  # the same of text: a folder for from_pretrained
        self.hf_weights = self.hf_folder / "model.safetensors"
        self.best = self.path / "best.safetensors"
        self.last = self.path / "last.safetensors"
        self.log = self.path / "train.log"
        self.config = self.path / "config.yaml"
        self.curves = self.path / "curves.png"
        self.tensorboard = self.path / "tensorboard"
        self.resume = self.path / "resume"
        self.state = self.resume / "state.json"  # names the file with the tensors beside it

    def is_complete(self) -> bool:
        """Whether results of a finished run are there."""
        try:
            return json.loads(self.results.read_text(encoding="utf-8")).get("complete") is True
        except (OSError, ValueError):
            return False

    @contextlib.contextmanager
    def lock(self, program: str) -> Iterator[None]:
        """Holds the folder, see `run_lock`, and clears away what a killed process has left half written."""
        with run_lock(program, "--output_dir", self.path):
            remove_leftovers(self.path)
            yield


@contextlib.contextmanager
def run_lock(program: str, name: str, path: str | os.PathLike, lock: str | None = None) -> Iterator[None]:
    """Holds ``path`` for this process until the block ends, or the process does; a second run is told who has it.

    Where a file system has no locks, as some network shares, a warning says that nobody watches.

    Args:
        program: who asks, for the message to a second one.
        name: how the user named ``path``: a flag, or a key of the YAML.
        path: what is to be held.
        lock: the file to lock; None: ``.lock`` in the folder ``path``.

    Raises:
        ConfigError: another run holds it, or it cannot be written to.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(only_owner(lock or os.path.join(path, ".lock"), program))
        except InUse as error:
            raise ConfigError(
                f"{name}: '{path}' is in use by {error}; wait for it, end it, or write elsewhere"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise ConfigError(f"{name}: '{error.filename}' cannot be written to: {error.strerror}") from error
            logger.warning("%s: '%s' cannot be locked (%s): see to it that no other run writes there", name, path,
                           error.strerror)  # fmt: skip
        yield
