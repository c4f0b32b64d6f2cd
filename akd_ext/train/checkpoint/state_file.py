"""The resumable state of a run on disk. It is always whole, and nothing in it is executed.

``<output_dir>/resume`` holds ``state.json`` and the files it names: one with the tensors of the moment, and links to
the checkpoints that the run may still need, as they were then. A state counts from the moment ``state.json`` is
renamed into its place; before that, the state before it does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from typing import Any

import torch

from akd_ext.filesystem import replacing, sync, write_text
from akd_ext.logit_cache.fingerprint import as_json, differences
from akd_ext.train.system.errors import ConfigError, one_sentence

FOLDER, HEAD, FORMAT = "resume", "state.json", 1
_HELP = "--overwrite starts over"
_OURS = re.compile(r"(state|stage|best)-.*|\..*\.tmp")


@dataclass(frozen=True)
class SavedState:
    """What ``state.json`` says.

    Attributes:
        identity: what the run is, as given to `StateFile.write`.
        where: stage, epoch, step and what else tells a person how far it has come.
        complete: the run is finished; there is nothing to go on with.
        files: name and SHA-256 of each file, by role.
    """

    identity: dict[str, Any]
    where: dict[str, Any]
    complete: bool
    files: dict[str, dict[str, str]]


class StateFile:
    """The states in ``output_dir``, of which there is one at a time.

    Raises:
        ConfigError: from every method that reads: a file is missing, cut off, was changed, or is of another version.
        OSError: from every method that writes.
    """

    def __init__(self, output_dir: str):
        self.folder = os.path.join(output_dir, FOLDER)
        self._head = os.path.join(self.folder, HEAD)
        self._kept: dict[str, tuple[Any, dict[str, str]]] = {}

    def read(self) -> SavedState | None:
        """The state; None if there is none."""
        try:
            with open(self._head, encoding="utf-8") as file:
                head = json.load(file)
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
        """The tensors and numbers of a state, on the CPU."""
        path = self.path(saved, "state")
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ConfigError(f"'{path}' cannot be read as a state: {one_sentence(error)}; {_HELP}") from error

    def path(self, saved: SavedState, role: str) -> str:
        """The file in that role, after a look at all of its bytes."""
        entry = saved.files[role]
        path = os.path.join(self.folder, entry["name"])
        try:
            found = _sha256(path)
        except OSError as error:
            raise ConfigError(f"'{path}', which '{self._head}' names, cannot be read: {error.strerror}; "
                              f"{_HELP}") from error  # fmt: skip
        if found != entry["sha256"]:
            raise ConfigError(
                f"'{path}' is cut off or was changed: its SHA-256 is {found[:16]}..., expected is "
                f"{entry['sha256'][:16]}...; {_HELP}"
            )
        return path

    def remember(self, saved: SavedState, tags: dict[str, Any]) -> None:
        """After resuming: what is linked already need not be linked again."""
        self._kept = {role: (tags[role], saved.files[role]) for role in tags if role in saved.files}

    def write(self, identity: dict, where: dict, state: dict[str, Any], kept: dict[str, tuple[Any, str]]) -> None:
        """Puts a state in the place of the one before.

        Args:
            identity: what the run is; see `refuse_another`.
            where: how far it is; ``epoch`` and ``step`` name the file.
            state: tensors, numbers and text in dicts, lists and tuples.
            kept: by role, a tag and a file that must stay as it is now, whatever is put in its place. A file is
                taken in when its tag changes.
        """
        self._make_folder()
        for role, (tag, path) in kept.items():
            if self._kept.get(role, (None,))[0] != tag:
                self._kept[role] = (tag, self._take_in(role, tag, path))
        # After the links, whose names it brings to the disk as well.
        name = f"state-{where['epoch']}-{where['step']}.pt"
        with replacing(os.path.join(self.folder, name), durable=True) as temporary, open(temporary, "wb") as file:
            torch.save(state, file)
        files = {"state": {"name": name, "sha256": _sha256(os.path.join(self.folder, name))}}
        self._commit(identity, where, False, files | {role: entry for role, (_, entry) in self._kept.items()})

    def finish(self, identity: dict, where: dict) -> None:
        """Says that the run is complete; its state is no longer needed."""
        self._make_folder()
        self._commit(identity, where, True, {})

    def clear(self) -> None:
        """Removes the state."""
        if os.path.exists(self._head):
            os.remove(self._head)  # first: without it, nothing that a kill leaves counts
        if os.path.isdir(self.folder):
            self._remove_but(set())
            with contextlib.suppress(OSError):  # somebody's own files are there
                os.rmdir(self.folder)

    def _make_folder(self) -> None:
        if not os.path.isdir(self.folder):
            os.makedirs(self.folder)
            sync(os.path.dirname(self.folder) or ".")

    def _take_in(self, role: str, tag: Any, path: str) -> dict[str, str]:
        name = f"{role}-{tag}{os.path.splitext(path)[1]}"
        target = os.path.join(self.folder, name)
        if os.path.exists(target):  # of a state that was never finished
            os.remove(target)
        try:
            os.link(path, target)  # checkpoints are replaced, never written into, so the old one stays here
        except OSError:
            shutil.copyfile(path, target)
        sync(target)
        return {"name": name, "sha256": _sha256(target)}

    def _commit(self, identity: dict, where: dict, complete: bool, files: dict[str, dict[str, str]]) -> None:
        head = as_json({"format": FORMAT, "complete": complete, "where": where, "identity": identity, "files": files})
        write_text(self._head, json.dumps({**head, "sha256": _sha256_of(head)}, indent=1) + "\n", durable=True)
        names = {HEAD, *(entry["name"] for entry in files.values())}
        self._remove_but(names)

    def _remove_but(self, names: set[str]) -> None:
        """Removes what this class has written, and nothing of anybody else's."""
        for name in set(os.listdir(self.folder)) - names:
            if _OURS.fullmatch(name):
                os.remove(os.path.join(self.folder, name))


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


def _sha256(path: str) -> str:
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()
