"""The networks of the paper's CIFAR tables, and two small ones for scikit-learn's digits."""

import itertools

from torch import nn
from torchdistill.models.classification.resnet import ResNet4Cifar
from torchdistill.models.registry import register_model
from torchvision.models.resnet import BasicBlock


@register_model
def resnet8(num_classes=10, **kwargs):
    """CIFAR ResNet-8: one basic block per stage, the student of the paper's ResNet tables.

    torchdistill's own class with one block per stage; the deeper ones are registered there as ``resnet20`` and
    ``resnet110``. Takes [B, 3, 32, 32], gives [B, num_classes].

    Example:
        >>> sum(p.numel() for p in resnet8(num_classes=10).parameters())
        78042
    """
    return ResNet4Cifar(BasicBlock, [1, 1, 1], num_classes, **kwargs)


class PlainCNN(nn.Module):
    """A plain CNN of the paper's CIFAR tables (its shape is that of TAKD, Mirzadeh et al., 2019).

    Every convolution is 3x3 with padding 1 and a bias, followed by BatchNorm and ReLU; between fully connected layers
    there is a ReLU.

    Args:
        convs: the output channels of the convolutions in order, and ``"M"`` for a 2x2 max-pooling.
        hidden: the widths of the hidden fully connected layers.
        num_classes: the number of classes.
        in_channels, image_size: channels and side length of the (square) input images.

    Shapes: [B, in_channels, image_size, image_size] -> [B, num_classes].
    """

    def __init__(self, convs, hidden, num_classes, in_channels=3, image_size=32):
        super().__init__()
        layers, channels, side = [], in_channels, image_size
        for width in convs:
            if width == "M":
                layers.append(nn.MaxPool2d(2))
                side //= 2
            else:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = _fully_connected([channels * side * side, *hidden, num_classes])

    def forward(self, images):
        """Logits of a batch of images."""
        return self.classifier(self.features(images).flatten(1))


def _fully_connected(widths):
    layers = []
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        layers += [nn.ReLU()] if i else []
        layers.append(nn.Linear(fan_in, fan_out))
    return nn.Sequential(*layers)


# (convolutions, hidden layers) by number of classes: the paper's nets are wider for CIFAR-100.
_CONVS_10 = [32, 32, "M", 64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M"]
_PLAIN_CNNS = {
    2: {10: ([16, "M", 16, "M"], []), 100: ([32, "M", 32, "M"], [])},
    4: {10: ([16, 16, "M", 32, 32, "M"], []), 100: ([32, 32, "M", 64, 64, "M"], [])},
    10: {10: (_CONVS_10, [128]), 100: (_CONVS_10, [512])},
}


def _plain_cnn(depth, num_classes):
    shapes = _PLAIN_CNNS[depth]
    if num_classes not in shapes:
        accepted = " or ".join(map(str, shapes))
        raise ValueError(f"plain_cnn{depth}: num_classes is {num_classes!r}, the paper has {accepted}; see PlainCNN")
    return PlainCNN(*shapes[num_classes], num_classes)


@register_model
def plain_cnn2(num_classes=10):
    """The 2-layer plain CNN, the student of the paper's CNN tables: 13,082 or 215,172 parameters (10, 100 classes).

    Example:
        >>> sum(p.numel() for p in plain_cnn2(num_classes=10).parameters())
        13082
    """
    return _plain_cnn(2, num_classes)


@register_model
def plain_cnn4(num_classes=10):
    """The 4-layer plain CNN, the teacher assistant: 37,338 or 475,652 parameters (10, 100 classes).

    Example:
        >>> sum(p.numel() for p in plain_cnn4(num_classes=10).parameters())
        37338
    """
    return _plain_cnn(4, num_classes)


@register_model
def plain_cnn10(num_classes=10):
    """The 10-layer plain CNN, the teacher: 2,487,850 or 2,931,460 parameters (10, 100 classes).

    Example:
        >>> sum(p.numel() for p in plain_cnn10(num_classes=10).parameters())
        2487850
    """
    return _plain_cnn(10, num_classes)


class DigitsCNN(PlainCNN):
    """A plain CNN for 8x8 digits: convolutions of ``width`` and ``2 * width`` channels, a max-pooling after each.

    Shapes: [B, 1, 8, 8] -> [B, 10].
    """

    def __init__(self, width, num_classes=10):
        super().__init__([width, "M", 2 * width, "M"], [], num_classes, in_channels=1, image_size=8)


class DigitsMLP(nn.Module):
    """An MLP for 8x8 digits with ``depth`` hidden layers of ``width`` ReLUs.

    Shapes: [B, 1, 8, 8] -> [B, 10].
    """

    def __init__(self, width, depth=1, num_classes=10):
        super().__init__()
        self.classifier = _fully_connected([64, *[width] * depth, num_classes])

    def forward(self, images):
        """Logits of a batch of images."""
        return self.classifier(images.flatten(1))


@register_model
def digits_cnn(width, num_classes=10):
    """``DigitsCNN``: for width 32, 21,578 parameters.

    Example:
        >>> sum(p.numel() for p in digits_cnn(width=32).parameters())
        21578
    """
    return DigitsCNN(width, num_classes)


@register_model
def digits_mlp(width, depth=1, num_classes=10):
    """``DigitsMLP``: for width 16 and depth 1, 1,210 parameters.

    Example:
        >>> sum(p.numel() for p in digits_mlp(width=16).parameters())
        1210
    """
    return DigitsMLP(width, depth, num_classes)
