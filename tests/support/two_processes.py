"""Runs a function of a test file in two processes that talk over gloo.

in_two_processes(__file__, "work", tmp_path)   # calls work(rank), here and in a second process
"""

from __future__ import annotations

import importlib
import os
import sys
from datetime import timedelta
from pathlib import Path

from places import SUPPORT
from subject_process import run


def in_two_processes(file, function, folder, *arguments):
    """Calls ``function(rank, *arguments)`` of the test module ``file``; the arguments arrive as text."""
    meeting = Path(folder) / f"meeting-{function}"
    command = ["-W", "ignore", str(SUPPORT / "two_processes.py"), str(file), function, str(meeting)]
    return run([*command, *map(str, arguments)], OMP_NUM_THREADS="1")


def _work(rank, module, function, meeting, arguments):
    import torch
    from torch import distributed

    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    if function.startswith("alone_"):  # it meets the other one by itself
        getattr(importlib.import_module(module), function)(rank, *arguments)
        return
    distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    try:
        getattr(importlib.import_module(module), function)(rank, *arguments)
    finally:
        distributed.destroy_process_group()


if __name__ == "__main__":
    import torch.multiprocessing

    file, function, meeting, *arguments = sys.argv[1:]
    sys.path.insert(0, str(Path(file).parent))
    module = Path(file).stem
    importlib.import_module(module)  # once, for both
    torch.multiprocessing.start_processes(_work, (module, function, meeting, arguments), nprocs=2, start_method="fork")
