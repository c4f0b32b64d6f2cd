"""The file of a cache: a safetensors file, written and read with torch and the standard library.

8 bytes with the length of the header, the header (JSON, padded with spaces so that the data are aligned), the tensors
one after the other. The header's metadata hold the identity and a checksum over everything.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from akd_ext.filesystem import errors_name_path

from .fingerprint import as_json

SUFFIX = ".safetensors"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_ON_DISK = {**DTYPES, "I64": torch.int64}
# Inside of the identity, which is JSON in JSON, quotes have a backslash: this stands in a header once.
_SUM, _NO_SUM = b'"sha256": "', b"0" * 64


class LogitCacheError(RuntimeError):
    """A file that is damaged, or of another identity. The message says which, and what differs."""


class Entry(NamedTuple):
    """What a header says of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @classmethod
    def read(cls, entry: Any) -> Entry:
        """From JSON; ValueError, KeyError or TypeError if it is none."""
        shape = tuple(entry["shape"])
        if not shape or not all(type(length) is int and length > 0 for length in shape):
            raise ValueError
        return cls(_ON_DISK[entry["dtype"]], shape)


class Kind(NamedTuple):
    """What tells one sort of cache from another."""

    format: str  # in its file
    holds: str  # in messages
    is_valid: Callable[[Mapping[str, Entry], Mapping[str, str]], bool]  # whether entries and metadata are of this kind


def unusable(path: str, what: str) -> LogitCacheError:
    return LogitCacheError(f"{path} cannot be used: {what}. Delete it, and it is built anew when it is next needed")


def header(
    kind: Kind, identity: dict, tensors: Mapping[str, Entry], metadata: Mapping[str, str] | None = None, room: int = 0
) -> bytes:
    """The header of a file whose data are ``tensors``, one after the other in this order; at least ``room`` bytes long."""
    told = {"format": kind.format, "identity": json.dumps(identity), **(metadata or {}), "sha256": _NO_SUM.decode()}
    entries, at = {}, 0
    for name, entry in tensors.items():
        dtype = next(key for key, value in _ON_DISK.items() if value is entry.dtype)
        entries[name] = {"dtype": dtype, "shape": entry.shape, "data_offsets": [at, at + entry.nbytes]}
        at += entry.nbytes
    text = json.dumps({"__metadata__": told, **entries}).encode()
    text += b" " * max(room - 8 - len(text), -(8 + len(text)) % 64)
    return len(text).to_bytes(8, "little") + text


def write_at(file: BinaryIO, data: bytes | memoryview, at: int) -> None:
    """Past the buffer of ``file``."""
    data = memoryview(data)
    with errors_name_path(file.name):
        while data:
            written = os.pwrite(file.fileno(), data, at)
            data, at = data[written:], at + written


def seal(file: BinaryIO) -> None:
    """Enters the checksum, after which the file is complete."""
    file.seek(0)
    length = file.read(8)
    header = length + file.read(int.from_bytes(length, "little"))
    sha = _header_sum(header)
    while part := file.read(1 << 20):
        sha.update(part)
    file.seek(header.index(_SUM) + len(_SUM))
    file.write(sha.hexdigest().encode())


class MappedFile:
    """A cache's file as memory that is read when it is looked at. Who writes to it gets a copy, the file stays as it is.

    What is wrong with the file, except for its checksum, is found here.

    Raises:
        LogitCacheError: the file is none of this kind, or cut off.
        OSError: it cannot be read.
    """

    def __init__(self, path: str, kind: Kind) -> None:
        self.path = path
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 8:
                raise unusable(path, f"it is cut off: {size} bytes")
            self._memory = _map(file)
        self._header = self._memory[: 8 + int.from_bytes(self._memory[:8], "little")]
        try:
            content = json.loads(self._header[8:])
            self.metadata = content.pop("__metadata__")
            if self.metadata["format"] != kind.format:
                raise unusable(path, f"its format is {self.metadata['format']!r}; accepted: {kind.format!r}")
            self.identity = as_json(json.loads(self.metadata["identity"]))
            self._sum = self.metadata["sha256"]
            self._entries = {name: Entry.read(entry) for name, entry in content.items()}
            if not kind.is_valid(self._entries, self.metadata):
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise unusable(path, "its header cannot be read") from error
        expected = len(self._header) + sum(entry.nbytes for entry in self._entries.values())
        if size != expected:
            raise unusable(path, f"it is cut off or has grown: {size} bytes, its header speaks of {expected}")

    def is_unchanged(self) -> bool:
        """Whether the checksum holds; reads everything."""
        sha = _header_sum(self._header)
        sha.update(memoryview(self._memory)[len(self._header) :])
        return sha.hexdigest() == self._sum

    def tensors(self) -> dict[str, Tensor]:
        """By name, still in the file. Each keeps the file mapped."""
        found, at = {}, len(self._header)
        for name, entry in self._entries.items():
            flat = torch.frombuffer(self._memory, dtype=entry.dtype, count=math.prod(entry.shape), offset=at)
            found[name] = flat.view(entry.shape)
            at += entry.nbytes
        return found


def _map(file: BinaryIO) -> mmap.mmap:
    if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    # Copied are only pages that are written to: the system need not keep room for all of a file larger than memory.
    no_reserve = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
    return mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE | no_reserve, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def _header_sum(header: bytes) -> Any:
    """SHA-256 of a header with zeros in the place of the checksum; to be updated with the data."""
    at = header.find(_SUM) + len(_SUM)
    return hashlib.sha256(header[:at] + _NO_SUM + header[at + len(_NO_SUM) :])
