"""What the plug-in registers for text: forward processes, losses, the schedule, the buckets, the hand-over."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip("torchdistill", reason="this is the plug-in for it: pip install '.[test]'")
pytest.importorskip("torchvision.datasets", reason="torchdistill needs torchvision: pip install '.[test]'")

from akd_ext.torchdistill import text
from akd_ext.torchdistill.losses import AnnealingKDLoss


class Encoder(nn.Module):
    """Stands in for a Hugging Face classifier: takes two columns and returns an output with logits."""

    def forward(self, input_ids, attention_mask):
        assert input_ids.shape == attention_mask.shape
        return Output(logits=input_ids.float()[:, :2])


class Output(dict):
    __getattr__ = dict.get


def test_labels_and_unknown_columns_do_not_reach_the_model():
    ids = torch.tensor([[1, 2, 3]])
    batch = {"input_ids": ids, "attention_mask": ids, "labels": torch.tensor([0]), "index": torch.tensor([7])}
    assert text.forward_logits(Encoder(), batch).tolist() == [[1.0, 2.0]]
    output = text.forward_with_label_loss(Encoder(), batch)
    # -log softmax([1, 2])[0] = log(1 + e)
    assert output.loss.item() == pytest.approx(1.31326, abs=1e-5)
    assert text.extract_label_loss(output)["label_loss"] is output.loss
    assert text.extract_label_loss(torch.zeros(1)) == {}


def test_a_regression_does_not_broadcast():
    logits, labels = torch.tensor([[1.0], [3.0]]), torch.tensor([1.0, 5.0])
    assert text.label_loss(logits, labels).item() == (0 + 4) / 2  # [2, 1] against [2] would give (0 + 4 + 16 + 4) / 4
    assert text.label_loss(logits[:1], labels[:1]).item() == 0.0
    half = text.label_loss(torch.tensor([[4.0]], dtype=torch.bfloat16), torch.tensor([3.8]))
    assert half.item() == pytest.approx(0.2**2, abs=1e-6)  # bfloat16's nearest is 3.796875: 0.0413
    with pytest.raises(ValueError, match=r"logits are \[2, 1\] and labels \[2, 1\]; accepted are \[B, classes\]"):
        text.label_loss(logits, labels[:, None])


def test_the_teachers_part_of_kd_by_hand():
    def io(logits):
        return {".": {"output": Output(logits=torch.tensor(logits))}}

    loss = text.LogitKDLoss(temperature=2.0)
    # softmax([2 ln 3, 0] / 2) = (3/4, 1/4), the student's is (1/2, 1/2): T^2 (3/4 ln(3/2) + 1/4 ln(1/2))
    expected = 4 * (0.75 * torch.tensor(1.5).log() + 0.25 * torch.tensor(0.5).log())
    teacher = [[2 * float(torch.tensor(3.0).log()), 0.0]]
    assert loss(io([[0.0, 0.0]]), io(teacher)).item() == pytest.approx(float(expected), abs=1e-6)
    assert loss(io([[1.0], [2.0]]), io([[2.0], [4.0]])).item() == (1 + 4) / 2
    with pytest.raises(ValueError, match=r"student's logits are \[1, 2\], the teacher's \[1, 3\]"):
        loss(io([[0.0, 0.0]]), io([[0.0, 0.0, 0.0]]))
    with pytest.raises(ValueError, match="temperature is 0, accepted is a number above 0"):
        text.LogitKDLoss(temperature=0)


def test_the_annealing_loss_takes_the_logits_of_an_output():
    loss = AnnealingKDLoss(tau_max=2)
    loss.set_temperature(1)
    output = {".": {"output": Output(logits=torch.ones(2, 2))}}
    assert loss(output, {".": {"output": torch.zeros(2, 2)}}).item() == 1.0


def test_the_rate_rises_in_the_warmup_and_ends_at_zero():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, rates = text.linear_decay(optimizer, 10, warmup=0.2), []
    for _ in range(11):
        rates.append(round(optimizer.param_groups[0]["lr"], 9))
        optimizer.step()
        scheduler.step()
    assert rates == [0.0, 0.5, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0]
    with pytest.raises(ValueError, match="num_training_steps is None"):
        text.linear_decay(optimizer, None)


def test_buckets_hold_similar_lengths_and_every_example_once():
    lengths = [(7 * i) % 40 + 1 for i in range(403)]
    sampler = text.LengthBucketSampler([{"input_ids": [0] * n} for n in lengths], batch_size=8, window=50)
    order = list(sampler)
    assert sorted(order) == list(range(403)) and len(sampler) == 403

    def padded(order):
        batches = [[lengths[i] for i in order[at : at + 8]] for at in range(0, 403, 8)]
        return sum(max(batch) * len(batch) for batch in batches)

    # One window holds everything: 400 lengths, sorted, have at most 40 steps of 1, so 50 batches of 8 pad by at most
    # 40 * 8; the last batch, of 3, by at most 3 * 39.
    assert padded(order) <= sum(lengths) + 40 * 8 + 3 * 39 < padded(torch.randperm(403).tolist())
    assert list(sampler) != order  # another epoch


def test_the_best_of_stage_one_is_taken_from_its_folder(tmp_path, caplog):
    from safetensors.torch import save_model

    best, student = nn.Linear(2, 2), nn.Linear(2, 2)
    save_model(best, str(tmp_path / "model.safetensors"))
    for stage, folder in ((1, tmp_path), (2, tmp_path / "nothing"), (3, tmp_path)):
        box = SimpleNamespace(
            student_model=student, teacher_model=nn.Linear(2, 2), optimizer=None, criterion=nn.Module(),
            student_io_dict={}, teacher_io_dict={}, train_data_loader=None, val_data_loader=None, distributed=False, device=torch.device("cpu"), stage_number=stage,
            stage_end_epoch=2 * stage, teacher_forward_proc=text.forward_logits,
            train_config={f"stage{s}": {"num_epochs": 2, "student": {"src_folder": str(folder)} if s > 1 else {}}
                          for s in (1, 2, 3)},
        )  # fmt: skip
        text.text_pre_epoch_process(box, epoch=2 * stage - 2)
        assert torch.equal(student.weight, best.weight) == (stage == 3)
        if stage == 3:  # not again in its second epoch
            nn.init.zeros_(student.weight)
            text.text_pre_epoch_process(box, epoch=5)
            assert not student.weight.any()
    assert "stage 2: there is no" in caplog.text


def test_layers_are_taken_in_order_and_the_model_is_left_alone():
    transformers = pytest.importorskip("transformers", reason="takes layers of its models: pip install '.[glue]'")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=4, num_attention_heads=2, intermediate_size=8
    )
    model = transformers.BertForSequenceClassification(config)
    small = text.take_layers(model, [0, 3])
    assert small.config.num_hidden_layers == len(small.bert.encoder.layer) == 2
    for taken, layer in zip(small.bert.encoder.layer, (0, 3), strict=True):
        own, theirs = taken.state_dict(), model.bert.encoder.layer[layer].state_dict()
        assert all(torch.equal(own[k], theirs[k]) for k in theirs)
    assert model.config.num_hidden_layers == len(model.bert.encoder.layer) == 4
    assert small(torch.ones(1, 3, dtype=torch.long)).logits.shape == (1, 2)
    for layers in ([], [4], [-1], ["0"]):
        with pytest.raises(ValueError, match="accepted are ints from 0 to 3"):
            text.take_layers(model, layers)
    with pytest.raises(ValueError, match="Linear has 0 lists"):
        linear = nn.Linear(2, 2)
        linear.config = config
        text.take_layers(linear, [0])


@pytest.mark.integration
def test_accelerate_gets_use_fp16_back_and_transformers_is_not_imported():
    pytest.importorskip("accelerate", reason="repairs accelerate: pip install '.[glue]'")
    program = """
import sys
import akd_ext.torchdistill
assert not {"accelerate", "transformers", "datasets"} & set(sys.modules)
import accelerate
assert not hasattr(accelerate.Accelerator, "use_fp16"), "accelerate has it again: the repair is not needed"
assert akd_ext.torchdistill.repair_accelerate() == ["Accelerator", "AcceleratorState"]
assert akd_ext.torchdistill.repair_accelerate() == []
accelerator = accelerate.Accelerator(cpu=True)
assert accelerator.use_fp16 is accelerator.state.use_fp16 is False
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
