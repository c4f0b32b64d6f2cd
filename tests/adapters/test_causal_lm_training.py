"""Whole trainings with the Trainer for causal language models: updates, checkpoints, resuming, several processes."""

import contextlib

import pytest
import torch

import akd_ext

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def toy():
    pytest.importorskip("transformers", reason="the adapter needs it: pip install '.[transformers]'")
    pytest.importorskip("datasets", reason="the texts are one: pip install '.[transformers]'")
    import causal_lm_fixture

    return causal_lm_fixture


@pytest.fixture
def texts(toy):
    """Of unequal lengths, padded at the end."""
    rows = []
    for place, length in enumerate([7, 3, 5, 7, 2, 6, 4, 7]):
        ids = torch.randint(1, toy.CLASSES, (7,))
        attention = (torch.arange(7) < length).long()
        rows.append({"input_ids": ids, "attention_mask": attention, "labels": ids.clone(), "index": place, "note": "x"})
    return rows


def dataset(rows):
    from datasets import Dataset

    return Dataset.from_list([{k: v.tolist() if torch.is_tensor(v) else v for k, v in row.items()} for row in rows])


def trained(toy, folder, texts, teacher, student=None, resume=None, args=None, **given):
    student = toy.model(tie_word_embeddings=True) if student is None else student
    settings = {"num_train_epochs": 1, "per_device_train_batch_size": 8} | (args or {})
    made = toy.trainer(folder, student, teacher, settings, train_dataset=dataset(texts), **given)
    made.train(resume_from_checkpoint=resume)
    return made


def assert_same_weights(one, other, **bound):
    for (name, got), wanted in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(got, wanted, **bound, msg=lambda text, name=name: f"{name}: {text}")


# Float32 inside transformers' layers, see test_causal_lm.py; the updates are a tenth of the gradients.
EXACT = {"rtol": 1e-6, "atol": 1e-6}


@pytest.mark.parametrize("family, tied", [("Llama", True), ("Llama", False), ("Qwen2", True), ("GPT2", True)])
@pytest.mark.parametrize("implementation", ["gram", "chunked"])
def test_micro_batches_make_the_update_of_the_whole_batch(toy, tmp_path, texts, family, tied, implementation):
    """Of 1 x 8, 8 x 1 and (3, 3, 2), with unequal numbers of tokens; and that of the whole logits."""
    teacher = toy.model("Llama", 24, 1)
    start = toy.model(family, tie_word_embeddings=tied)
    inputs = {name: torch.stack([row[name] for row in texts]) for name in ("input_ids", "attention_mask", "labels")}
    plain = toy.model(family, tie_word_embeddings=tied)
    toy.plain_mse(plain, teacher, inputs, 1.0).backward()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter -= 0.1 * parameter.grad
    assert not torch.equal(next(plain.parameters()), next(start.parameters()))
    for size, parts in ((8, 1), (1, 8), (3, 3)):
        made = trained(
            toy, tmp_path, texts, teacher, toy.model(family, tie_word_embeddings=tied),
            args={"per_device_train_batch_size": size, "gradient_accumulation_steps": parts},
            criterion=akd_ext.AnnealingKDLoss(1), loss_options={"implementation": implementation},
        )  # fmt: skip
        assert made.state.global_step == 1
        assert_same_weights(made.model, plain, **EXACT)


def test_the_gram_matrices_are_made_once_an_optimizer_step(toy, tmp_path, texts, monkeypatch):
    from akd_ext.linear import module

    calls = []
    own = module.grams
    monkeypatch.setattr(module, "grams", lambda *given: calls.append(1) or own(*given))
    args = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    trained(toy, tmp_path, texts, toy.model(), args=args, loss_options={"implementation": "gram"})
    assert len(calls) == 2


def test_a_failing_micro_batch_leaves_no_open_block(toy, tmp_path, texts):
    args = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    made = toy.trainer(
        tmp_path, toy.model(), toy.model(seed=1), args | {"num_train_epochs": 1}, train_dataset=dataset(texts),
        loss_options={"implementation": "gram"},
    )  # fmt: skip
    own, calls = made.compute_loss, []

    def fails_once(*given, **options):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("a full disk")
        return own(*given, **options)

    made.compute_loss = fails_once
    with pytest.raises(RuntimeError, match="a full disk"):
        made.train()
    made.train()
    assert made.state.global_step == 2


@pytest.mark.parametrize("how", ["Ctrl-C", "by a callback"])
def test_what_was_stopped_between_two_micro_batches_is_forgotten(toy, tmp_path, texts, how):
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        stopped = False

        def on_substep_end(self, args, state, control, **_):
            if self.stopped or state.global_step != 1:
                return
            self.stopped = True
            if how == "Ctrl-C":
                raise KeyboardInterrupt
            control.should_training_stop = True

    def trained_after(callbacks):
        args = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "num_train_epochs": 1}
        made = toy.trainer(
            tmp_path, toy.model(), toy.model(seed=1), args, train_dataset=dataset(texts), callbacks=callbacks,
            loss_options={"implementation": "gram"},
        )  # fmt: skip
        start = {name: tensor.clone() for name, tensor in made.model.state_dict().items()}
        if callbacks:
            with contextlib.suppress(KeyboardInterrupt):
                made.train()
            assert callbacks[0].stopped
            made.model.load_state_dict(start)
            made.model.zero_grad()
        made.train()
        return made.model

    assert_same_weights(trained_after([Stop()]), trained_after([]), rtol=0, atol=0)


def test_data_without_a_length_may_end_within_a_step(toy, tmp_path, texts):
    """Seven texts, four a step: the Trainer adds the gradients of the last three to those of the next step."""
    from datasets import IterableDataset

    rows = [{k: v.tolist() if torch.is_tensor(v) else v for k, v in row.items()} for row in texts[:7]]
    args = {"max_steps": 3, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}

    def trained_with(block):
        made = toy.trainer(
            tmp_path, toy.model(), toy.model(seed=1), args, train_dataset=IterableDataset.from_generator(rows.__iter__),
            loss_options={"implementation": "gram"},
        )  # fmt: skip
        if not block:
            made._accumulate = lambda *_: None
        made.train()
        return made.model

    assert_same_weights(trained_with(block=True), trained_with(block=False), **EXACT)


@pytest.mark.parametrize("unit", ["step", "epoch"])
def test_the_temperature_follows_the_schedule(toy, tmp_path, texts, unit):
    criterion, seen = akd_ext.AnnealingKDLoss(4), []

    class Made(toy.CausalLMAnnealingTrainer):
        def training_step(self, *given):
            seen.append(criterion.temperature)
            return super().training_step(*given)

    args = toy.arguments(tmp_path, num_train_epochs=4, per_device_train_batch_size=4)
    Made(
        toy.model(), args, teacher=toy.model(seed=1), criterion=criterion, unit=unit, train_dataset=dataset(texts)
    ).train()
    schedule = akd_ext.AnnealingSchedule(4, {"step": 8, "epoch": 4}[unit])
    assert seen == [schedule.temperature(step if unit == "step" else step // 2) for step in range(8)]


def test_checkpoints_are_plain_models_and_a_resumed_run_is_the_run_that_never_stopped(toy, tmp_path, texts):
    import transformers

    teacher = toy.model("Llama", 24, 1)
    texts = [texts[0]] * 8  # which of them come next is the Trainer's affair
    args = {
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "optim": "adamw_torch",
        "learning_rate": 1e-3,
    }
    saving = args | {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    saving |= {"load_best_model_at_end": True, "metric_for_best_model": "loss"}
    whole = trained(toy, tmp_path / "whole", texts, teacher, args=saving, eval_dataset=dataset(texts))
    assert whole.state.global_step == 4
    last = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "whole/checkpoint-4", dtype=torch.float64)
    resumed = trained(toy, tmp_path / "resumed", texts, teacher, args=args, resume=str(tmp_path / "whole/checkpoint-2"))
    assert type(last) is type(whole.model)
    assert_same_weights(resumed.model, last, rtol=0, atol=0)
    best = transformers.AutoModelForCausalLM.from_pretrained(whole.state.best_model_checkpoint, dtype=torch.float64)
    assert_same_weights(whole.model, best, rtol=0, atol=0)
    whole.save_model(tmp_path / "saved")
    saved = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float64)
    assert_same_weights(saved, best, rtol=0, atol=0)


def test_a_cache_trains_as_its_teacher_does(toy, tmp_path, texts):
    """With the column that the Trainer would drop, and without a teacher in memory."""
    teacher = toy.model("Llama", 24, 1)
    states = toy.States(teacher, [row["input_ids"][row["attention_mask"] == 1].tolist() for row in texts])
    args = {"per_device_train_batch_size": 3, "num_train_epochs": 2}
    online = trained(toy, tmp_path, texts, teacher, args=args)
    cached = trained(toy, tmp_path, texts, None, args=args, teacher_states=states, teacher_head=teacher.lm_head)
    assert_same_weights(cached.model, online.model, **EXACT)


def test_bf16_and_gradient_checkpointing(toy, tmp_path, texts):
    """Under autocast the decoders compute in bfloat16: 4e-3 a rounding; the loss is float32. What is run again is the same."""
    teacher = toy.model("Llama", 24, 1).float()
    plain = trained(toy, tmp_path, texts, teacher, toy.model().float())
    mixed = trained(toy, tmp_path, texts, teacher, toy.model().float(), args={"bf16": True})
    again = trained(
        toy, tmp_path, texts, teacher, toy.model().float(), args={"bf16": True, "gradient_checkpointing": True}
    )
    assert_same_weights(again.model, mixed.model, rtol=0, atol=0)
    assert next(mixed.model.parameters()).dtype is torch.float32
    start = toy.model().float()
    for one, other, before in zip(mixed.model.parameters(), plain.model.parameters(), start.parameters(), strict=True):
        assert (one - other).norm() < 0.05 * (other - before).norm()
        assert not torch.equal(one, other)
