"""The networks have exactly the parameters of the paper's (and TAKD's) ones, and the shapes the data asks for."""

import pytest

pytest.importorskip("torchdistill", reason="the plug-in needs torchdistill: pip install '.[test]'")
pytest.importorskip("torchvision.datasets", reason="torchdistill needs torchvision: pip install '.[test]'")

import torch
from torchdistill.models.registry import get_model

import akd_ext.torchdistill  # noqa: F401  registers the models


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("key", "num_classes", "expected"),
    [
        ("resnet8", 10, 78_042),
        ("resnet8", 100, 83_892),
        ("resnet20", 10, 272_474),
        ("resnet20", 100, 278_324),
        ("resnet110", 10, 1_730_714),
        ("resnet110", 100, 1_736_564),
        ("plain_cnn2", 10, 13_082),
        ("plain_cnn2", 100, 215_172),
        ("plain_cnn4", 10, 37_338),
        ("plain_cnn4", 100, 475_652),
        ("plain_cnn10", 10, 2_487_850),
        ("plain_cnn10", 100, 2_931_460),
    ],
)
def test_cifar_networks_have_the_papers_parameter_counts(key, num_classes, expected):
    model = get_model(key, num_classes=num_classes)
    assert parameters(model) == expected
    if key != "resnet110":
        assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, num_classes)


def test_plain_cnn_refuses_a_class_count_the_paper_does_not_have():
    with pytest.raises(ValueError, match="plain_cnn4: num_classes is 7, the paper has 10 or 100"):
        get_model("plain_cnn4", num_classes=7)


@pytest.mark.parametrize(("key", "kwargs"), [("digits_cnn", {"width": 4}), ("digits_mlp", {"width": 5, "depth": 2})])
def test_digits_networks_take_digits(key, kwargs):
    assert get_model(key, **kwargs).eval()(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


def test_relu_stands_between_hidden_layers_only():
    layers = [type(m).__name__ for m in get_model("digits_mlp", width=5, depth=2).classifier]
    assert layers == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]


def test_shortcut_a_has_no_parameters_and_takes_every_second_pixel():
    model = get_model("cifar_resnet", depth=20, shortcut="A").eval()
    assert (
        parameters(model) == 269_722
    )  # 272,474 less two 1x1 convolutions (512 + 2,048) and their BatchNorms (64 + 128)
    images = torch.arange(2 * 16 * 4 * 4, dtype=torch.float32).reshape(2, 16, 4, 4)
    shorter = model.layer2[0].downsample(images)
    assert shorter.shape == (2, 32, 2, 2)
    assert torch.equal(shorter[:, 8:24], images[:, :, ::2, ::2])
    assert shorter[:, :8].count_nonzero() == shorter[:, 24:].count_nonzero() == 0


def test_shortcut_b_is_torchdistills_network():
    ours, theirs = get_model("cifar_resnet", depth=20), get_model("resnet20", num_classes=10)
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(ours.eval()(images), theirs.eval()(images))


def test_a_last_layer_called_linear_loads():
    model = get_model("cifar_resnet", depth=8, shortcut="A")
    state = {key.replace("fc.", "linear."): torch.full_like(value, 2) for key, value in model.state_dict().items()}
    model.load_state_dict(state)
    assert model.fc.weight.eq(2).all() and model.fc.bias.eq(2).all()
    assert "linear.weight" in state  # the caller's dict is as it was


@pytest.mark.parametrize(
    ("kwargs", "problem"),
    [({"depth": 21}, "depth is 21"), ({"depth": 2}, "depth is 2"), ({"depth": 20, "shortcut": "C"}, "shortcut is 'C'")],
)
def test_cifar_resnet_refuses(kwargs, problem):
    with pytest.raises(ValueError, match=problem):
        get_model("cifar_resnet", **kwargs)


def test_pooling_before_relu_changes_no_bit():
    model = get_model("plain_cnn4")
    images = torch.randn(8, 3, 32, 32)
    weights = torch.randn(8, 10)
    results = []
    for swapped in (False, True):
        layers = list(model.features)
        if swapped:  # the order of the paper's text
            for i in [i for i, layer in enumerate(layers) if isinstance(layer, torch.nn.MaxPool2d)]:
                layers[i : i + 2] = reversed(layers[i : i + 2])
        order = torch.nn.Sequential(*layers)
        model.zero_grad()
        logits = model.classifier(order(images).flatten(1))
        (logits * weights).sum().backward()
        results.append([logits.detach(), *(p.grad.clone() for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
