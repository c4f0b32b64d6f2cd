"""A run that is killed at any moment and started again ends as one that was never stopped, bit for bit."""

from __future__ import annotations

import os
import random
import signal

import pytest
from places import SUPPORT, TINY

pytest.importorskip("torchdistill", reason="akd-train runs torchdistill's boxes; pip install '.[experiments]'")
if not hasattr(os, "fork"):
    pytest.skip("no fork on this platform", allow_module_level=True)

from resume_fixture import outcome
from warm_process import Warm

from akd_ext.train.cli import STOPPED

pytestmark = pytest.mark.integration

EVERY = ("--save_every_steps", "1")
RANDOM_MOMENTS = 16
NAMED_MOMENTS = [
    ("half a state", 2, ()),
    ("half a state", 4, EVERY),
    ("before the head", 3, EVERY),
    ("stage boundary", 0, ()),
]


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    with Warm(tmp_path_factory.mktemp("warm")) as process:
        yield process


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """akd-train on two stages of two and one epochs of 3 batches, with gradients that are pending between epochs."""
    import sys

    sys.path.insert(0, str(SUPPORT))
    import train_fixture

    teacher = train_fixture.save_teacher(tmp_path_factory.mktemp("teacher"))
    sets = [
        "dependencies=[train_fixture, resume_fixture]", "datasets.tiny/train.key=resume_fixture.NoisyImages",
        "datasets.tiny/train.init.kwargs.size=24", "train.stage1.train_data_loader.kwargs.batch_size=8",
        "models.student_model.key=dropout_net", f"models.teacher_model.src_ckpt={teacher}",
        "train.stage1.optimizer.grad_accum_step=2", "train.stage1.num_epochs=3", "train.stage2.num_epochs=2",
    ]  # fmt: skip
    return ["--config", TINY, "--device", "cpu", "--seed", "0", "--quiet",
            *(f"--set={item}" for item in sets), "--output_dir"]  # fmt: skip


@pytest.fixture(scope="module")
def whole(warm, command, tmp_path_factory):
    """The outcome of a run that nobody stops, and how many calls of functions its training makes."""
    folder = tmp_path_factory.mktemp("whole")
    assert warm.run([*command, str(folder / "out")], place="call", counted=str(folder / "calls")) == 0, warm.log()
    return outcome(folder / "out"), int((folder / "calls").read_text())


def check(warm, command, out, whole, more, **trap):
    assert warm.run([*command, str(out), *more], **trap) == -signal.SIGKILL, warm.log()
    assert warm.run([*command, str(out), *more]) == 0, warm.log()
    found = outcome(out)
    assert found["results"] == whole[0]["results"]
    assert found == whole[0]
    assert [path.name for path in (out / "resume").iterdir()] == ["state.json"]
    assert not list(out.glob(".*.tmp"))


@pytest.mark.parametrize("place, number, more", NAMED_MOMENTS)
def test_killed_at_a_delicate_moment(warm, command, whole, tmp_path, place, number, more):
    check(warm, command, tmp_path / "out", whole, more, place=place, number=number)


@pytest.mark.parametrize("seed", range(RANDOM_MOMENTS))
def test_killed_at_a_random_moment(warm, command, whole, tmp_path, seed):
    """At any call of any function since training began; every other time states are saved inside the epochs, too."""
    number = random.Random(seed).randrange(1, whole[1])
    check(warm, command, tmp_path / "out", whole, EVERY if seed % 2 else (), place="call", number=number)


def test_killed_again_and_again(warm, command, whole, tmp_path):
    """Every process is killed in its third step; states are saved after every second one of a stage, and after epochs."""
    out, lives = tmp_path / "out", 0
    while (code := warm.run([*command, str(out), *EVERY], place="step", number=3)) == -signal.SIGKILL:
        lives += 1
        assert lives < 20
    assert (code, lives) == (0, 7)  # they go on from steps 2, 4, 6, 8, 9, 11 and 13 of 15
    assert outcome(out) == whole[0]


def test_signals_to_the_workers_too_finish_the_step(warm, command, tmp_path):
    """A terminal's Ctrl-C and a batch system's SIGTERM reach every process; a dead worker would be an error."""
    workers, out = ["--set=train.stage1.train_data_loader.kwargs={batch_size: 8, num_workers: 1}"], tmp_path / "out"
    workers += ["--set=train.stage1.val_data_loader.kwargs={batch_size: 30}", "--set=train.stage1.num_epochs=2"]
    assert warm.run([*command, str(tmp_path / "whole"), *workers]) == 0, warm.log()
    assert warm.run([*command, str(out), *workers], place="signals to all", number=5) == STOPPED, warm.log()
    assert warm.log().count("finishing the step and saving") == 1
    assert warm.run([*command, str(out), *workers]) == 0, warm.log()
    assert outcome(out) == outcome(tmp_path / "whole")
