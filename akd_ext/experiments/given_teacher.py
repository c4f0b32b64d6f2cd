"""A teacher that somebody else trained takes the place of a run of the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .atomic import replacing
from .errors import ConfigError, one_sentence


def adopt(path: Path, checkpoint: Path) -> None:
    """Writes the weights in ``path`` as a checkpoint of ours. Nothing in the file is executed.

    Raises:
        ConfigError: the file holds more than weights, or none.
    """
    import torch

    from .checkpoints import weights_in  # torchdistill takes seconds to import

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        state = weights_in(state)
        if not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
            raise ValueError("it holds no state dict")
    except Exception as error:
        raise ConfigError(f"--teacher_ckpt: '{path}' is no checkpoint of weights: {one_sentence(error)}") from error
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    with replacing(checkpoint) as temporary:
        torch.save({"model": state}, temporary)


def tested(output_dir: Path) -> dict[str, Any]:
    """What ``akd-train -test_only`` found, in the form of a finished ``results.json``."""
    accuracy = json.loads((output_dir / "test.json").read_text())["student"]
    mark = {"test_accuracy": accuracy}
    return {"complete": True, "versions": {}, "epochs": [], "best": mark, "last": mark}
