"""A newcomer's own images: what is wrong with them is one sentence, before the first epoch wherever it can be known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from places import TINY

pytest.importorskip("torchdistill", reason="akd-train runs torchdistill's boxes; pip install 'akd_ext[experiments]'")

from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset

from akd_ext.train import cli, trainer
from akd_ext.train.system.errors import ConfigError
from akd_ext.train.system.failures import explain
from akd_ext.train.system.precision import Precision
from akd_ext.train.tasks.evaluate import evaluate
from akd_ext.train.tasks.samples import check_sample, known_labels, name_of
from akd_ext.train.teacher_check import check_teacher

ONE_OF_SIX = "accepted: 0 to 5, as the model has 6 classes"
PAIR = "accepted: a pair (image, label), the image a tensor and the label an int from 0"


@pytest.fixture
def train(tmp_path, monkeypatch, capfd):
    """(exit code, what was said after `error: `) of akd-train on the toy YAML."""
    import train_fixture

    monkeypatch.chdir(tmp_path)
    train_fixture.save_teacher(tmp_path)
    monkeypatch.setattr(trainer, "draw_curves", lambda *args: None)
    monkeypatch.setattr(trainer, "check_teacher", lambda *args: None)

    def run(*overrides: str, out: str = "out") -> tuple[int, str]:
        sets = [part for override in overrides for part in ("--set", override)]
        code = cli.main(["--config", TINY, "--device", "cpu", "--seed", "0", "--quiet", "--output_dir", out, *sets])
        said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("akd-train: error: ")]
        return code, said[0].removeprefix("akd-train: error: ") if said else ""

    return run


@pytest.fixture
def no_training(monkeypatch):
    def fit(self):
        raise AssertionError("it was not found before the first epoch")

    monkeypatch.setattr(trainer.Trainer, "fit", fit)


def own(split="train", key="Images", **kwargs) -> str:
    call = f"{{key: own_images_fixture.{key}, init: {{kwargs: {json.dumps(kwargs)}}}}}"
    return f"datasets.tiny/{split}=!import_call {call}"


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(
    ("form", "problem"),
    [
        ("dict", f"a sample is a dict with the keys 'image', 'label'; {PAIR}"),
        ("triple", f"a sample has 3 parts (Tensor, int, str); {PAIR}"),
        ("text", "a label is the text 'class "),
        ("PIL", f"an image is one of PIL, which torchvision.transforms.ToTensor() makes a tensor of; {PAIR}"),
    ],
)
def test_samples_of_another_form(train, no_training, split, form, problem):
    if form == "triple" and split == "val":
        problem = ""  # an evaluation reads the first two
    code, said = train(own(split, form=form))
    if not problem:
        assert code == 1 and "it was not found" in said
        return
    assert code == 2 and said.startswith(f"train.stage1.{split}_data_loader: the data set 'tiny/{split}': {problem}")


def test_a_label_that_is_a_float(train, no_training):
    code, said = train(own(form="float"))
    assert code == 2
    assert said.startswith("train.stage2.train_data_loader: the data set 'tiny/train': a label is ")
    assert ", of torch.float64; accepted: an int (" in said


@pytest.mark.parametrize(("key", "at"), [("Images", 47), ("subset", 47)])
def test_a_label_that_is_no_class_and_that_the_data_set_lists(train, no_training, key, at):
    code, said = train(own(key=key, at=at))
    assert (code, said) == (
        2,
        f"train.stage2.train_data_loader: the data set 'tiny/train' has the label 6; {ONE_OF_SIX}",
    )


LABELLED = TensorDataset(torch.zeros(3, 1), torch.tensor([4, 5, 6]))


def test_the_labels_of_data_sets_in_a_row():
    assert known_labels(ConcatDataset([LABELLED, Subset(LABELLED, [2])])).tolist() == [4, 5, 6, 6]
    silent = TensorDataset(torch.zeros(3, 1))
    assert known_labels(ConcatDataset([LABELLED, silent])) is None


@pytest.mark.parametrize("labels", [torch.zeros(3, 2), torch.zeros(3), ["a", "b", "c"], [4, 5]])
def test_a_list_of_no_labels(labels):
    data = TensorDataset(torch.zeros(3, 1))
    data.targets = labels
    assert known_labels(data) is None


REASON = TypeError("of the batch")
BAD_SAMPLES = [
    (torch.zeros(1), "a sample is a Tensor"),
    ((torch.zeros(1), object()), "the label of a sample is a object"),
    ((object(), 1), "the image of a sample is a object"),
]


@pytest.mark.parametrize(("sample", "problem"), BAD_SAMPLES)
def test_what_is_wrong_with_a_sample(sample, problem):
    loader = DataLoader([sample])
    with pytest.raises(ConfigError) as raised:
        check_sample(loader, 0, name_of(loader.dataset, {}), REASON)
    assert str(raised.value) == f"the data set: {problem}; {PAIR} (TypeError: of the batch)"


def test_nothing_is_said_of_samples_that_are_not_the_reason():
    check_sample(DataLoader([(torch.zeros(1), 1)]), 0, "the data set 'x'", REASON)
    for sample, _ in BAD_SAMPLES:  # a collate function of the user's own makes what it likes of them
        check_sample(DataLoader([sample], collate_fn=list), 0, "the data set 'x'", REASON)


@pytest.mark.parametrize("label", [-1, 6])
def test_a_label_of_the_validation_or_the_test_that_is_no_class(train, no_training, label):
    for split, place in (("val", "train.stage1.val_data_loader"), ("test", "test.test_data_loader")):
        code, said = train(own(split, at=40, label=label))
        assert (code, said) == (2, f"{place}: the data set 'tiny/{split}' has the label {label}; {ONE_OF_SIX}")


def test_what_is_wrong_in_a_list_alone_is_no_mistake(train):
    assert train(own(form="shifted", at=47, label=60), own("val", form="shifted", at=47, label=60))[0] == 0


def test_labels_that_a_loss_leaves_out_and_that_none_reads_may_be_anything(train):
    assert train(own(at=47, label=-100))[0] == 0
    unlabelled = "train.stage2.criterion.kwargs.sub_terms={akd: {criterion: {key: TinyAnnealing, kwargs: {tau_max: 3}}, weight: 1.0}}"
    assert train(own(at=47, label=-1), unlabelled, out="other")[0] == 0


def test_soft_labels_of_the_training_data_are_taken(train):
    assert train(own(form="mixture"))[0] == 0


def test_a_label_found_in_training_names_the_data(train):
    code, said = train(own(at=47, lists=False))
    assert code == 1
    assert said.startswith(
        "the data set 'tiny/train' has the label 6 in stage 2, epoch 4, and the model has no such class; "
    )


def test_the_best_epoch_is_not_chosen_by_labels_that_are_no_class(train):
    code, said = train(own("val", at=47, lists=False))
    assert (code, said) == (2, f"the data set 'tiny/val' has the label 6; {ONE_OF_SIX}")
    assert not Path("out", "checkpoint.pt").exists()


def test_a_gpu_that_refuses_an_index():
    error = RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be ...")
    assert "a label of the data set 'own/train' that is no class" in explain(
        error, " in stage 2", "the data set 'own/train'"
    )


def test_a_wrong_label_of_the_test_set_counts_as_wrong_and_is_said(train, tmp_path):
    """Nothing is chosen by it, and the training is over."""
    assert train(own("test", at=20, size=24, lists=False))[0] == 0
    assert json.loads(Path("out", "results.json").read_text())["complete"]
    assert (
        f"the data set 'tiny/test' has the label 6; {ONE_OF_SIX}; it counts as wrong"
        in Path("out", "train.log").read_text()
    )


def test_a_teacher_of_fewer_classes_is_not_refused(tmp_path, train, monkeypatch):
    """It may teach features alone; the loss of stage 1 is one of stage 2's, which reads no teacher."""
    import train_fixture

    monkeypatch.setattr(trainer, "check_teacher", check_teacher)
    torch.save(train_fixture.tiny_net(width=8, num_classes=4).state_dict(), tmp_path / "teacher.pt")
    student = {"is_from_teacher": False, "module_path": ".", "io": "output"}
    wrapper = {"key": "SimpleLossWrapper", "kwargs": {"input": student, "target": {"uses_label": True}}}
    cross_entropy = {"key": "CrossEntropyLoss", "kwargs": {}}
    sub_terms = json.dumps({"ce": {"criterion": cross_entropy, "criterion_wrapper": wrapper, "weight": 1.0}})
    overrides = [f"train.stage{n}.criterion.kwargs.sub_terms={sub_terms}" for n in (1, 2)]
    assert train("models.teacher_model.kwargs.num_classes=4", *overrides) == (0, "")


@pytest.mark.parametrize("split", ["train", "val"])
def test_labels_that_the_sampler_leaves_out_may_be_anything(train, split):
    first = "{class_or_func: !import_get {key: own_images_fixture.First}, kwargs: {count: 24}}"
    assert train(own(split, at=47), f"train.stage1.{split}_data_loader.sampler={first}") == (0, "")


def test_a_collate_function_is_given_no_batch_of_another_size(train):
    """What is only listed is looked up in the data set itself."""
    plug_ins = "dependencies=[train_fixture, own_images_fixture]"
    assert train(
        plug_ins, own(form="shifted", at=47, label=60), "train.stage1.train_data_loader.collate_fn=in_pairs"
    ) == (0, "")


def measure(*targets):
    loader = [(torch.eye(3)[: len(part)], torch.tensor(part)) for part in targets]
    return evaluate(
        nn.Identity(), loader, torch.device("cpu"), Precision(None, torch.device("cpu")), data="the data set 'x'"
    )


def test_an_evaluation_says_which_label_is_none_of_the_classes():
    assert measure([0, 1], [2]).top1 == pytest.approx(200 / 3)
    assert measure([0, 1], [2]).wrong_label is None
    for wrong in (3, -1, -100):
        assert measure([0, wrong], [2, 1]).wrong_label == wrong
    with pytest.raises(ConfigError, match=r"labels of shape \[2, 1\] came"):
        measure([[0], [1]])
