"""A mistake in a later stage is found before the first epoch, and looking for it leaves no trace in a run."""

from __future__ import annotations

# ruff: noqa: E501 - the table of faults is read line by line
import json
from pathlib import Path

import pytest
import torch
from places import TINY

pytest.importorskip("torchdistill", reason="akd-train runs torchdistill's boxes; pip install 'akd_ext[experiments]'")

from akd_ext.train import cli, trainer
from akd_ext.train.dry_build import _shallow

STAGE2 = "train.stage2"
CE = f"{STAGE2}.criterion.kwargs.sub_terms.ce"


@pytest.fixture
def train(tmp_path, monkeypatch, capfd):
    """(exit code, stderr) of akd-train on the toy YAML."""
    import train_fixture

    monkeypatch.chdir(tmp_path)
    train_fixture.save_teacher(tmp_path)
    monkeypatch.setattr(trainer, "draw_curves", lambda *args: None)

    def run(*overrides: str, out: str = "out", args: tuple[str, ...] = ()) -> tuple[int, str]:
        sets = [part for override in overrides for part in ("--set", override)]
        code = cli.main(["--config", TINY, "--device", "cpu", "--seed", "0", "--output_dir", out, *sets, *args])
        return code, capfd.readouterr().err

    return run


LATE = [
    (f"{STAGE2}.train_data_loader={{dataset_id: tiny/train, sampler: {{class_or_func: !import_get {{key: torch.utils.data.RandomSampler}}}}, kwargs: {{batch_size: 8, num_workers: -2}}}}",
     f"{STAGE2}.train_data_loader: ", "num_workers"),
    (f"{STAGE2}.student.forward_hook={{output: ['7']}}", f"{STAGE2}.student.forward_hook.output: ", "has no module '7'"),
    (f"{CE}.criterion_wrapper.kwargs.input.module_path=fc", f"{CE}: ", "KeyError: 'fc'"),
    (f"{CE}.criterion_wrapper.kwargs.input={{is_from_teacher: True, module_path: layer, io: output}}", f"{CE}: ", "'layer'"),
    (f"{STAGE2}.student.requires_grad=False", f"{STAGE2}.optimizer: ", "no parameter requires a gradient in this stage"),
    (f"{STAGE2}.student.sequential=['0', '3']", f"{STAGE2}.", ""),
    (f"{STAGE2}.optimizer.grad_accum_step=7", f"{STAGE2}.optimizer.grad_accum_step: 7 is more than the 6 steps", "never step"),
    ("test.test_data_loader.kwargs={batch_size: 0}", "test.test_data_loader: ", "batch_size"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "start", "words"), LATE, ids=[f"{n}-{row[1]}" for n, row in enumerate(LATE)])
def test_a_mistake_in_stage_2_costs_no_epoch(train, monkeypatch, override, start, words):
    def no_training(*args, **kwargs):
        raise AssertionError("the mistake was not found before the first epoch")

    monkeypatch.setattr(trainer.Trainer, "fit", no_training)
    code, said = train(override)
    (error,) = [line for line in said.splitlines() if line.startswith("akd-train: error: ")]
    assert code == 2, said
    assert error.startswith(f"akd-train: error: {start}") and words in error


@pytest.mark.parametrize("role", ["train.stage2.teacher", "train.stage1.student"])
def test_a_checkpoint_of_another_network_is_found(train, monkeypatch, tmp_path, role):
    torch.save({"0.weight": torch.zeros(3)}, tmp_path / "other.pt")
    monkeypatch.setattr(trainer.Trainer, "fit", None)
    code, said = train(f"{role}.src_ckpt=other.pt")
    assert code == 2 and f"error: {role}.src_ckpt: " in said and "'other.pt' does not fit" in said


INDEXED = "train.stage1.train_data_loader.dataset_wrapper={key: IndexedDatasetWrapper}"
ANNEALING = "train.stage1.pre_epoch_process=annealing_pre_epoch_process"
AUGMENTED = "datasets.tiny/train=!import_call {key: own_images_fixture.Images, init: {kwargs: {form: augmented}}}"


@pytest.mark.parametrize(
    ("overrides", "said_of_it"),
    [
        (
            [ANNEALING],
            "which does not say which samples a batch holds; add `dataset_wrapper: {key: 'IndexedDatasetWrapper'}`",
        ),
        ([INDEXED, ANNEALING, AUGMENTED], "gives other samples when it is asked for the same ones again"),
        (
            [INDEXED, "train.stage1.pre_epoch_process=default_pre_epoch_process_with_teacher"],
            "nothing would compute the teacher's logits; add pre_epoch_process: ",
        ),
        (
            [INDEXED, ANNEALING, "train.stage1.teacher.requires_grad=True"],
            "the teacher is being trained, so its logits change",
        ),
    ],
    ids=["no index", "augmented", "no process", "trained"],
)
def test_a_teacher_that_cannot_be_looked_up_is_found(train, monkeypatch, overrides, said_of_it):
    monkeypatch.setattr(trainer.Trainer, "fit", None)
    cached = ["dependencies=[train_fixture, akd_ext.torchdistill]", "train.stage1.teacher.forward_proc=cached_forward"]
    code, said = train(*cached, "train.stage2.pre_epoch_process=annealing_pre_epoch_process", *overrides)
    assert code == 2, said
    assert "error: train.stage1.teacher.forward_proc: " in said and said_of_it in said


def test_a_stage_with_a_cached_teacher_is_tried_with_the_teacher_itself(train, monkeypatch):
    monkeypatch.setattr(trainer.Trainer, "fit", None)
    code, said = train(
        "dependencies=[train_fixture, akd_ext.torchdistill]", "train.stage1.teacher.forward_proc=cached_forward",
        INDEXED, ANNEALING, "models.teacher_model.kwargs={width: 8, num_classes: 5}", "models.teacher_model.src_ckpt=",
    )  # fmt: skip
    assert code == 2 and "error: train.stage1.criterion.kwargs.sub_terms.akd: it does not work: " in said


def test_looking_leaves_no_trace(train, monkeypatch):
    found = []
    for out in ("with", "without"):
        assert train(out=out)[0] == 0
        monkeypatch.setattr(trainer, "dry_build_stages", lambda *args: None)
        monkeypatch.setattr(trainer, "check_teacher", lambda *args, **kwargs: None)
        results = json.loads(Path(out, "results.json").read_text())
        found.append([(entry["train_loss"], entry["val_accuracy"]) for entry in results["epochs"]])
        found.append(Path(out, "best.safetensors").read_bytes())
    assert found[:2] == found[2:]


def test_a_data_set_that_opens_its_file_at_the_first_sample_has_not_opened_it_before_training(train, monkeypatch):
    import train_fixture

    held = []

    def opens_lazily(self, index):
        self.opened = True
        return self.images[index], self.targets[index]

    monkeypatch.setattr(train_fixture.TinyImages, "__getitem__", opens_lazily)
    monkeypatch.setattr(
        trainer.Trainer, "fit", lambda self: held.append(vars(self.box.train_data_loader.dataset.org_dataset))
    )
    monkeypatch.setattr(trainer.Trainer, "test", lambda self, job: None)
    train()
    assert len(held) == 1 and "opened" not in held[0]


def test_a_subset_is_copied_down_to_its_data_set():
    from torch.utils.data import ConcatDataset, Subset, TensorDataset

    whole = TensorDataset(torch.arange(4))
    view = _shallow(ConcatDataset([Subset(whole, [0, 1]), whole]))
    view.datasets[0].dataset.handle = view.datasets[1].handle = "open"
    assert not hasattr(whole, "handle") and view[0][0] == 0 and view[2][0].data_ptr() == whole[0][0].data_ptr()


def test_a_model_that_cannot_be_copied_is_trained_all_the_same(train, monkeypatch):
    import train_fixture

    def no_copy(self, memo):
        raise RuntimeError("Only Tensors created explicitly by the user support the deepcopy protocol")

    monkeypatch.setattr(train_fixture.nn.Conv2d, "__deepcopy__", no_copy, raising=False)
    monkeypatch.setattr(trainer.Trainer, "fit", lambda self: (_ for _ in ()).throw(ZeroDivisionError("reached")))
    code, said = train()
    assert code == 1 and "the stages are not tried beforehand" in said and "reached" in said


def test_a_frozen_teacher_is_tried_in_eval_mode(train, monkeypatch, tmp_path):
    """In train mode BatchNorm refuses a batch of one; the run itself puts a frozen teacher in eval mode."""
    import train_fixture

    torch.save(train_fixture.tiny_with_batch_norm_1d().state_dict(), tmp_path / "teacher.pt")
    reached = []
    monkeypatch.setattr(trainer.Trainer, "fit", lambda self: reached.append(True))
    monkeypatch.setattr(trainer.Trainer, "test", lambda self, job: None)
    said = train(
        "models.teacher_model.key=tiny_with_batch_norm_1d",
        "models.teacher_model.kwargs={}",
        "train.stage1.train_data_loader.kwargs.batch_size=1",
    )[1]
    assert reached, said


# -- the teacher -------------------------------------------------------------------------------------------------------


def test_a_teacher_near_chance_is_said_before_the_first_epoch(train, tmp_path):
    weights = torch.load(tmp_path / "teacher.pt")
    weights["4.weight"].zero_()  # the same class for every image
    torch.save(weights, tmp_path / "teacher.pt")
    code, said = train()
    lines = said.splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith("epoch 1/"))
    (score,) = [n for n, line in enumerate(lines) if line.startswith("the teacher, before training: ")]
    (warned,) = [n for n, line in enumerate(lines) if "is near chance (16.67 %)" in line]
    assert code == 0 and score < warned < first


def test_random_weights_are_said_even_where_nobody_tests_the_teacher(train, monkeypatch):
    monkeypatch.setattr(trainer.Trainer, "fit", None)
    said = train("models.teacher_model.src_ckpt=", args=("-student_only",))[1]
    assert "warning: models.teacher_model: it names no src_ckpt and no pretrained weights" in said
    assert "the teacher, before training" not in said


@pytest.mark.parametrize("name", ["4.bias", "1.running_var"])  # fp16 can spoil BatchNorm's statistics alone
def test_a_teacher_that_is_not_finite_is_to_blame(train, tmp_path, name):
    weights = torch.load(tmp_path / "teacher.pt")
    weights[name][0] = float("nan")
    torch.save(weights, tmp_path / "teacher.pt")
    code, said = train()
    assert code == 2 and f"the teacher's own weights are not finite ('{name}')" in said and "learning rate" not in said
