"""The student's checkpoint as a Hugging Face folder: model, configuration and tokenizer."""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import Any

from torch import nn
from torchdistill.common.main_util import is_main_process

from akd_ext.filesystem import errors_name_path, public_mode
from akd_ext.train.system.errors import ConfigError, one_sentence

from .weights import BestCheckpoint, State

_NEW = ".new."


class BestHFFolder(BestCheckpoint):
    """A `BestCheckpoint` whose ``dst_ckpt`` is a folder that ``from_pretrained`` reads."""

    def __init__(self, dst_ckpt: str, output_dir: str | None, student: nn.Module, tokenizer: Any):
        super().__init__(dst_ckpt, output_dir)
        self._student, self._tokenizer = student, tokenizer

    def put_back(self, files: dict[str, str]) -> None:
        super().put_back(files)
        for name in os.listdir(self._dst) if os.path.isdir(self._dst) else ():
            if name.startswith(_NEW):  # of a process that was killed
                shutil.rmtree(os.path.join(self._dst, name))

    def _weights(self) -> str:
        return os.path.join(self._dst, "model.safetensors")

    def _save(self, more: dict[str, Any], state: State, meta: dict[str, Any]) -> None:
        if not is_main_process():
            return
        with errors_name_path(self._dst):
            self._write(state)

    def _write(self, state: State) -> None:
        os.makedirs(self._dst, exist_ok=True)
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
