"""Two processes that were stopped go on together, each with its own samples and random numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from places import SUPPORT, TINY

pytest.importorskip("torchdistill", reason="akd-train runs torchdistill's boxes; pip install '.[experiments]'")

from resume_fixture import outcome
from two_processes import in_two_processes

pytestmark = pytest.mark.integration


def alone_stop_and_go_on(rank, folder):
    from torch import distributed

    from akd_ext.train import trainer as run
    from akd_ext.train.checkpoint import checkpointer as resume
    from akd_ext.train.cli import STOPPED, main

    run.draw_curves = lambda *args: None
    after_step, left, number = resume.Checkpointer.after_step, 0, 0
    sets = ["dependencies=[train_fixture, resume_fixture]", "datasets.tiny/train.key=resume_fixture.NoisyImages",
            "datasets.tiny/train.init.kwargs.size=47", "models.student_model.key=dropout_net",
            "train.stage1.optimizer.grad_accum_step=2", f"models.teacher_model.src_ckpt={folder}/teacher.pt"]  # fmt: skip

    def stopped(*args):
        nonlocal left
        after_step(*args)
        left -= 1
        if left == 0:
            raise KeyboardInterrupt  # in both after the same step, as a signal would not

    def train(name: str, steps: int = 0) -> int:
        nonlocal left, number
        left, number = steps, number + 1
        code = main(["--config", TINY, "--device", "cpu", "--seed", "0", "--quiet",
                     "--save_every_steps", "1", "--dist_url", f"file://{folder}/meeting-{number}",
                     *(f"--set={item}" for item in sets), "--output_dir", f"{folder}/{name}"])  # fmt: skip
        if distributed.is_initialized():  # after an error it is left to the end of the process
            distributed.destroy_process_group()
        return code

    resume.Checkpointer.after_step = stopped
    assert train("whole") == 0
    assert train("out", 4) == STOPPED
    if rank == 0:
        where = json.loads(Path(folder, "out", "resume", "state.json").read_text())["where"]
        assert (where["epoch"], where["step"]) == (1, 2)  # of two steps an epoch
    assert train("out") == 0


def test_two_processes_go_on(tmp_path):
    import sys

    sys.path.insert(0, str(SUPPORT))
    import train_fixture

    train_fixture.save_teacher(tmp_path)
    in_two_processes(__file__, "alone_stop_and_go_on", tmp_path, tmp_path)
    assert outcome(tmp_path / "out") == outcome(tmp_path / "whole")
