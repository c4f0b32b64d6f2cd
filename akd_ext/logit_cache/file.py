"""The file of a logit cache: a safetensors file with one tensor, written and read with torch and the standard library.

8 bytes with the length of the header, the header (JSON, padded with spaces so that the data are aligned), the logits
row by row. The header's metadata hold the identity and a checksum over everything.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

import torch
from torch import Tensor

from akd_ext.filesystem import errors_name_path

from .fingerprint import as_json, raw_bytes

SUFFIX = ".safetensors"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
OUTPUTS = ("tensor", "logits")
_FORMAT = "akd_ext logit cache, version 1"
# Inside of the identity, which is JSON in JSON, quotes have a backslash: this stands in a header once.
_SUM, _NO_SUM = b'"sha256": "', b"0" * 64


class LogitCacheError(RuntimeError):
    """A file that is damaged, or holds the logits of something else. The message says which, and what differs."""


def unusable(path: str, what: str) -> LogitCacheError:
    return LogitCacheError(f"{path} cannot be used: {what}. Delete it, and it is built anew when it is next needed")


def start(
    file: BinaryIO, shape: tuple[int, ...], dtype: torch.dtype, output: str, identity: dict
) -> Callable[[Tensor, Tensor], None]:
    """Writes the header; returns ``put(index, rows)``, which writes rows where they belong."""
    name = next(key for key, value in DTYPES.items() if value is dtype)
    metadata = {"format": _FORMAT, "identity": json.dumps(identity), "output": output, "sha256": _NO_SUM.decode()}
    entry = {"dtype": name, "shape": shape, "data_offsets": [0, math.prod(shape) * dtype.itemsize]}
    text = json.dumps({"__metadata__": metadata, "logits": entry}).encode()
    text += b" " * (-(8 + len(text)) % 64)
    with errors_name_path(file.name):
        file.write(len(text).to_bytes(8, "little") + text)
        file.flush()
    offset, size = 8 + len(text), math.prod(shape[1:]) * dtype.itemsize

    def put(index: Tensor, rows: Tensor) -> None:
        data, first = raw_bytes(rows), int(index[0])
        with errors_name_path(file.name):
            if torch.equal(index, torch.arange(first, first + len(index))):
                _write_at(file, data, offset + first * size)
                return
            for row, at in enumerate(index.tolist()):
                _write_at(file, data[row * size : (row + 1) * size], offset + at * size)

    return put


def _write_at(file: BinaryIO, data: memoryview, at: int) -> None:
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
        LogitCacheError: the file is none of ours, or cut off.
        OSError: it cannot be read.
    """

    def __init__(self, path: str) -> None:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 8:
                raise unusable(path, f"it is cut off: {size} bytes")
            self._memory = _map(file)
        self._header = self._memory[: 8 + int.from_bytes(self._memory[:8], "little")]
        try:
            content = json.loads(self._header[8:])
            metadata, entry = content["__metadata__"], content["logits"]
            if metadata["format"] != _FORMAT:
                raise unusable(path, f"its format is {metadata['format']!r}, this akd_ext reads {_FORMAT!r}")
            self._dtype, self._shape = DTYPES[entry["dtype"]], entry["shape"]
            self.identity, self.output = as_json(json.loads(metadata["identity"])), metadata["output"]
            self._sum = metadata["sha256"]
            is_shape = self._shape and all(type(length) is int and length > 0 for length in self._shape)
            if not is_shape or self.output not in OUTPUTS:
                raise ValueError
            expected = len(self._header) + math.prod(self._shape) * self._dtype.itemsize
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise unusable(path, "its header cannot be read") from error
        if size != expected:
            raise unusable(path, f"it is cut off or has grown: {size} bytes, its header speaks of {expected}")

    def is_unchanged(self) -> bool:
        """Whether the checksum holds; reads everything."""
        sha = _header_sum(self._header)
        sha.update(memoryview(self._memory)[len(self._header) :])
        return sha.hexdigest() == self._sum

    def logits(self) -> Tensor:
        """The logits, still in the file. Keeps the file mapped."""
        return torch.frombuffer(self._memory, dtype=self._dtype, offset=len(self._header)).view(self._shape)


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
