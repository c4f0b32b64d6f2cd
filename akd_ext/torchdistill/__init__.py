"""The torchdistill plug-in: importing this package registers everything with torchdistill.

In a torchdistill YAML::

    dependencies:
      - name: akd_ext.torchdistill

| kind of key       | keys                                                                                       |
|-------------------|--------------------------------------------------------------------------------------------|
| mid-level loss    | ``AnnealingKDLoss``, ``LinearAnnealingKDLoss``, ``ContinuationKDLoss``, ``LogitKDLoss``    |
| pre-epoch process | ``annealing_pre_epoch_process``, ``text_pre_epoch_process``                                |
| forward process   | ``skip_forward``, ``cached_forward``, ``frozen_forward``, ``headless_forward``,            |
|                   | ``forward_logits``, ``forward_with_label_loss``                                            |
| model's loss      | ``extract_label_loss``                                                                     |
| scheduler         | ``linear_decay``                                                                           |
| model             | ``resnet8``, ``cifar_resnet``, ``plain_cnn2``, ``plain_cnn4``, ``plain_cnn10``,            |
|                   | ``digits_mlp``, ``digits_cnn``                                                             |
| dataset           | ``Digits``, ``FastCIFAR10``, ``FastCIFAR100``                                              |
| dataset wrapper   | ``IndexedDatasetWrapper``                                                                  |
| collate function  | ``whole_batch``                                                                            |

The CIFAR ResNets of depth 20 and 110 are torchdistill's own ``resnet20`` and ``resnet110``.

In: torchdistill's boxes and their I/O dicts. Out: what a YAML can name. May import: torchdistill, torchvision, the root
API and ``akd_ext.logit_cache``; nothing here knows ``akd_ext.train``.
"""

try:
    import torchdistill as _torchdistill  # noqa: F401
    import torchvision as _torchvision  # noqa: F401  torchdistill's dataset registry expects it to be imported already
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"akd_ext.torchdistill is a plug-in for torchdistill and torchvision; {error.name} is not installed: "
        "pip install torchdistill torchvision",
        name=error.name,
    ) from error

from .cifar import FastCIFAR10, FastCIFAR100, whole_batch
from .datasets import Digits, IndexedDatasetWrapper
from .forward_procs import cached_forward, skip_forward
from .frozen import frozen_forward
from .large_heads import LinearAnnealingKDLoss, headless_forward
from .losses import AnnealingKDLoss, ContinuationKDLoss
from .models import (
    CifarResNet,
    DigitsCNN,
    DigitsMLP,
    PlainCNN,
    cifar_resnet,
    digits_cnn,
    digits_mlp,
    plain_cnn2,
    plain_cnn4,
    plain_cnn10,
    resnet8,
)
from .pre_epoch import annealing_pre_epoch_process
from .text import (
    LengthBucketSampler,
    LogitKDLoss,
    extract_label_loss,
    forward_logits,
    forward_with_label_loss,
    linear_decay,
    repair_accelerate,
    take_layers,
    text_pre_epoch_process,
)

__all__ = [
    "AnnealingKDLoss",
    "CifarResNet",
    "ContinuationKDLoss",
    "Digits",
    "DigitsCNN",
    "DigitsMLP",
    "FastCIFAR10",
    "FastCIFAR100",
    "IndexedDatasetWrapper",
    "LengthBucketSampler",
    "LinearAnnealingKDLoss",
    "LogitKDLoss",
    "PlainCNN",
    "annealing_pre_epoch_process",
    "cached_forward",
    "cifar_resnet",
    "digits_cnn",
    "digits_mlp",
    "extract_label_loss",
    "forward_logits",
    "forward_with_label_loss",
    "frozen_forward",
    "headless_forward",
    "linear_decay",
    "plain_cnn2",
    "plain_cnn4",
    "plain_cnn10",
    "repair_accelerate",
    "resnet8",
    "skip_forward",
    "take_layers",
    "text_pre_epoch_process",
    "whole_batch",
]
