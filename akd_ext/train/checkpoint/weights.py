"""Weights in and out: models from the YAML, the student's checkpoints, the hand-over between stages."""

from __future__ import annotations

import logging
import os
import shutil
from typing import Any

import torch
from torch import distributed, nn
from torchdistill.common.main_util import is_main_process
from torchdistill.common.module_util import get_full_state_dict, load_full_state_dict
from torchdistill.models.official import get_image_classification_model
from torchdistill.models.registry import get_model
from torchvision import models as torchvision_models

from akd_ext.filesystem import remove_leftovers, replacing
from akd_ext.train.distributed.group import is_distributed
from akd_ext.train.system.errors import ConfigError, RunError, one_sentence

from .reading import State, is_url, read_checkpoint, weights_in
from .training_state import Unsavable, plain

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


def snapshot(model: nn.Module) -> State:
    """The weights, copied to the CPU, each tensor with memory of its own (safetensors refuses shared memory)."""
    state = get_full_state_dict(model, cpu_offload=False)  # True would give it to the first process only
    return {k: v.detach().cpu().contiguous().clone() for k, v in state.items() if isinstance(v, torch.Tensor)}


def require_finite(model: nn.Module, where: str) -> None:
    """Looks at every parameter, and at the buffers that a checkpoint holds. Waits for the device once.

    A loss is computed before the step that spoils the weights, so a finite one says nothing about them. A buffer may be
    infinite, as a mask is; it may not be NaN.

    Raises:
        RunError: a tensor is not finite; in every process, if there are several.
    """
    parameters = {name for name, _ in model.named_parameters()}
    tensors = {name: tensor for name, tensor in model.state_dict().items()
               if isinstance(tensor, torch.Tensor) and tensor.is_floating_point()}  # fmt: skip
    if not tensors:
        return
    bad = torch.stack([
        ~tensor.isfinite().all() if name in parameters else tensor.isnan().any() for name, tensor in tensors.items()
    ])  # fmt: skip
    if is_distributed():
        bad = bad.to(torch.uint8)
        distributed.all_reduce(bad, distributed.ReduceOp.MAX)
    names = [name for name, is_bad in zip(tensors, bad.tolist(), strict=True) if is_bad]
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise RunError(
            f"the student's weights are no longer finite {where} ('{names[0]}'{more}): training was stopped, and the "
            "checkpoints of the epochs before are kept; a lower learning rate, max_grad_norm or another --amp may help"
        )


def _without_objects(part: Any) -> dict[str, Any] | None:
    """Its state, or None for one that `read_checkpoint` would refuse: the next stage reads this file."""
    try:
        return part and plain(part.state_dict(), type(part).__name__)
    except Unsavable:
        return None


class BestCheckpoint:
    """Keeps the student's checkpoints in the right order.

    ``dst_ckpt`` holds the best of the running stage, so that a next stage whose src_ckpt names it starts from there;
    after the last stage it holds the best of the run, which is what torchdistill's -test_only reads.
    """

    def __init__(self, dst_ckpt: str, output_dir: str | None):
        self._dst, self._output = os.path.expanduser(dst_ckpt), output_dir
        self.best: State | None = None
        self.last: State | None = None
        self._meta: dict[str, Any] = {}
        self._dst_holds_best = False
        self._tags: dict[str, int] = {}  # the epoch in dst_ckpt and in best.safetensors

    def update(self, model: nn.Module, box: Any, *, best_of_stage: bool, best_of_run: bool, **meta: Any) -> None:
        """Stores one epoch. ``meta`` (epoch, stage, val_accuracy, ...) is stored beside the weights."""
        self.last = snapshot(model)
        if best_of_stage:
            more = {"optimizer": _without_objects(box.optimizer), "lr_scheduler": _without_objects(box.lr_scheduler)}
            self._save(more, self.last, meta)
            self._dst_holds_best = best_of_run
            self._tags["stage"] = meta["epoch"]
        if best_of_run:
            self.best, self._meta = self.last, meta
            self._export("best", self.best)
            self._tags["best"] = meta["epoch"]
        self._export("last", self.last)

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to know beside the `files`."""
        return {"meta": self._meta, "dst_holds_best": self._dst_holds_best, "tags": self._tags}

    def files(self) -> dict[str, tuple[int, str]]:
        """By role, the epoch and the file of the checkpoints that a later stage, or the end, will ask for."""
        return {role: (epoch, self._place(role)) for role, epoch in self._tags.items()}

    def put_back(self, files: dict[str, str]) -> None:
        """Copies checkpoints, by role, to where they were: an epoch that was not finished may have replaced them."""
        remove_leftovers(self._output)
        for role, path in files.items():
            with replacing(self._place(role)) as temporary:
                shutil.copyfile(path, temporary)

    def restore(self, state: dict[str, Any], files: dict[str, str], student: nn.Module) -> None:
        """Goes on from a `state`, its `files` and the student of that moment."""
        self._meta, self._dst_holds_best, self._tags = state["meta"], state["dst_holds_best"], state["tags"]
        self.last = snapshot(student)
        if "best" in files:
            from safetensors.torch import load_file

            self.best = load_file(files["best"])

    def finish(self) -> None:
        """Leaves the best of the run in dst_ckpt."""
        if not self._dst_holds_best:
            self._save({}, self.best, self._meta)

    def _place(self, role: str) -> str:
        return self._weights() if role == "stage" else os.path.join(self._output or "", "best.safetensors")

    def _weights(self) -> str:
        """The file in dst_ckpt that changes from epoch to epoch."""
        return self._dst

    def _save(self, more: dict[str, Any], state: State, meta: dict[str, Any]) -> None:
        if is_main_process():
            # Through Python's file: of a full disk torch's own writer says only that a position is wrong.
            with replacing(self._dst) as temporary, open(temporary, "wb") as file:
                # the layout of torchdistill's save_ckpt
                torch.save({"model": state, **more, "best_value": meta["val_accuracy"], "args": None, **meta}, file)

    def _export(self, name: str, state: State) -> None:
        if self._output is not None and is_main_process():
            from safetensors.torch import save_file

            with replacing(os.path.join(self._output, f"{name}.safetensors")) as temporary:
                # One entry of metadata only: their order is random, and equal runs should give equal files.
                save_file(state, temporary, {"format": "pt"})
