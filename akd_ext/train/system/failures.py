"""What a machine, or a label, does to a run (no room, a killed worker), each in one sentence with what to do about it."""

from __future__ import annotations

import errno
import re

import torch

from .errors import RunError

_ROOM = "make room there, or write elsewhere"
_SHARED = "lower num_workers, or enlarge /dev/shm (docker: --shm-size)"
_SIGNALS = {
    "Killed": "the system kills when memory runs out (its log says so): lower num_workers or batch_size",
    "Bus error": f"shared memory may have run out: {_SHARED}",
}
_MEMORY = "lower batch_size (grad_accum_step makes up for it)"
_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: ([^.]+)|exited)")
_NO_MEMORY = re.compile("an't allocate memory|annot allocate memory|not enough memory")  # torch on Linux, on Windows
_NO_CLASS = re.compile(r"Target (-?\d+) is out of bounds")


def explain(error: BaseException, where: str = "", data: str = "the training data") -> str | None:
    """One sentence; None if the error is none of the machine's, nor of ``data``. ``where`` is put behind what happened.

    >>> explain(OSError(28, "No space left on device", "out/results.json"), " in epoch 2")
    "'out/results.json' in epoch 2: No space left on device; make room there, or write elsewhere"
    """
    text = str(error)
    if worker := _WORKER.search(text):
        how = f"was ended by a signal ({worker[2]})" if worker[2] else "ended unexpectedly"
        advice = _SIGNALS.get(worker[2] or "Killed", "num_workers: 0 tells more")
        return f"a DataLoader worker (process {worker[1]}) {how}{where}; {advice}"
    if "unable to write to file" in text and "No space left" in text:  # tensors on their way from a worker
        return f"shared memory ran out{where}; {_SHARED}"
    if wrong := _NO_CLASS.search(text):
        return f"{data} has the label {wrong[1]}{where}, and the model has no such class; accepted: from 0 to its classes - 1"
    if "device-side assert triggered" in text:
        return (
            f"the GPU refused an index{where}: mostly a label of {data} that is no class of the model's; --device cpu says "
            "which"
        )
    wanted = re.search(r"tried to allocate ([\d.]+ \w+)", text, re.IGNORECASE)
    asked = f" ({wanted[1]} more were asked for)" if wanted else ""
    if isinstance(error, torch.OutOfMemoryError) or "CUDA error: out of memory" in text:
        return f"the memory of the GPU ran out{where}{asked}; {_MEMORY}, or use --amp"
    if isinstance(error, MemoryError) or _NO_MEMORY.search(text):
        return f"memory ran out{where}{asked}; {_MEMORY} or num_workers"
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, FileNotFoundError):
        what = f"'{error.filename}'{where}: {error.strerror}" if error.filename else f"{error.strerror}{where}"
        return f"{what}; {_ROOM}" if error.errno == errno.ENOSPC else what
    return None


def reraise(error: Exception, where: str, data: str = "the training data") -> None:
    """Raises a RunError in place of an error of the machine's, or of the ``data``'s, in the middle of training; does nothing
    for others."""
    sentence = explain(error, where, data)
    if sentence is not None:
        raise RunError(f"{sentence}. What the epochs before have saved is intact") from error
