"""The Trainer's adapter against the real library: gradients of whole batches, the schedule, and resuming."""

import pytest
import torch
from torch import nn

from akd_ext import AnnealingKDLoss, AnnealingSchedule, LinearAnnealingKDLoss

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def toy():
    pytest.importorskip("transformers", reason="the adapter needs it: pip install '.[transformers]'")
    pytest.importorskip("datasets", reason="the teacher's logits are a column of one: pip install '.[transformers]'")
    import trainer_fixture

    return trainer_fixture


@pytest.fixture
def data(toy):
    return {
        "features": torch.randn(toy.SAMPLES, toy.FEATURES),
        "labels": torch.arange(toy.SAMPLES) % toy.CLASSES,
        "teacher_logits": torch.randn(toy.SAMPLES, toy.CLASSES),
    }


def gradient_of_whole_batch(toy, data, features, phi, reduction, loss):
    """Plain PyTorch over the samples that were seen, all at once, where the student began."""
    rows = [int((data["features"] == one).all(1).nonzero()) for one in features]
    model, teacher = toy.Student().eval(), phi * data["teacher_logits"][rows]
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
def test_every_gradient_is_that_of_its_whole_batch(toy, tmp_path, data, loss, reduction, size, accumulation):
    """Also of (3, 3, 3, 1), and of (3, 3) and (3, 1); one label is -100 and its sample counts nowhere."""
    data["labels"][4] = -100
    trainer, watch = toy.train(
        tmp_path, data, AnnealingKDLoss(2, loss=loss, reduction=reduction), learning_rate=0.0, num_train_epochs=2,
        per_device_train_batch_size=size, gradient_accumulation_steps=accumulation,
    )  # fmt: skip
    micro = iter(trainer.model.seen)
    updates = 2 * -(-toy.SAMPLES // (size * accumulation))
    assert len(watch.gradients) == updates
    for step, gradients in enumerate(watch.gradients):
        last = 2 * step % updates == updates - 2 or updates == 2
        count = -(-toy.SAMPLES // size) - accumulation * (updates // 2 - 1) if last else accumulation
        features = torch.cat([next(micro) for _ in range(count)])
        expected = gradient_of_whole_batch(toy, data, features, 0.5 if 2 * step < updates else 1.0, reduction, loss)
        for got, want in zip(gradients, expected, strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize("unit", ["epoch", "step"])
def test_the_temperature_follows_the_schedule(toy, tmp_path, data, unit):
    _, watch = toy.train(
        tmp_path, data, AnnealingKDLoss(3), unit=unit,
        per_device_train_batch_size=3, gradient_accumulation_steps=2, num_train_epochs=5,
    )  # fmt: skip
    schedule = AnnealingSchedule(3, {"epoch": 5, "step": 10}[unit])  # two optimizer steps an epoch
    assert watch.temperatures == [schedule.temperature(step // 2 if unit == "epoch" else step) for step in range(10)]


def test_max_steps_within_an_epoch(toy, tmp_path, data):
    """Three steps of four an epoch are one epoch, the last one: T = 1."""
    _, watch = toy.train(tmp_path, data, AnnealingKDLoss(3), per_device_train_batch_size=3, max_steps=3)
    assert watch.temperatures == [1, 1, 1]


@pytest.mark.parametrize("unit, stop_at", [("epoch", 4), ("epoch", 6), ("step", 6)])  # four steps an epoch
def test_a_resumed_run_is_the_run_that_never_stopped(toy, tmp_path, data, unit, stop_at):
    # All samples alike: which of them come next is the Trainer's affair, and its 5.0 errs within an epoch.
    data = {k: v[:1].repeat(toy.SAMPLES, *[1] * (v.ndim - 1)) for k, v in data.items()}
    settings = {"unit": unit, "per_device_train_batch_size": 3, "num_train_epochs": 4, "optim": "adamw_torch"}
    whole, watched = toy.train(tmp_path, data, AnnealingKDLoss(4), **settings)
    saving = settings | {"save_strategy": "steps", "save_steps": stop_at}
    _, before = toy.train(tmp_path, data, AnnealingKDLoss(4), stop_at=stop_at, **saving)
    resumed, after = toy.train(
        tmp_path, data, AnnealingKDLoss(4), resume=f"{tmp_path}/checkpoint-{stop_at}", **settings
    )
    assert len(before.temperatures) == stop_at
    assert before.temperatures + after.temperatures == watched.temperatures
    for got, want in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(got, want)


def test_evaluation_is_by_the_labels_and_needs_no_teacher(toy, tmp_path, data):
    trainer, _ = toy.train(tmp_path, data, AnnealingKDLoss(2), per_device_train_batch_size=5, num_train_epochs=1)
    model = trainer.model.eval()
    expected = model(data["features"], data["labels"])["loss"].item()
    for columns in (data, {k: v for k, v in data.items() if k != "teacher_logits"}):
        found = trainer.evaluate(toy.dataset(columns))["eval_loss"]
        assert found == pytest.approx(expected, rel=1e-5)  # a mean of two means in float32


@pytest.mark.parametrize("missing", ["teacher_logits", "labels"])
def test_a_column_that_is_missing(toy, tmp_path, data, missing):
    del data[missing]
    with pytest.raises(ValueError, match=f"the training batch has no column '{missing}'; it has"):
        toy.train(tmp_path, data, AnnealingKDLoss(2), num_train_epochs=1)


def test_a_criterion_without_a_reduction(toy, tmp_path, data):
    with pytest.raises(ValueError, match="criterion has reduction 'none'"):
        toy.train(tmp_path, data, AnnealingKDLoss(2, reduction="none"))


def test_a_criterion_of_hidden_states(toy, tmp_path, data):
    with pytest.raises(TypeError, match="criterion is a LinearAnnealingKDLoss, of hidden states; accepted"):
        toy.train(tmp_path, data, LinearAnnealingKDLoss(2, teacher_weight=torch.ones(3, 2)))


def test_token_and_multi_label_classification(toy, tmp_path, data):
    """One item a token, or one a class: the same mean over logit vectors either way."""
    trainer = toy.AnnealingTrainer(
        toy.Student(), toy.arguments(tmp_path), criterion=AnnealingKDLoss(2), train_dataset=toy.dataset(data)
    )
    student, teacher = torch.randn(2, 4, 5, toy.CLASSES).unbind()
    tokens = torch.ones(4, 5, dtype=torch.long)
    tokens[1, 2:] = -100
    kept = tokens.ne(-100)
    expected = (student - 0.5 * teacher)[kept].square().mean()
    loss = trainer._annealed_loss({"logits": student}, (tokens, teacher), kept.sum())
    torch.testing.assert_close(loss, expected)
    several = torch.ones(4, toy.CLASSES)
    loss = trainer._annealed_loss({"logits": student[:, 0]}, (several, teacher[:, 0]), several.ne(-100).sum())
    torch.testing.assert_close(loss, (student - 0.5 * teacher)[:, 0].square().mean())


def test_data_without_a_length(toy, tmp_path, data):
    """What ends that training is max_steps alone; by epochs T would stay at tau_max."""

    def trainer(unit):
        criterion = AnnealingKDLoss(3)
        watch = toy.Watch(criterion)
        settings = toy.arguments(tmp_path, max_steps=6, per_device_train_batch_size=2, remove_unused_columns=False)
        made = toy.AnnealingTrainer(toy.Student(), settings, criterion=criterion, unit=unit, train_dataset=toy.Stream(data),
                                callbacks=[watch])  # fmt: skip
        made.train()
        return watch.temperatures

    with pytest.raises(
        ValueError, match="unit is 'epoch', and the training data have no length.*accepted: unit='step'"
    ):
        trainer("epoch")
    assert trainer("step") == [3, 3, 2, 2, 1, 1]


def test_too_few_epochs_are_said(toy, tmp_path, data):
    with pytest.warns(UserWarning, match="T takes 1 of tau_max = 3 values; unit='step'"):
        toy.train(tmp_path, data, AnnealingKDLoss(3), num_train_epochs=1)


def test_a_model_without_a_loss_is_named_when_it_is_evaluated(toy, tmp_path, data):
    class NoLoss(toy.Student):
        def forward(self, features, labels=None):
            return {"logits": self.layer(features)}

    trainer = toy.AnnealingTrainer(
        NoLoss(), toy.arguments(tmp_path, num_train_epochs=1, eval_strategy="epoch"), criterion=AnnealingKDLoss(1),
        train_dataset=toy.dataset(data), eval_dataset=toy.dataset(data),
    )  # fmt: skip
    with pytest.raises(ValueError, match="evaluating, the model returned no 'loss', only 'logits'; let its forward"):
        trainer.train()


def test_an_early_stop_beside_the_schedule_is_a_warning(toy, tmp_path, data):
    from transformers import EarlyStoppingCallback

    trainer = toy.AnnealingTrainer(
        toy.Student(), toy.arguments(tmp_path, eval_strategy="epoch", metric_for_best_model="loss", num_train_epochs=3),
        criterion=AnnealingKDLoss(3), train_dataset=toy.dataset(data), eval_dataset=toy.dataset(data),
        callbacks=[EarlyStoppingCallback()],
    )  # fmt: skip
    with pytest.warns(UserWarning, match="EarlyStoppingCallback may end stage I before T is 1") as said:
        trainer.train()
    assert not [one for one in said if "nobody has set its temperature" in str(one.message)]
