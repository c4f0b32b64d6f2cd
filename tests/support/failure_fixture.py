"""What the tests of failures add to train_fixture: a hook before every epoch, a teacher that waits, limits."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torchdistill.core.interfaces.registry import register_pre_epoch_proc_func
from torchdistill.models.registry import register_model
from train_fixture import tiny_annealing_pre_epoch, tiny_net

from akd_ext.train import trainer as run
from akd_ext.train.cli import main


def nothing(epoch, box):
    pass


HOOK = nothing  # a test puts its own here


@register_pre_epoch_proc_func
def hooked_pre_epoch(self, epoch, **kwargs):
    tiny_annealing_pre_epoch(self, epoch, **kwargs)
    HOOK(epoch, self)


@register_model
class PatientNet(nn.Module):
    """A teacher that, having answered one batch of the pass for its cache, waits until there is a file ``go`` in the folder
    $AKD_TEST_DIARY."""

    def __init__(self):
        super().__init__()
        self.net, self.calls = tiny_net(width=8), 0

    def forward(self, x):
        self.calls += torch.is_inference_mode_enabled()  # only that pass is in it, not the look beforehand
        if self.calls == 2:
            diary = Path(os.environ["AKD_TEST_DIARY"])
            (diary / f"half-{os.getpid()}").touch()
            while not (diary / "go").exists():
                time.sleep(0.01)
        return self.net(x)


@contextlib.contextmanager
def files_of_at_most(size: int):
    """A write beyond ``size`` bytes fails with EFBIG: as near to a full disk as everybody can get."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def mounted(folder: Path, options: str):
    """A file system in memory at ``folder``; skips the test where it takes rights that this process has not."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a file system of its own cannot be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextlib.contextmanager
def read_only(folder: Path):
    """``folder``, in which nothing can be made. Permissions do not bind root, a file system does."""
    if os.geteuid() == 0:
        with mounted(folder, "ro"):
            yield
        return
    folder.mkdir()
    folder.chmod(0o555)
    try:
        yield
    finally:
        folder.chmod(0o755)


def train_in_a_process(arguments: list[str], said: str, diary: str, workers: bool) -> None:
    """``akd-train`` in the process that this is called in; what it says goes into the file ``said``.

    Its second epoch waits for a file ``go`` in the folder ``diary``, with a data loader's worker alive if ``workers``.
    """
    global HOOK
    multiprocessing.set_start_method(
        "fork", force=True
    )  # for the workers, which then inherit what this process has open
    os.environ["AKD_TEST_DIARY"] = diary

    def wait_for_go(epoch, box):
        if epoch == 1:
            iterator = iter(box.val_data_loader) if workers else None
            (Path(diary) / f"epoch1-{os.getpid()}").touch()
            while not (Path(diary) / "go").exists():
                time.sleep(0.01)
            del iterator

    HOOK = wait_for_go
    run.draw_curves = lambda *args: None
    with open(said, "w", buffering=1) as file, contextlib.redirect_stderr(file):
        sys.exit(main(arguments))
