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
