"""Weights in and out: models from the YAML, the student's checkpoints, the hand-over between stages."""

from __future__ import annotations

import logging
import os

import torch
from torch import distributed, nn
from torchdistill.common.module_util import load_full_state_dict
from torchdistill.models.official import get_image_classification_model
from torchdistill.models.registry import get_model
from torchvision import models as torchvision_models

from akd_ext.train.distributed.group import is_distributed
from akd_ext.train.system.errors import ConfigError, RunError, one_sentence

from .reading import is_url, read_checkpoint, weights_in

logger = logging.getLogger(__name__)


def build_model(config: dict, place: str, device: torch.device, distributed: bool) -> nn.Module:
    """Builds one entry of ``models`` the way torchdistill's script does and loads its src_ckpt.

    Raises:
        ConfigError: the model refuses its kwargs, or the checkpoint does not fit.
    """
    try:
        model = None
        # torchdistill asks torchvision first, and would call a module such as torchvision.models.resnet.
        if config.get("quantized") or callable(getattr(torchvision_models, config["key"], None)):
            model = get_image_classification_model(config, distributed)
        if model is None:
            model = get_model(config["key"], config.get("repo_or_dir"), **config.get("kwargs", {}))
    except Exception as error:
        raise ConfigError(
            f"{place}: building '{config['key']}' failed with {type(error).__name__}: {one_sentence(error)}"
        ) from error
    path = config.get("src_ckpt")
    if path and (is_url(path) or os.path.exists(os.path.expanduser(path))):
        load(model, path, f"{place}.src_ckpt")
        logger.info("%s: weights from %s", place, path)
    return model.to(device)


def load(model: nn.Module, path: str, place: str) -> None:
    """Loads the weights in ``path``, a file or a URL; see `read_checkpoint`.

    Raises:
        ConfigError: the file cannot be read or holds another network's weights.
    """
    try:
        state = weights_in(read_checkpoint(path))
    except Exception as error:
        raise ConfigError(f"{place}: '{path}' cannot be read as a checkpoint: {one_sentence(error)}") from error
    try:
        load_full_state_dict(model, state)
    except Exception as error:
        own = model.state_dict()
        missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        shapes = [k for k in own.keys() & state.keys() if own[k].shape != state[k].shape]
        found = [f"{len(names)} {what} (such as {min(names)})" for names, what in
                 ((missing, "missing"), (extra, "unexpected"), (shapes, "of another shape")) if names]  # fmt: skip
        raise ConfigError(
            f"{place}: '{path}' does not fit a {type(model).__name__}: {', '.join(found) or one_sentence(error)}"
        ) from error


def not_finite(model: nn.Module) -> str | None:
    """Names the first parameter that is not finite, or buffer of a checkpoint that is NaN, and counts the others.

    A buffer may be infinite, as a mask is. Waits for the device once; of several processes each must call it.
    """
    parameters = {name for name, _ in model.named_parameters()}
    tensors = {name: tensor for name, tensor in model.state_dict().items()
               if isinstance(tensor, torch.Tensor) and tensor.is_floating_point()}  # fmt: skip
    if not tensors:
        return None
    bad = torch.stack([
        ~tensor.isfinite().all() if name in parameters else tensor.isnan().any() for name, tensor in tensors.items()
    ])  # fmt: skip
    if is_distributed():
        bad = bad.to(torch.uint8)
        distributed.all_reduce(bad, distributed.ReduceOp.MAX)
    names = [name for name, is_bad in zip(tensors, bad.tolist(), strict=True) if is_bad]
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"'{names[0]}'{more}" if names else None


def require_finite(model: nn.Module, where: str) -> None:
    """Looks at the weights after a step: a loss is computed before the step that spoils them, and says nothing about it.

    Raises:
        RunError: a tensor is not finite; in every process, if there are several.
    """
    if bad := not_finite(model):
        raise RunError(
            f"the weights in training are no longer finite {where} ({bad}): training was stopped, and the "
            "checkpoints of the epochs before are kept; a lower learning rate, max_grad_norm or another --amp may help"
        )
