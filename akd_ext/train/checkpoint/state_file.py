"""The resumable state of a run on disk. It is always whole, and nothing in it is executed.

``<output_dir>/resume`` holds ``state.json`` and the file with the tensors that it names. A state counts from the moment
``state.json`` is renamed into its place; before that, the state before it does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from akd_ext.filesystem import replacing, sync, write_text
from akd_ext.logit_cache.fingerprint import as_json, differences
from akd_ext.train.run_folder import RunFolder
from akd_ext.train.system.errors import ConfigError, one_sentence

FORMAT = 3
_HELP = "--overwrite starts over"
_OURS = re.compile(r"state-.*|\..*\.tmp")


@dataclass(frozen=True)
class SavedState:
    """What ``state.json`` says.

    Attributes:
        identity: what the run is, as given to `StateFile.write`.
        where: stage, epoch (how many are done), step and what else tells a person how far it has come.
        complete: the run is finished; there is nothing to go on with.
        file: name and SHA-256 of the file with the tensors; empty when the run is complete.
    """

    identity: dict[str, Any]
    where: dict[str, Any]
    complete: bool
    file: dict[str, str]


class StateFile:
    """The state of the run in ``folder``, of which there is one at a time.

    Raises:
        ConfigError: from every method that reads: a file is missing, cut off, was changed, or is of another version.
        OSError: from every method that writes.
    """

    def __init__(self, folder: RunFolder):
        self.folder, self._head = folder.resume, folder.state

    def read(self) -> SavedState | None:
        """The state; None if there is none."""
        try:
            head = json.loads(self._head.read_text(encoding="utf-8"))
            checksum = head.pop("sha256")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ConfigError(f"'{self._head}' is cut off, or no state of akd-train; {_HELP}") from error
        if checksum != _sha256_of(head):
            raise ConfigError(f"'{self._head}' was changed after it was written (its checksum differs); {_HELP}")
        if head.pop("format") != FORMAT:
            raise ConfigError(
                f"'{self._head}' was written by another version of akd_ext (expected: format {FORMAT}); {_HELP}"
            )
        return SavedState(**head)

    def load(self, saved: SavedState) -> dict[str, Any]:
        """The tensors and numbers of a state, on the CPU, after a look at all bytes of the file."""
        path = self.folder / saved.file["name"]
        try:
            found = _sha256(path)
        except OSError as error:
            raise ConfigError(f"'{path}', which '{self._head}' names, cannot be read: {error.strerror}; "
                              f"{_HELP}") from error  # fmt: skip
        if found != saved.file["sha256"]:
            raise ConfigError(
                f"'{path}' is cut off or was changed: its SHA-256 is {found[:16]}..., expected is "
                f"{saved.file['sha256'][:16]}...; {_HELP}"
            )
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ConfigError(f"'{path}' cannot be read as a state: {one_sentence(error)}; {_HELP}") from error

    def write(self, identity: dict, where: dict, state: dict[str, Any]) -> None:
        """Puts a state in the place of the one before.

        Args:
            identity: what the run is; see `refuse_another`.
            where: how far it is; ``epoch`` and ``step`` name the file.
            state: tensors, numbers and text in dicts, lists and tuples.
        """
        self._make_folder()
        path = self.folder / f"state-{where['epoch']}-{where['step']}.pt"
        with replacing(path, durable=True) as temporary, open(temporary, "wb") as file:
            torch.save(state, file)
        self._commit(identity, where, False, {"name": path.name, "sha256": _sha256(path)})

    def finish(self, identity: dict, where: dict) -> None:
        """Says that the run is complete; its state is no longer needed."""
        self._make_folder()
        self._commit(identity, where, True, {})

    def clear(self) -> None:
        """Removes the state."""
        self._head.unlink(missing_ok=True)  # first: without it, nothing that a kill leaves counts
        if self.folder.is_dir():
            self._remove_but(set())
            with contextlib.suppress(OSError):  # somebody's own files are there
                self.folder.rmdir()

    def _make_folder(self) -> None:
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True)
            sync(self.folder.parent)

    def _commit(self, identity: dict, where: dict, complete: bool, file: dict[str, str]) -> None:
        head = as_json({"format": FORMAT, "complete": complete, "where": where, "identity": identity, "file": file})
        write_text(self._head, json.dumps({**head, "sha256": _sha256_of(head)}, indent=1) + "\n", durable=True)
        self._remove_but({self._head.name, file.get("name")})

    def _remove_but(self, names: set[str | None]) -> None:
        """Removes what this class has written, and nothing of anybody else's."""
        for path in self.folder.iterdir():
            if path.name not in names and _OURS.fullmatch(path.name):
                path.unlink()


def refuse_another(saved: SavedState, identity: dict, place: str) -> None:
    """Raises ConfigError if ``saved`` is the state of another run, with what differs."""
    different = differences(saved.identity, as_json(identity))
    if different:
        more = f"; and {len(different) - 3} more" if len(different) > 3 else ""
        what = "a finished run" if saved.complete else "the state of a run"
        raise ConfigError(
            f"--output_dir: '{place}' holds {what} that was made otherwise: {'; '.join(different[:3])}{more}; give "
            "the same command to go on, another --output_dir, or --overwrite to lose what is there"
        )


def _sha256_of(head: dict) -> str:
    return hashlib.sha256(json.dumps(head, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        sha = hashlib.sha256()
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()
