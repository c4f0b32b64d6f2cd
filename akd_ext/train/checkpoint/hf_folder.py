"""The student's checkpoint as a Hugging Face folder: model, configuration and tokenizer."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from torch import nn
from torchdistill.common.main_util import is_main_process

from akd_ext.filesystem import errors_name_path, public_mode
from akd_ext.train.run_folder import RunFolder
from akd_ext.train.system.errors import ConfigError, one_sentence

from .best import BestCheckpoint
from .reading import State

_NEW = ".new."


class BestHFFolder(BestCheckpoint):
    """A `BestCheckpoint` whose ``dst_ckpt`` is a folder that ``from_pretrained`` reads."""

    def __init__(self, dst_ckpt: str, folder: RunFolder | None, student: nn.Module, tokenizer: Any):
        super().__init__(dst_ckpt, folder)
        self._student, self._tokenizer = student, tokenizer

    def _more(self, box: Any) -> dict[str, Any]:
        return {}

    def _save(self, content: dict[str, Any]) -> None:
        if is_main_process():
            with errors_name_path(self._dst):
                self._write(content["model"])

    def _write(self, state: State) -> None:
        os.makedirs(self._dst, exist_ok=True)
        for leftover in Path(self._dst).glob(f"{_NEW}*"):  # of a process that was killed
            shutil.rmtree(leftover)
        with tempfile.TemporaryDirectory(prefix=_NEW, dir=self._dst) as temporary:
            # In one file, whatever its size: stage II takes it in as one.
            self._student.save_pretrained(temporary, state_dict=state, max_shard_size="1000GB")
            self._tokenizer.save_pretrained(temporary)
            # One by one, the weights last: all files but these are the same in every epoch.
            for name in sorted(os.listdir(temporary), key=lambda name: name == "model.safetensors"):
                made = os.path.join(temporary, name)
                os.chmod(made, public_mode())
                os.replace(made, os.path.join(self._dst, name))


def load_folder(model: nn.Module, folder: str, place: str) -> None:
    """Loads the weights in ``folder`` and the names of the classes; raises ConfigError when they do not fit."""
    from safetensors.torch import load_model
    from transformers import AutoConfig

    folder = os.path.expanduser(folder)
    try:
        load_model(model, os.path.join(folder, "model.safetensors"))
        model.config.id2label = AutoConfig.from_pretrained(folder).id2label
    except Exception as error:
        raise ConfigError(f"{place}: '{folder}' cannot be loaded: {one_sentence(error)}") from error
