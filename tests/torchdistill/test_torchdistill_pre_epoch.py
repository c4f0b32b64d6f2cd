"""The pre-epoch process, in real torchdistill boxes: the right temperature, the teacher's mode, what it finds."""

import logging

import pytest

pytest.importorskip("torchdistill", reason="the plug-in needs torchdistill: pip install '.[test]'")
pytest.importorskip("torchvision.datasets", reason="torchdistill needs torchvision: pip install '.[test]'")

import torch
from torch import nn
from torch.utils.data import RandomSampler, TensorDataset
from torchdistill.core.distillation import get_distillation_box
from torchdistill.core.training import get_training_box
from torchdistill.losses.registry import register_loss_wrapper

import akd_ext
import akd_ext.torchdistill
from akd_ext.torchdistill.pre_epoch import annealing_losses, epoch_within_stage

CPU = torch.device("cpu")
AKD = {"criterion": {"key": "AnnealingKDLoss", "kwargs": {"tau_max": 3}}, "weight": 1.0}


def net():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))


def stage(num_epochs, terms=None, **teacher):
    loader = {
        "dataset_id": "data",
        "sampler": {"class_or_func": RandomSampler},
        "kwargs": {"batch_size": 4},
    }
    return {
        "num_epochs": num_epochs,
        "train_data_loader": loader,
        "val_data_loader": {**loader, "requires_supp": False},
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False, **teacher},
        "student": {"forward_proc": "forward_batch_only"},
        "model": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "SGD", "kwargs": {"lr": 0.1}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"akd": AKD} if terms is None else terms}},
        "pre_epoch_process": "annealing_pre_epoch_process",
    }


def make_box(train_config, *, with_teacher=True, device=CPU):
    torch.manual_seed(0)
    data = {"data": TensorDataset(torch.randn(12, 4), torch.arange(12) % 3)}
    common = (data, train_config, device, None, False, 1)
    return get_distillation_box(net(), net(), *common) if with_teacher else get_training_box(net(), *common)


def temperatures(box):
    """T before each epoch of the whole training; None where no loss has one."""
    seen = []
    for epoch in range(box.num_epochs):
        box.pre_epoch_process(epoch=epoch)
        losses = list(annealing_losses(box.criterion))
        seen.append(losses[0][1].temperature if losses else None)
        box.post_epoch_process()
    return seen


CE = {
    "ce": {
        "criterion": {"key": "CrossEntropyLoss", "kwargs": {}},
        "criterion_wrapper": {
            "key": "SimpleLossWrapper",
            "kwargs": {
                "input": {"is_from_teacher": False, "module_path": ".", "io": "output"},
                "target": {"uses_label": True},
            },
        },
        "weight": 1.0,
    }
}


def test_temperature_falls_over_a_single_stage():
    assert temperatures(make_box(stage(6))) == [3, 3, 2, 2, 1, 1]


def test_temperature_counts_the_epochs_of_its_own_stage():
    box = make_box({"stage1": stage(2, CE), "stage2": stage(3), "stage3": stage(4)})
    assert temperatures(box) == [None, None, 3, 2, 1, 3, 3, 2, 1]


def test_a_training_box_without_teacher_works_too():
    assert temperatures(make_box(stage(3), with_teacher=False)) == [3, 2, 1]
    assert temperatures(make_box({"stage1": stage(1, CE), "stage2": stage(3)}, with_teacher=False)) == [None, 3, 2, 1]


def test_t_and_phi_are_logged_once_an_epoch(caplog):
    box = make_box(stage(3))
    with caplog.at_level(logging.INFO, logger="akd_ext.torchdistill"):
        logging.getLogger("torchdistill").propagate = True
        box.pre_epoch_process(epoch=1)
    assert [r.getMessage() for r in caplog.records if "Phi" in r.getMessage()] == [
        "[akd] epoch 2/3 of this stage: T = 2, Phi = 0.6667"
    ]


def test_a_frozen_teacher_keeps_its_batch_statistics():
    box = make_box(stage(1))
    before = {k: v.clone() for k, v in box.teacher_model.state_dict().items()}
    box.pre_epoch_process(epoch=0)
    for samples, targets, supp_dict in box.train_data_loader:
        box.post_forward_process(box.forward_process(samples, targets, supp_dict))
    assert not box.teacher_model.training
    assert box.student_model.training
    assert all(torch.equal(v, before[k]) for k, v in box.teacher_model.state_dict().items())


def test_torchdistills_own_process_lets_them_drift():
    """Why ours must exist; when this fails, torchdistill has changed."""
    box = make_box({**stage(1, CE), "pre_epoch_process": "default_pre_epoch_process_with_teacher"})
    before = box.teacher_model[1].running_mean.clone()
    box.pre_epoch_process(epoch=0)
    samples, targets, supp_dict = next(iter(box.train_data_loader))
    box.forward_process(samples, targets, supp_dict)
    assert not torch.equal(box.teacher_model[1].running_mean, before)


def test_a_teacher_in_the_optimizer_stays_in_train_mode():
    box = make_box({"stage1": stage(1), "stage2": stage(1, requires_grad=True)})
    box.pre_epoch_process(epoch=0)
    assert not box.teacher_model.training
    box.post_epoch_process()
    box.pre_epoch_process(epoch=1)
    assert box.teacher_model.training


def test_a_teacher_outside_the_optimizer_is_frozen_whatever_the_yaml_says():
    config = stage(1, requires_grad=True)
    config["optimizer"]["module_wise_configs"] = [{"module": "0", "kwargs": {"lr": 0.1}}]  # the student's first layer
    box = make_box(config)
    box.pre_epoch_process(epoch=0)
    assert not box.teacher_model.training


def test_a_frozen_teacher_is_frozen_even_when_the_optimizer_lists_it():
    config = stage(1)
    config["optimizer"]["module_wise_configs"] = [
        {"module": "0", "kwargs": {"lr": 0.1}},
        {"module": "0", "kwargs": {"lr": 0.1}, "is_teacher": True},
    ]
    box = make_box(config)
    box.pre_epoch_process(epoch=0)
    assert not box.teacher_model.training


def test_buffers_move_to_the_boxs_device():
    box = make_box(stage(2))
    box.device = torch.device("meta")  # the one other device that every machine has
    box.pre_epoch_process(epoch=0)
    assert box.criterion.term_dict["akd"][0].phi.device.type == "meta"


@pytest.mark.parametrize("epoch", [2, -1])
def test_an_epoch_outside_the_stage_is_an_error(epoch):
    box = make_box({"stage1": stage(2), "stage2": stage(2, CE)})
    with pytest.raises(ValueError, match=rf"epoch {epoch} is outside stage 1 \(epochs 0 to 1\).*--start_epoch"):
        box.pre_epoch_process(epoch=epoch)


def test_a_missing_epoch_is_an_error():
    with pytest.raises(ValueError, match="epoch is None"):
        make_box(stage(2)).pre_epoch_process()


def test_epoch_within_stage():
    assert epoch_within_stage(make_box(stage(5)), 3) == (3, 5)


@register_loss_wrapper
class _Wrapper(nn.Module):
    def __init__(self, loss, **kwargs):
        super().__init__()
        self.wrapped = loss


def test_losses_are_found_inside_wrappers():
    box = make_box(stage(1, {"wrapped": {**AKD, "criterion_wrapper": {"key": "_Wrapper"}}, **CE}))
    assert [name for name, _ in annealing_losses(box.criterion)] == ["wrapped"]
    box.pre_epoch_process(epoch=0)
    assert box.criterion.term_dict["wrapped"][0].wrapped.temperature == 1


def test_losses_are_found_in_nested_and_foreign_criteria():
    first, second, third = (akd_ext.AnnealingKDLoss(tau_max=2) for _ in range(3))
    inner, outer = nn.Module(), nn.Module()
    inner.term_dict = {"deep": (first, 1.0), "again": (first, 0.5)}
    outer.term_dict = {"inner": (inner, 1.0), "number": 3}
    outer.parts = nn.ModuleList([second])
    outer.plain_list = [third]
    outer.itself = [outer]  # a cycle must not hang
    found = dict(annealing_losses(outer))
    assert found["deep"] is first
    assert {id(loss) for _, loss in annealing_losses(outer)} == {id(first), id(second), id(third)}
    assert len(list(annealing_losses(outer))) == 3


def test_a_criterion_that_is_no_module_is_searched_not_broken():
    assert list(annealing_losses(lambda *args: 0)) == []


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        ({"requires_grad": True}, "train.stage1.teacher: the teacher is trained with the student, 6 of its 6 parameters"),
        ({"requires_grad": True, "frozen_modules": ["0"]}, "4 of its 6 parameters from '1.weight' on (2 are frozen)"),
        ({"requires_grad": False}, None),
        ({"requires_grad": True, "forward_proc": "skip_forward"}, None),
    ],
)  # fmt: skip
def test_a_teacher_that_learns_is_said_once_a_stage(caplog, teacher, words):
    box = make_box({"stage1": stage(3, **teacher), "stage2": stage(1)})
    with caplog.at_level(logging.WARNING):
        for epoch in range(3):
            box.pre_epoch_process(epoch=epoch)
    said = [record.getMessage() for record in caplog.records if "the teacher is trained" in record.getMessage()]
    assert len(said) == (words is not None)
    assert not said or (words in said[0] and "`requires_grad: False`" in said[0])


@pytest.mark.parametrize(("num_epochs", "said"), [(1, "has 1 epoch, so T takes 1 of its tau_max = 3 values: 1, nothing"),
                                                  (2, "has 2 epochs, so T takes 2 of its tau_max = 3 values"), (3, "")])  # fmt: skip
def test_fewer_epochs_than_temperatures_are_said_once(num_epochs, said, caplog):
    box = make_box(stage(num_epochs))
    with caplog.at_level(logging.WARNING):
        temperatures(box)
    words = [record.getMessage() for record in caplog.records if "tau_max" in record.getMessage()]
    assert len(words) == bool(said) and all(said in one for one in words)
