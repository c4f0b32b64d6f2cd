"""The student's checkpoints: the best of the running stage, the best of the run, the last."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn
from torchdistill.common.main_util import is_main_process
from torchdistill.common.module_util import get_full_state_dict

from akd_ext.filesystem import replacing
from akd_ext.train.distributed import group
from akd_ext.train.run_folder import RunFolder

from .reading import State
from .state import Unsavable, plain


def snapshot(model: nn.Module) -> State:
    """The weights, copied to the CPU, each tensor with memory of its own (safetensors refuses shared memory)."""
    state = get_full_state_dict(model)
    return {k: v.detach().cpu().contiguous().clone() for k, v in state.items() if isinstance(v, torch.Tensor)}


class BestCheckpoint:
    """Keeps the student's checkpoints in the right order.

    ``dst_ckpt`` holds the best of the running stage, so that a next stage whose src_ckpt names it starts from there;
    after the last stage it holds the best of the run, which is what torchdistill's -test_only reads.

    Attributes:
        best, last: weights, of the run so far.
    """

    def __init__(self, dst_ckpt: str, folder: RunFolder | None):
        self._dst, self._folder = os.path.expanduser(dst_ckpt), folder
        self.best: State | None = None
        self.last: State | None = None
        self._of_stage: dict[str, Any] | None = None  # what dst_ckpt holds
        self._meta: dict[str, Any] = {}  # of the best of the run
        self._dst_holds_best = False

    def update(self, model: nn.Module, box: Any, *, best_of_stage: bool, best_of_run: bool, **meta: Any) -> None:
        """Stores one epoch. ``meta`` (epoch, stage, val_accuracy, ...) is stored beside the weights."""
        self.last = snapshot(model)
        if best_of_stage:
            self._of_stage = {"model": self.last, **self._more(box), **_with_best_value(meta)}
            self._save(self._of_stage)
            self._dst_holds_best = best_of_run
        if best_of_run:
            self.best, self._meta = self.last, meta
            self._export("best", self.best)
        self._export("last", self.last)

    def finish(self) -> None:
        """Leaves the best of the run in dst_ckpt."""
        if not self._dst_holds_best:
            self._save({"model": self.best, **_with_best_value(self._meta)})

    def state_dict(self) -> dict[str, Any]:
        """All that a later stage, or the end, will ask for; ``last`` is in the student."""
        return plain(
            {
                "of_stage": self._of_stage,
                "best": self.best,
                "meta": self._meta,
                "dst_holds_best": self._dst_holds_best,
            },
            "the checkpoints",
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Also writes the files: an epoch that was not finished may have replaced them, and a stage will load one."""
        self._of_stage, self.best, self._meta = state["of_stage"], state["best"], state["meta"]
        self._dst_holds_best = state["dst_holds_best"]
        if self._of_stage is not None:
            self._save(self._of_stage)
        if self.best is not None:
            self._export("best", self.best)
        group.barrier()

    def _more(self, box: Any) -> dict[str, Any]:
        """What torchdistill's own checkpoints hold beside the weights; the optimizer goes on, so it is copied."""
        return {"optimizer": _copied(box.optimizer), "lr_scheduler": _copied(box.lr_scheduler)}

    def _save(self, content: dict[str, Any]) -> None:
        if is_main_process():
            # Through Python's file: of a full disk torch's own writer says only that a position is wrong.
            with replacing(self._dst) as temporary, open(temporary, "wb") as file:
                torch.save(content, file)

    def _export(self, name: str, state: State) -> None:
        if self._folder is not None and is_main_process():
            from safetensors.torch import save_file

            with replacing(getattr(self._folder, name)) as temporary:
                # One entry of metadata only: their order is random, and equal runs should give equal files.
                save_file(state, temporary, {"format": "pt"})


def _with_best_value(meta: dict[str, Any]) -> dict[str, Any]:
    """In the layout of torchdistill's save_ckpt."""
    return {"best_value": meta["val_accuracy"], "args": None, **meta}


def _copied(part: Any) -> dict[str, Any] | None:
    if part is None:
        return None

    def copied(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.detach().cpu().clone()
        if isinstance(value, dict):
            made = {key: copied(item) for key, item in value.items()}
            return made if type(value) is dict else type(value)(made)
        return [copied(item) for item in value] if isinstance(value, list) else value

    try:
        return copied(plain(part.state_dict(), ""))
    except Unsavable:  # a checkpoint is read without executing anything
        return None
