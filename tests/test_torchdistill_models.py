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
