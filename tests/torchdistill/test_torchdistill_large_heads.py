"""Stage I from the inputs of the last layers: the numbers of AnnealingKDLoss, without logits."""

import copy

import pytest

pytest.importorskip("torchdistill", reason="the plug-in needs torchdistill: pip install '.[test]'")
pytest.importorskip("torchvision.datasets", reason="torchdistill needs torchvision: pip install '.[test]'")

import torch
from torch import nn
from torchdistill.common import main_util, yaml_util
from torchdistill.core.distillation import get_distillation_box
from torchdistill.models.registry import get_model

import akd_ext
from akd_ext.reproduce.recipes import config_dir
from akd_ext.torchdistill import LinearAnnealingKDLoss, headless_forward

CLASSES = 50


class Net(nn.Module):
    def __init__(self, width, bias=True):
        super().__init__()
        self.body, self.fc = nn.Linear(5, width), nn.Linear(width, CLASSES, bias=bias)

    def forward(self, x):
        return self.fc(self.body(x).relu())


def told(student, teacher, **kwargs):
    loss = LinearAnnealingKDLoss(tau_max=4, **kwargs)
    loss.find_heads(student, teacher)
    loss.set_temperature(3)
    return loss


def hooked(model, x):
    """What torchdistill's hook sees of a headless forward pass."""
    seen = []
    handle = model.fc.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    headless_forward(model, x)
    handle.remove()
    return {"fc": {"input": seen[0]}}


@pytest.mark.parametrize("widths", [(6, 6), (6, 9)])
@pytest.mark.parametrize("implementation", ["gram", "chunked", "auto"])
@pytest.mark.parametrize("bias", [False, True])
def test_equals_the_loss_of_the_logits(widths, implementation, bias):
    student, teacher = Net(widths[0], bias), Net(widths[1]).requires_grad_(False)
    loss, x = told(student, teacher, implementation=implementation), torch.randn(7, 5)
    found = loss(hooked(student, x), hooked(teacher, x))
    expected = akd_ext.annealed_mse_loss(student(x), teacher(x), loss.phi)
    torch.testing.assert_close(found, expected)
    parameters = list(student.parameters())
    gradients = torch.autograd.grad(expected, parameters)
    torch.testing.assert_close(torch.autograd.grad(found, parameters), gradients)


def test_the_last_layer_is_left_out_and_put_back():
    student, x = Net(6), torch.randn(7, 5)
    expected, hidden = student(x), student.body(x).relu()
    told(student, student)
    assert torch.equal(headless_forward(student, x), hidden)
    assert torch.equal(student(x), expected)
    with pytest.raises(RuntimeError):
        headless_forward(student, x[:, :2])
    assert torch.equal(student(x), expected)
    assert copy.deepcopy(student)(x).equal(expected)


def test_a_forward_that_somebody_put_into_the_last_layer_stays():
    """As accelerate's hooks do."""
    student, x = Net(6), torch.randn(7, 5)
    told(student, student)
    own = student.fc.forward
    student.fc.forward = wrapped = lambda hidden: 2 * own(hidden)
    expected, hidden = student(x), student.body(x).relu()
    assert torch.equal(headless_forward(student, x), hidden)
    assert student.fc.forward is wrapped and torch.equal(student(x), expected)


def test_what_is_missing_is_said():
    student, x = Net(6), torch.randn(7, 5)
    with pytest.raises(RuntimeError, match="no loss named the model's last layer"):
        headless_forward(student, x)
    loss = LinearAnnealingKDLoss(tau_max=4)
    with pytest.raises(RuntimeError, match="nobody told it of the temperature and the models' last layers"):
        loss({}, {})
    with pytest.raises(TypeError, match="student_module_path 'body' is a ReLU, accepted is the model's last layer"):
        student.body = nn.ReLU()
        told(student, student, student_module_path="body")
    with pytest.raises(ValueError, match="student_module_path 'fc' with student_module_io 'input' is not a tensor"):
        told(student, Net(6))({}, {})
    with pytest.raises(ValueError, match="reduction is 'none'"):
        LinearAnnealingKDLoss(tau_max=4, reduction="none")


def box_of_the_recipe(linear):
    """Stage 1 of the recipe, on eight images of fifty classes; or the same with AnnealingKDLoss."""
    config = yaml_util.load_yaml_file(str(config_dir() / "large_heads" / "annealing_kd.yaml"))
    main_util.import_dependencies(config["dependencies"])
    for dataset in config["datasets"].values():
        dataset.size, dataset.num_classes = 8, CLASSES
    config["models"]["teacher_model"]["key"] = "resnet8"
    stage, test = config["train"]["stage1"], config["train"]["stage1"]["val_data_loader"]
    stage["train_data_loader"]["sampler"] = test["sampler"]  # in order
    if not linear:
        stage["criterion"]["kwargs"]["sub_terms"]["annealing_kd"]["criterion"] = {
            "key": "AnnealingKDLoss", "kwargs": {"tau_max": 10},
        }  # fmt: skip
        for model in ("teacher", "student"):
            stage[model] = {**stage[model], "forward_proc": "forward_batch_only", "forward_hook": {}}
    torch.manual_seed(0)
    models = [get_model(m["key"], **{**m["kwargs"], "num_classes": CLASSES}) for m in config["models"].values()]
    return get_distillation_box(*models, config["datasets"], config["train"], torch.device("cpu"), None, False, 1)


def test_a_step_of_the_recipe_is_a_step_of_annealing_kd():
    states, made = [], {True: [], False: []}
    for linear in (True, False):
        box = box_of_the_recipe(linear)
        for model in (box.teacher_model, box.student_model):
            model.fc.register_forward_hook(lambda module, args, output, to=made[linear]: to.append(output.shape[-1]))
        box.pre_epoch_process(epoch=0)
        for batch, targets, supp_dict in box.train_data_loader:
            box.post_forward_process(loss=box.forward_process(batch, targets, supp_dict))
        states.append(box.student_model.state_dict())
    assert (set(made[True]), set(made[False])) == ({64}, {CLASSES})
    torch.testing.assert_close(*states)
    assert not torch.equal(states[0]["fc.weight"], box_of_the_recipe(True).student_model.state_dict()["fc.weight"])
