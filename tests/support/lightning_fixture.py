"""A toy training with Lightning. Imported by the tests that run, not while pytest collects: Lightning takes seconds."""

import warnings

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from akd_ext import AnnealingKDLoss
from akd_ext.adapters.lightning import AnnealingCallback

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


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(torch.randn(3), torch.randn(2))] * 6)


def warnings_on_a_stream(module, unit="epoch", callbacks=(), **given):
    """What the training warns of, for a stream of six samples, which has no length."""
    common = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer = Trainer(
            callbacks=[AnnealingCallback(unit), *callbacks], enable_checkpointing=False, **common, **given
        )
        trainer.fit(module, DataLoader(Stream(), batch_size=2))
    return [str(warning.message) for warning in said]
