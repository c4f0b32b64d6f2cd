"""The Lightning adapter against the real library: the schedule, in epochs and steps, and resuming."""

import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from akd_ext import AnnealingKDLoss, AnnealingSchedule

pytest.importorskip("lightning", reason="the adapter needs it: pip install '.[lightning]'")
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from akd_ext.adapters.lightning import AnnealingCallback

pytestmark = pytest.mark.integration

EPOCHS, BATCHES = 4, 5


class Module(LightningModule):
    def __init__(self, criterion):
        super().__init__()
        torch.manual_seed(1)
        self.student, self.criterion, self.temperatures = nn.Linear(3, 2), criterion, []

    def training_step(self, batch, batch_idx):
        if isinstance(self.criterion, AnnealingKDLoss):
            self.temperatures.append(self.criterion.temperature)
        return self.criterion(self.student(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


class StopAfter(Callback):
    """As a killed process: the training ends in the middle, by an exception."""

    def __init__(self, batches):
        self.batches = batches

    def on_train_batch_end(self, trainer, *_):
        self.batches -= 1
        if not self.batches:
            raise RuntimeError("stopped here")


def fit(folder, module, *callbacks, unit="epoch", resume=None, **given):
    torch.manual_seed(2)
    # All batches alike: within an epoch Lightning does not find the place in a plain DataLoader again.
    loader = DataLoader(
        TensorDataset(torch.randn(2, 3).tile(BATCHES, 1), torch.randn(2, 2).tile(BATCHES, 1)), batch_size=2
    )
    common = {"max_epochs": EPOCHS, "accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    common |= {
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few workers, no logger, a checkpoint within an epoch
        trainer = Trainer(callbacks=[AnnealingCallback(unit), *callbacks], default_root_dir=folder, **(common | given))
        trainer.fit(module, loader, ckpt_path=resume)
    return trainer


@pytest.mark.parametrize("unit", ["epoch", "step"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_temperature_follows_the_schedule(tmp_path, unit, accumulation):
    module = Module(AnnealingKDLoss(3))
    trainer = fit(tmp_path, module, unit=unit, accumulate_grad_batches=accumulation)
    steps_an_epoch = -(-BATCHES // accumulation)  # five batches by two are three steps
    schedule = AnnealingSchedule(3, EPOCHS if unit == "epoch" else EPOCHS * steps_an_epoch)
    expected = [
        schedule.temperature(epoch if unit == "epoch" else epoch * steps_an_epoch + batch // accumulation)
        for epoch in range(EPOCHS)
        for batch in range(BATCHES)
    ]
    assert module.temperatures == expected
    assert trainer.callback_metrics["phi"] == 1.0


def test_steps_out_of_max_steps(tmp_path):
    module = Module(AnnealingKDLoss(3))
    fit(tmp_path, module, unit="step", max_epochs=-1, max_steps=7)
    assert module.temperatures == [AnnealingSchedule(3, 7).temperature(step) for step in range(7)]


@pytest.mark.parametrize("unit, stop_after", [("epoch", 10), ("epoch", 13), ("step", 13)])
def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path, unit, stop_after):
    """Five batches an epoch. Resuming within one, Lightning leaves out on_train_epoch_start."""
    whole = Module(AnnealingKDLoss(4))
    fit(tmp_path, whole, unit=unit)
    keep = ModelCheckpoint(tmp_path, "kept", every_n_train_steps=stop_after)
    cut = Module(AnnealingKDLoss(4))
    with pytest.raises(RuntimeError, match="stopped here"):
        fit(tmp_path, cut, keep, StopAfter(stop_after + 1), unit=unit)
    resumed = Module(AnnealingKDLoss(4))
    fit(tmp_path, resumed, unit=unit, resume=tmp_path / "kept.ckpt")
    assert resumed.temperatures == whole.temperatures[-len(resumed.temperatures) :]
    assert len(resumed.temperatures) == EPOCHS * BATCHES - stop_after
    for got, want in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(got, want)


def test_a_module_without_the_loss(tmp_path):
    with pytest.raises(ValueError, match="Module has no akd_ext.AnnealingKDLoss among its modules"):
        fit(tmp_path, Module(nn.MSELoss()))


@pytest.mark.parametrize("unit, needed", [("epoch", "max_epochs"), ("step", "max_steps or max_epochs")])
def test_a_training_without_an_end(tmp_path, unit, needed):
    with pytest.raises(ValueError, match=f"needs a Trainer with {needed}"):
        fit(tmp_path, Module(AnnealingKDLoss(2)), unit=unit, max_epochs=-1)


def test_an_unknown_unit():
    with pytest.raises(ValueError, match="unit is 'steps'"):
        AnnealingCallback("steps")
