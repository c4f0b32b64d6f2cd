"""NaN and infinity: never in a checkpoint."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from places import TINY
from torch import nn

pytest.importorskip("torchdistill", reason="akd-train runs torchdistill's boxes; pip install '.[experiments]'")

import failure_fixture

from akd_ext.train import trainer as run
from akd_ext.train.checkpoint.weights import require_finite
from akd_ext.train.cli import main
from akd_ext.train.system.errors import RunError

FILES = ("results.json", "best.safetensors", "last.safetensors", "checkpoint.pt")
NAN, INF = float("nan"), float("inf")


@pytest.fixture
def train(tmp_path, monkeypatch, capfd):
    """Runs akd-train with ``hook(epoch, box)`` before every epoch of stage I; gives the code and what it prints."""
    monkeypatch.setattr(run, "draw_curves", lambda *args: None)
    monkeypatch.setattr(run, "check_teacher", lambda *args, **kwargs: None)  # the teacher here is untrained
    torch.save(failure_fixture.tiny_net(width=8).state_dict(), tmp_path / "teacher.pt")

    def train(*args, hook=failure_fixture.nothing):
        monkeypatch.setattr(failure_fixture, "HOOK", hook)
        command = ["--config", TINY, "--device", "cpu", "--seed", "0", "--quiet"]
        command += ["--set", "dependencies=[failure_fixture]"]
        command += ["--set", "train.stage1.pre_epoch_process=hooked_pre_epoch"]
        command += ["--set", f"models.teacher_model.src_ckpt={tmp_path / 'teacher.pt'}"]
        code = main([*command, "--output_dir", str(tmp_path / "out"), *args])
        return code, capfd.readouterr().err.strip().splitlines()

    return train


def spoil_a_gradient(box, step):
    """The gradient of the student's last layer is NaN in one step of the epoch, counted from 1."""
    calls = []

    def hook(gradient):
        calls.append(1)
        return gradient * NAN if len(calls) == step else gradient

    box.student_model[4].weight.register_hook(hook)


def test_weights_that_the_last_step_spoils_replace_no_checkpoint(train, tmp_path):
    """Every loss of the epoch was finite: it is computed before the step."""
    before = {}

    def hook(epoch, box):
        if epoch == 1:
            before.update({name: (tmp_path / "out" / name).read_bytes() for name in FILES})
            spoil_a_gradient(box, step=3)

    code, said = train(hook=hook)
    assert code == 1 and len(said) == 1
    assert "the weights in training are no longer finite after stage 1, epoch 2 ('4.weight')" in said[0]
    assert {name: (tmp_path / "out" / name).read_bytes() for name in FILES} == before


@pytest.mark.parametrize("batches", [1, 2])
def test_a_spoiled_student_replaces_no_state(train, tmp_path, batches):
    """Neither after a step that spoils the weights, nor by a signal while its gradients wait for a second batch."""
    head, before = tmp_path / "out" / "resume" / "state.json", []

    def spoil(module, inputs, output):
        if batches == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return output * NAN

    def hook(epoch, box):
        if epoch == 1:
            before.append(head.read_bytes())
            box.student_model[4].register_forward_hook(spoil)

    code, said = train("--save_every_steps=1", f"--set=train.stage1.optimizer.grad_accum_step={batches}", hook=hook)
    assert code == 1 and "in stage 1, epoch 2" in said[-1]
    assert [head.read_bytes()] == before


@pytest.mark.integration
def test_a_state_inside_an_epoch_is_not_saved_from_spoiled_weights(train):
    """Otherwise nobody looks at the weights before the end of the epoch, and the state of every step is saved."""
    code, said = train("--save_every_steps", "1", hook=lambda epoch, box: epoch == 1 and spoil_a_gradient(box, 2))
    assert code == 1
    assert "the weights in training are no longer finite in stage 1, epoch 2, step 2 ('4.weight')" in said[0]
    assert train("--save_every_steps", "1")[0] == 0  # goes on from step 1


def test_what_counts_as_a_sound_student():
    model = nn.BatchNorm1d(2)
    model.register_buffer("mask", torch.tensor([0.0, -INF]))
    require_finite(model, "here")
    model.running_var[0] = NAN
    with pytest.raises(RunError, match=r"no longer finite here \('running_var'\)"):
        require_finite(model, "here")
    nn.init.constant_(model.weight, INF)
    with pytest.raises(RunError, match=r"\('weight' and 1 more\)"):
        require_finite(model, "here")
