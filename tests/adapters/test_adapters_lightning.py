"""The Lightning adapter against the real library: the schedule, in epochs and steps, and resuming."""

import pytest
import torch
from torch import nn

from akd_ext import AnnealingKDLoss, AnnealingSchedule

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def toy():
    pytest.importorskip("lightning", reason="the adapter needs it: pip install '.[lightning]'")
    import lightning_fixture

    return lightning_fixture


@pytest.mark.parametrize("unit", ["epoch", "step"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_temperature_follows_the_schedule(toy, tmp_path, unit, accumulation):
    module = toy.Module(AnnealingKDLoss(3))
    trainer = toy.fit(tmp_path, module, unit=unit, accumulate_grad_batches=accumulation)
    steps_an_epoch = -(-toy.BATCHES // accumulation)  # five batches by two are three steps
    schedule = AnnealingSchedule(3, toy.EPOCHS if unit == "epoch" else toy.EPOCHS * steps_an_epoch)
    expected = [
        schedule.temperature(epoch if unit == "epoch" else epoch * steps_an_epoch + batch // accumulation)
        for epoch in range(toy.EPOCHS)
        for batch in range(toy.BATCHES)
    ]
    assert module.temperatures == expected
    assert trainer.callback_metrics["phi"] == 1.0


def test_steps_out_of_max_steps(toy, tmp_path):
    module = toy.Module(AnnealingKDLoss(3))
    toy.fit(tmp_path, module, unit="step", max_epochs=-1, max_steps=7)
    assert module.temperatures == [AnnealingSchedule(3, 7).temperature(step) for step in range(7)]


@pytest.mark.parametrize("unit, stop_after", [("epoch", 10), ("epoch", 13), ("step", 13)])
def test_a_resumed_run_is_the_run_that_never_stopped(toy, tmp_path, unit, stop_after):
    """Five batches an epoch. Resuming within one, Lightning leaves out on_train_epoch_start."""
    whole = toy.Module(AnnealingKDLoss(4))
    toy.fit(tmp_path, whole, unit=unit)
    keep = toy.ModelCheckpoint(tmp_path, "kept", every_n_train_steps=stop_after)
    cut = toy.Module(AnnealingKDLoss(4))
    with pytest.raises(RuntimeError, match="stopped here"):
        toy.fit(tmp_path, cut, keep, toy.StopAfter(stop_after + 1), unit=unit)
    resumed = toy.Module(AnnealingKDLoss(4))
    toy.fit(tmp_path, resumed, unit=unit, resume=tmp_path / "kept.ckpt")
    assert resumed.temperatures == whole.temperatures[-len(resumed.temperatures) :]
    assert len(resumed.temperatures) == toy.EPOCHS * toy.BATCHES - stop_after
    for got, want in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(got, want)


def test_a_module_without_the_loss(toy, tmp_path):
    with pytest.raises(ValueError, match="Module has no akd_ext.AnnealingKDLoss among its modules"):
        toy.fit(tmp_path, toy.Module(nn.MSELoss()))


@pytest.mark.parametrize("unit, needed", [("epoch", "max_epochs"), ("step", "max_steps or max_epochs")])
def test_a_training_without_an_end(toy, tmp_path, unit, needed):
    with pytest.raises(ValueError, match=f"needs a Trainer with {needed}"):
        toy.fit(tmp_path, toy.Module(AnnealingKDLoss(2)), unit=unit, max_epochs=-1)


def test_an_unknown_unit(toy):
    with pytest.raises(ValueError, match="unit is 'steps'"):
        toy.AnnealingCallback("steps")


@pytest.mark.parametrize(
    ("max_steps", "epochs"),
    [(7, 2), (5, 1), (20, 4), (100, 4)],  # five steps an epoch, four epochs
)
def test_max_steps_that_come_before_max_epochs(toy, tmp_path, max_steps, epochs):
    module = toy.Module(AnnealingKDLoss(2))
    toy.fit(tmp_path, module, max_steps=max_steps)
    schedule = AnnealingSchedule(2, epochs)
    steps = min(max_steps, toy.EPOCHS * toy.BATCHES)
    assert module.temperatures == [schedule.temperature(step // toy.BATCHES) for step in range(steps)]
    assert module.temperatures[-1] == 1


def test_max_steps_alone_and_few_batches(toy, tmp_path):
    module = toy.Module(AnnealingKDLoss(3))
    toy.fit(tmp_path, module, max_epochs=-1, max_steps=6, limit_train_batches=2)
    assert module.temperatures == [3, 3, 2, 2, 1, 1]


def test_data_without_a_length(toy):
    with pytest.raises(ValueError, match="no length, so max_epochs=100 or max_steps=2 may come first"):
        toy.warnings_on_a_stream(toy.Module(AnnealingKDLoss(2)), max_epochs=100, max_steps=2)
    with pytest.raises(ValueError, match="needs a Trainer with max_epochs"):
        toy.warnings_on_a_stream(toy.Module(AnnealingKDLoss(2)), max_epochs=-1, max_steps=2)
    module = toy.Module(AnnealingKDLoss(2))
    toy.warnings_on_a_stream(module, "step", max_epochs=-1, max_steps=4)
    assert module.temperatures == [2, 2, 1, 1]


def test_too_few_epochs_are_said(toy):
    said = toy.warnings_on_a_stream(toy.Module(AnnealingKDLoss(4)), max_epochs=2)
    assert any("T takes 2 of tau_max = 4 values; unit='step'" in text for text in said)


def test_what_may_end_the_training_earlier_is_said(toy):
    said = toy.warnings_on_a_stream(toy.Module(AnnealingKDLoss(1)), max_epochs=1, max_time="00:01:00:00")
    assert any("max_time may end the training before T = 1" in text for text in said)


def test_a_teacher_that_learns_or_is_in_train_mode_is_said(toy):
    class WithTeacher(toy.Module):
        def __init__(self, train):
            super().__init__(AnnealingKDLoss(1))
            self.teacher, self.learns = nn.Linear(3, 2).train(train), train

        def training_step(self, batch, batch_idx):
            with torch.set_grad_enabled(self.learns):
                logits = self.teacher(batch[0])
            return self.criterion(self.student(batch[0]), logits)

    said = toy.warnings_on_a_stream(WithTeacher(True), max_epochs=1)
    assert any("the module's 'teacher' is in train mode" in text for text in said)
    assert sum("its argument 'teacher' requires a gradient" in text for text in said) == 1
    assert not any("'teacher'" in text for text in toy.warnings_on_a_stream(WithTeacher(False), max_epochs=1))
