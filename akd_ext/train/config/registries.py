"""What a key in a torchdistill YAML may name: torchdistill's own registries, read when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torchdistill.core.interfaces import registry as processes
from torchdistill.datasets import registry as datasets
from torchdistill.losses import registry as losses
from torchdistill.models import registry as models
from torchdistill.optim import registry as optim
from torchvision import models as torchvision_models

WRAPPERS = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "FullyShardedDataParallel2")


def _torchvision(quantized: bool = False) -> dict[str, Callable]:
    source = torchvision_models.quantization if quantized else torchvision_models
    # Lower-case callables are the builders; `torchvision.models.resnet` is a module and no model.
    return {name: f for name, f in vars(source).items() if callable(f) and name[0].islower()}


def choices(kind: str) -> Mapping[str, Any]:
    """The valid keys of one kind, each with what it names."""
    return {
        "model": lambda: {**models.MODEL_DICT, **_torchvision()},  # torchdistill looks in torchvision first
        "quantized model": lambda: _torchvision(quantized=True),
        "high-level loss": lambda: losses.HIGH_LEVEL_LOSS_DICT,
        "loss": lambda: {**losses.LOW_LEVEL_LOSS_DICT, **losses.LOSS_DICT, **losses.MIDDLE_LEVEL_LOSS_DICT},
        "loss wrapper": lambda: losses.LOSS_WRAPPER_DICT,
        "function to extract the model's loss": lambda: losses.FUNC2EXTRACT_MODEL_OUTPUT_DICT,
        "optimizer": lambda: optim.OPTIM_DICT,
        "scheduler": lambda: optim.SCHEDULER_DICT,
        "pre-epoch process": lambda: processes.PRE_EPOCH_PROC_FUNC_DICT,
        "pre-forward process": lambda: processes.PRE_FORWARD_PROC_FUNC_DICT,
        "forward process": lambda: processes.FORWARD_PROC_FUNC_DICT,
        "post-forward process": lambda: processes.POST_FORWARD_PROC_FUNC_DICT,
        "post-epoch process": lambda: processes.POST_EPOCH_PROC_FUNC_DICT,
        "wrapper": lambda: dict.fromkeys(WRAPPERS),
        "auxiliary model wrapper": lambda: models.AUXILIARY_MODEL_WRAPPER_DICT,
        "adaptation module": lambda: {**models.MODULE_DICT, **models.ADAPTATION_MODULE_DICT},
        "dataset wrapper": lambda: datasets.DATASET_WRAPPER_DICT,
        "batch sampler": lambda: datasets.BATCH_SAMPLER_DICT,
        "collate function": lambda: datasets.COLLATE_FUNC_DICT,
    }[kind]()
