"""The Trainer's adapter against the real library: gradients of whole batches, the schedule, and resuming."""

import pytest
import torch
from torch import nn

from akd_ext import AnnealingKDLoss, AnnealingSchedule

pytest.importorskip("transformers", reason="the adapter needs it: pip install '.[transformers]'")
pytest.importorskip("datasets", reason="the teacher's logits are a column of one: pip install '.[transformers]'")
from datasets import Dataset
from transformers import TrainerCallback, TrainingArguments

from akd_ext.adapters.transformers import AnnealingTrainer

pytestmark = pytest.mark.integration

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


@pytest.fixture
def data():
    return {
        "features": torch.randn(SAMPLES, FEATURES),
        "labels": torch.arange(SAMPLES) % CLASSES,
        "teacher_logits": torch.randn(SAMPLES, CLASSES),
    }


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


def gradient_of_whole_batch(data, features, phi, reduction, loss):
    """Plain PyTorch over the samples that were seen, all at once, where the student began."""
    rows = [int((data["features"] == one).all(1).nonzero()) for one in features]
    model, teacher = Student().eval(), phi * data["teacher_logits"][rows]
    student = model(data["features"][rows])["logits"]
    kept = data["labels"][rows].ne(-100)
    student, teacher = student[kept], teacher[kept]
    if loss == "mse":
        terms = (student - teacher).square()
    else:
        terms = nn.functional.kl_div(student.log_softmax(-1), teacher.softmax(-1), reduction="none")
    (terms.sum() / {"sum": 1, "batchmean": len(terms), "mean": terms.numel()}[reduction]).backward()
    return [p.grad for p in model.parameters()]


@pytest.mark.parametrize(
    "loss, reduction, size, accumulation",
    [
        ("mse", "mean", 10, 1), ("mse", "mean", 3, 4), ("mse", "mean", 3, 2),
        ("mse", "batchmean", 3, 2), ("mse", "sum", 3, 2), ("kl", "mean", 3, 2), ("kl", "batchmean", 3, 4),
    ],
)  # fmt: skip
def test_every_gradient_is_that_of_its_whole_batch(tmp_path, data, loss, reduction, size, accumulation):
    """Also of (3, 3, 3, 1), and of (3, 3) and (3, 1); one label is -100 and its sample counts nowhere."""
    data["labels"][4] = -100
    trainer, watch = train(
        tmp_path, data, AnnealingKDLoss(2, loss=loss, reduction=reduction), learning_rate=0.0, num_train_epochs=2,
        per_device_train_batch_size=size, gradient_accumulation_steps=accumulation,
    )  # fmt: skip
    micro = iter(trainer.model.seen)
    updates = 2 * -(-SAMPLES // (size * accumulation))
    assert len(watch.gradients) == updates
    for step, gradients in enumerate(watch.gradients):
        last = 2 * step % updates == updates - 2 or updates == 2
        count = -(-SAMPLES // size) - accumulation * (updates // 2 - 1) if last else accumulation
        features = torch.cat([next(micro) for _ in range(count)])
        expected = gradient_of_whole_batch(data, features, 0.5 if 2 * step < updates else 1.0, reduction, loss)
        for got, want in zip(gradients, expected, strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize("unit", ["epoch", "step"])
def test_the_temperature_follows_the_schedule(tmp_path, data, unit):
    _, watch = train(
        tmp_path, data, AnnealingKDLoss(3), unit=unit,
        per_device_train_batch_size=3, gradient_accumulation_steps=2, num_train_epochs=5,
    )  # fmt: skip
    schedule = AnnealingSchedule(3, {"epoch": 5, "step": 10}[unit])  # two optimizer steps an epoch
    assert watch.temperatures == [schedule.temperature(step // 2 if unit == "epoch" else step) for step in range(10)]


def test_max_steps_within_an_epoch(tmp_path, data):
    """Three steps of four an epoch are one epoch, the last one: T = 1."""
    _, watch = train(tmp_path, data, AnnealingKDLoss(3), per_device_train_batch_size=3, max_steps=3)
    assert watch.temperatures == [1, 1, 1]


@pytest.mark.parametrize("unit, stop_at", [("epoch", 4), ("epoch", 6), ("step", 6)])  # four steps an epoch
def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path, data, unit, stop_at):
    # All samples alike: which of them come next is the Trainer's affair, and its 5.0 errs within an epoch.
    data = {k: v[:1].repeat(SAMPLES, *[1] * (v.ndim - 1)) for k, v in data.items()}
    settings = {"unit": unit, "per_device_train_batch_size": 3, "num_train_epochs": 4, "optim": "adamw_torch"}
    whole, watched = train(tmp_path, data, AnnealingKDLoss(4), **settings)
    saving = settings | {"save_strategy": "steps", "save_steps": stop_at}
    _, before = train(tmp_path, data, AnnealingKDLoss(4), stop_at=stop_at, **saving)
    resumed, after = train(tmp_path, data, AnnealingKDLoss(4), resume=f"{tmp_path}/checkpoint-{stop_at}", **settings)
    assert len(before.temperatures) == stop_at
    assert before.temperatures + after.temperatures == watched.temperatures
    for got, want in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(got, want)


def test_evaluation_is_by_the_labels_and_needs_no_teacher(tmp_path, data):
    trainer, _ = train(tmp_path, data, AnnealingKDLoss(2), per_device_train_batch_size=5, num_train_epochs=1)
    model = trainer.model.eval()
    expected = model(data["features"], data["labels"])["loss"].item()
    for columns in (data, {k: v for k, v in data.items() if k != "teacher_logits"}):
        found = trainer.evaluate(dataset(columns))["eval_loss"]
        assert found == pytest.approx(expected, rel=1e-5)  # a mean of two means in float32


@pytest.mark.parametrize("missing", ["teacher_logits", "labels"])
def test_a_column_that_is_missing(tmp_path, data, missing):
    del data[missing]
    with pytest.raises(ValueError, match=f"the training batch has no column '{missing}'; it has"):
        train(tmp_path, data, AnnealingKDLoss(2), num_train_epochs=1)


def test_a_criterion_without_a_reduction(tmp_path, data):
    with pytest.raises(ValueError, match="criterion has reduction 'none'"):
        train(tmp_path, data, AnnealingKDLoss(2, reduction="none"))


def test_token_and_multi_label_classification(tmp_path, data):
    """One item a token, or one a class: the same mean over logit vectors either way."""
    trainer = AnnealingTrainer(
        Student(), arguments(tmp_path), criterion=AnnealingKDLoss(2), train_dataset=dataset(data)
    )
    student, teacher = torch.randn(2, 4, 5, CLASSES).unbind()
    tokens = torch.ones(4, 5, dtype=torch.long)
    tokens[1, 2:] = -100
    kept = tokens.ne(-100)
    expected = (student - 0.5 * teacher)[kept].square().mean()
    loss = trainer._annealed_loss({"logits": student}, (tokens, teacher), kept.sum())
    torch.testing.assert_close(loss, expected)
    several = torch.ones(4, CLASSES)
    loss = trainer._annealed_loss({"logits": student[:, 0]}, (several, teacher[:, 0]), several.ne(-100).sum())
    torch.testing.assert_close(loss, (student - 0.5 * teacher)[:, 0].square().mean())
