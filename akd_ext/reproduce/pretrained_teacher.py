"""A teacher that somebody else trained takes the place of a run of the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from akd_ext.filesystem import replacing
from akd_ext.train.system.errors import ConfigError, one_sentence


def adopt(path: Path, checkpoint: Path) -> None:
    """Writes the weights in ``path`` as a checkpoint of ours. Nothing in the file is executed.

    Raises:
        ConfigError: the file holds more than weights, or none.
    """
    import torch

    from akd_ext.train.checkpoint.reading import read_checkpoint, weights_in  # torchdistill takes seconds to import

    try:
        state = weights_in(read_checkpoint(str(path)))
        if not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
            raise ValueError("it holds no state dict")
    except Exception as error:
        raise ConfigError(f"--teacher_ckpt: '{path}' is no checkpoint of weights: {one_sentence(error)}") from error
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    with replacing(checkpoint) as temporary, open(temporary, "wb") as file:
        torch.save({"model": state}, file)


def tested(output_dir: Path) -> dict[str, Any]:
    """What ``akd-train -test_only`` found, in the form of a finished ``results.json``."""
    accuracy = json.loads((output_dir / "test.json").read_text())["student"]
    mark = {"test_accuracy": accuracy}
    return {"complete": True, "versions": {}, "epochs": [], "best": mark, "last": mark}
