"""A toy training with transformers' Trainer. Imported by the tests that run, not while pytest collects: it takes seconds."""

import torch
from datasets import Dataset
from torch import nn
from transformers import TrainerCallback, TrainingArguments

from akd_ext.adapters.transformers import AnnealingTrainer

SAMPLES, FEATURES, CLASSES = 10, 6, 3


class Student(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layer, self.seen = nn.Linear(FEATURES, CLASSES), []

    def forward(self, features, labels=None):
        if self.training:
            self.seen.append(features)
        logits = self.layer(features)
        if labels is None:
            return {"logits": logits}
        loss = nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten())
        return {"loss": loss, "logits": logits}


def dataset(data):
    return Dataset.from_dict({**{k: v.tolist() for k, v in data.items()}, "not_for_the_model": ["x"] * SAMPLES})


def arguments(folder, **given):
    common = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "max_grad_norm": 0.0}
    common |= {"logging_strategy": "no", "optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant"}
    return TrainingArguments(str(folder), **(common | given))


class Watch(TrainerCallback):
    """Notes the gradients and the temperature of every optimizer step."""

    def __init__(self, criterion, stop_at=None):
        self.criterion, self.stop_at = criterion, stop_at
        self.gradients, self.temperatures = [], []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append([p.grad.clone() for p in model.parameters()])
        self.temperatures.append(self.criterion.temperature)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.stop_at:
            control.should_training_stop = True


def train(folder, data, criterion, resume=None, stop_at=None, unit="epoch", **given):
    watch = Watch(criterion, stop_at)
    trainer = AnnealingTrainer(
        Student(), arguments(folder, **given), criterion=criterion, unit=unit,
        train_dataset=dataset(data), callbacks=[watch],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return trainer, watch


class Stream(torch.utils.data.IterableDataset):
    def __init__(self, data):
        self.data = data

    def __iter__(self):
        return ({name: column[i] for name, column in self.data.items()} for i in range(SAMPLES))
