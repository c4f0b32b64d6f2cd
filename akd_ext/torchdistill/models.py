"""The networks of the paper's CIFAR tables, and two small ones for scikit-learn's digits."""

import itertools

from torch import nn
from torchdistill.models.classification.resnet import ResNet4Cifar
from torchdistill.models.registry import register_model
from torchvision.models.resnet import BasicBlock


class CifarResNet(ResNet4Cifar):
    """torchdistill's CIFAR ResNet (He et al., 2016, section 4.2) of any depth, with a choice of shortcut.

    Args:
        depth: 6 n + 2 layers, n basic blocks in each of the three stages of 16, 32 and 64 channels.
        num_classes: the number of classes.
        shortcut: what a block that halves the image adds: ``"B"``, a 1x1 convolution with BatchNorm (the paper's tables,
            and torchdistill's own ``resnet20`` ... ``resnet110``), or ``"A"``, every second pixel, the new channels
            zero, without parameters (the CIFAR networks of He et al.; many public checkpoints are of this kind).

    A state dict that calls the last layer ``linear`` instead of ``fc``, as public option-A checkpoints do, loads too.

    Shapes: [B, 3, 32, 32] -> [B, num_classes].

    Raises:
        ValueError: a depth that is not 6 n + 2, or another shortcut.
    """

    def __init__(self, depth, num_classes=10, shortcut="B"):
        if type(depth) is not int or depth < 8 or (depth - 2) % 6:
            raise ValueError(f"CifarResNet: depth is {depth!r}, accepted are 8, 14, 20, ..., 6 n + 2")
        if shortcut not in ("A", "B"):
            raise ValueError(f"CifarResNet: shortcut is {shortcut!r}, accepted are 'A' and 'B'")
        super().__init__(BasicBlock, [(depth - 2) // 6] * 3, num_classes)
        if shortcut == "A":
            for stage in (self.layer2, self.layer3):
                stage[0].downsample = _OptionA()
        self.register_load_state_dict_pre_hook(_linear_is_fc)


class _OptionA(nn.Module):
    def forward(self, x):
        extra = x.shape[1] // 2
        return nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, extra, extra))


def _linear_is_fc(module, state, prefix, *_):
    for name in ("weight", "bias"):
        if f"{prefix}linear.{name}" in state:
            state[f"{prefix}fc.{name}"] = state.pop(f"{prefix}linear.{name}")


@register_model
def cifar_resnet(depth, num_classes=10, shortcut="B"):
    """``CifarResNet`` of any depth.

    Example:
        >>> sum(p.numel() for p in cifar_resnet(56, shortcut="A").parameters())
        853018
    """
    return CifarResNet(depth, num_classes, shortcut)


@register_model
def resnet8(num_classes=10, shortcut="B"):
    """CIFAR ResNet-8, the student of the paper's ResNet tables: 78,042 or 83,892 parameters (10, 100 classes).

    Example:
        >>> sum(p.numel() for p in resnet8(num_classes=10).parameters())
        78042
    """
    return CifarResNet(8, num_classes, shortcut)


class PlainCNN(nn.Module):
    """A plain CNN of the paper's CIFAR tables (its shape is that of TAKD, Mirzadeh et al., 2019).

    Every convolution is 3x3 with padding 1 and a bias, followed by BatchNorm and ReLU; between fully connected layers
    there is a ReLU. Where a max-pooling follows it comes before the ReLU: the same function and the same gradient to the
    bit, because the maximum of the ReLUs is the ReLU of the maximum, on a quarter of the memory.

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
                layers.insert(-1, nn.MaxPool2d(2))
                side //= 2
            else:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
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
