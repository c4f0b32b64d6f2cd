"""frozen_forward says what the model says, follows its weights, and steps aside where a copy would not do."""

import gc
import weakref

import pytest

pytest.importorskip("torchdistill", reason="the plug-in needs torchdistill: pip install '.[test]'")
pytest.importorskip("torchvision.datasets", reason="torchdistill needs torchvision: pip install '.[test]'")

import torch
from torch import nn
from torchdistill.core.interfaces.registry import get_forward_proc_func

from akd_ext.torchdistill import frozen, frozen_forward, resnet8

BATCH = 20


def teacher(make=resnet8):
    """A frozen float64 network whose BatchNorm statistics and weights are nobody's defaults."""
    model = make().double()
    with torch.no_grad():
        for value in [*model.parameters(), *model.buffers()]:
            if value.is_floating_point():
                value.add_(torch.rand_like(value))
    return model.eval().requires_grad_(False)


@pytest.fixture
def images():
    return torch.randn(BATCH, 3, 32, 32, dtype=torch.float64)


def same(a, b):
    """Equal but for the roundings of float64: 2^-53 each, a few thousand additions in a row at most."""
    return (a - b).abs().max() <= 1e-12 * b.abs().max()


def runs_a_copy(model):
    return frozen._COPIES[model].module is not None


@pytest.mark.integration
def test_it_says_what_the_model_says(images):
    model = teacher()
    for batch in (images, images.contiguous(memory_format=torch.channels_last), images[:1]):
        assert same(frozen_forward(model, batch), model(batch))
    assert runs_a_copy(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in frozen._COPIES[model].module.modules())


def test_a_teacher_left_in_train_mode_is_put_to_rest(images):
    model = teacher()
    expected, before = model(images), {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    assert same(frozen_forward(model, images), expected)
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_loss_can_go_backward_from_its_output(images):
    taught = frozen_forward(teacher(), images)
    student = torch.zeros_like(taught, requires_grad=True)
    # mse_loss saves its target for the backward pass, which torch refuses for a tensor made in inference mode.
    nn.functional.mse_loss(student, taught, reduction="sum").backward()
    assert torch.equal(student.grad, -2 * taught)


@pytest.mark.integration
def test_it_follows_the_models_weights(images):
    model, other = teacher(), teacher()
    frozen_forward(model, images)
    model.load_state_dict(other.state_dict())
    assert same(frozen_forward(model, images), other(images))


def replace_a_layer(model):
    model.fc = nn.Linear(64, 10).double().requires_grad_(False)


def replace_a_buffer(model):
    model.bn1.running_mean = torch.full((16,), 3.0, dtype=torch.float64)


def assign_a_state(model):
    model.load_state_dict(teacher().state_dict(), assign=True)


@pytest.mark.integration
@pytest.mark.parametrize("change", [replace_a_layer, replace_a_buffer, assign_a_state])
def test_it_notices_what_was_replaced(images, change):
    model = teacher()
    before = frozen_forward(model, images)
    change(model)
    assert not same(before, model(images))
    assert same(frozen_forward(model, images), model(images))


@pytest.mark.integration
def test_it_follows_the_models_dtype_and_its_thaw(images):
    model = teacher()
    frozen_forward(model, images)
    assert frozen_forward(model.float(), images.float()).dtype is torch.float32
    with pytest.raises(ValueError, match="require gradients"):
        frozen_forward(model.requires_grad_(True), images.float())


@pytest.mark.integration
def test_one_layer_in_train_mode_is_put_to_rest(images):
    model = teacher()
    frozen_forward(model, images)
    model.bn1.train()
    frozen_forward(model, images)
    assert not model.bn1.training


def test_weights_made_in_inference_mode(images):
    with torch.inference_mode():
        model = teacher()
    assert torch.equal(frozen_forward(model, images), model(images))


def test_a_batch_that_is_no_tensor_is_named():
    with pytest.raises(TypeError, match="sample_batch is a dict"):
        frozen_forward(teacher(), {"images": 1})


@pytest.mark.integration
def test_hooks_see_the_model_run(images):
    model, seen = teacher(), []
    frozen_forward(model, images)
    handle = model.layer2.register_forward_hook(lambda module, inputs, output: seen.append(output))
    frozen_forward(model, images)
    assert [len(output) for output in seen] == [BATCH]
    handle.remove()
    frozen_forward(model, images)
    assert len(seen) == 1
    assert runs_a_copy(model)


class OneConvolutionForTwo(nn.Module):
    """Folding either BatchNorm into the convolution spoils it for the other."""

    def __init__(self):
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, images):
        return (self.a(self.conv(images)) + self.b(self.conv(images))).flatten(1)


class Untraceable(OneConvolutionForTwo):
    def forward(self, images):
        return super().forward(images) if images.sum() > 0 else self.conv(images).flatten(1)


class GivesADictionary(OneConvolutionForTwo):
    def forward(self, images):
        return {"logits": super().forward(images)}


@pytest.mark.parametrize("make", [OneConvolutionForTwo, Untraceable, lambda: nn.DataParallel(resnet8())])
def test_a_model_that_cannot_be_copied_runs_itself(images, make):
    model = teacher(make)
    assert torch.equal(frozen_forward(model, images), model(images))
    assert not runs_a_copy(model)


def test_an_output_that_is_no_tensor_passes(images):
    model = teacher(GivesADictionary)
    assert torch.equal(frozen_forward(model, images)["logits"], model(images)["logits"])


def test_a_model_that_is_being_trained_is_refused(images):
    with pytest.raises(ValueError, match="parameters require gradients.*requires_grad: False"):
        frozen_forward(teacher().requires_grad_(True), images)


@pytest.mark.integration
def test_it_keeps_no_model_alive(images):
    model = teacher()
    frozen_forward(model, images)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_it_is_registered():
    assert get_forward_proc_func("frozen_forward") is frozen_forward
