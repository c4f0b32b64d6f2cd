"""A teacher that somebody else trained takes the place of a run of the table."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from akd_ext.filesystem import replacing
from akd_ext.train.system.errors import ConfigError, nearest, one_sentence


@dataclass(frozen=True)
class PretrainedTeacher:
    """A checkpoint and, where it is of another network than the table's teacher or saw other images, which and how.

    Args:
        path: the file.
        key, kwargs: of torchdistill's model registry; None: the table's teacher.
        mean, std: of the image channels in the checkpoint's training; None: as the recipe has them.
        parameters: how many the network has.
    """

    path: Path
    key: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    parameters: int | None = None

    def network(self, role: str) -> tuple[str, ...]:
        """Overrides of ``models.ROLE``; the number of classes stays the table's unless ``kwargs`` has one."""
        if self.key is None:
            return ()
        given = (f"models.{role}.kwargs.{name}={json.dumps(value)}" for name, value in self.kwargs.items())
        return (f"models.{role}.key={self.key}", *given)

    def inputs(self, dataset: str) -> tuple[str, ...]:
        """Overrides that normalise the images of teacher and students as the checkpoint wants them."""
        return tuple(
            f"datasets.{dataset}/{split}.init.kwargs.{name}={list(value)}"
            for split in ("train", "val")
            for name, value in (("mean", self.mean), ("std", self.std))
            if value is not None
        )


def build_network(flag: str, key: str, kwargs: dict[str, Any]) -> Any:
    """A model of the registry.

    Raises:
        ConfigError: there is no such model, or it does not take these arguments.
    """
    import torch
    import torchvision.datasets  # noqa: F401  torchdistill wants it

    import akd_ext.torchdistill  # noqa: F401  registers the models
    from akd_ext.train.checkpoint.weights import build_model
    from akd_ext.train.config.registries import choices

    if key not in choices("model"):
        raise ConfigError(f"{flag}: there is no model '{key}'; the nearest is '{nearest(key, choices('model'))}'")
    return build_model({"key": key, "kwargs": kwargs}, flag, torch.device("cpu"), False)


def read_weights(path: Path) -> dict[str, Any]:
    """The weights in a checkpoint. Nothing in the file is executed.

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
    return state


def import_checkpoint(path: Path, checkpoint: Path) -> None:
    """Writes the weights in ``path`` as a checkpoint of ours."""
    import torch

    state = read_weights(path)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    with replacing(checkpoint) as temporary, open(temporary, "wb") as file:
        torch.save({"model": state}, file)


def tested(path: Path) -> dict[str, Any]:
    """What ``akd-train -test_only`` found, in the form of a finished ``results.json``."""
    accuracy = json.loads(path.read_text())["student"]
    mark = {"test_accuracy": accuracy}
    return {"complete": True, "versions": {}, "epochs": [], "best": mark, "last": mark}
