"""The YAML files of ``torchdistill_configs/``: where they are, what is in them, and each row of a table as a whole file."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .experiments import Experiment, Row


def config_dir() -> Path:
    """The folder ``torchdistill_configs``.

    The files exist once, at the top of the source tree. A wheel carries a copy inside the package (put there by
    ``_build_backend/commands.py``); a clone and ``pip install -e .`` use the folder of the tree.

    Raises:
        FileNotFoundError: neither is there.

    >>> (config_dir() / "digits").is_dir()
    True
    """
    package = Path(__file__).resolve().parents[1]
    places = [package / "torchdistill_configs", package.parent / "torchdistill_configs"]
    for place in places:
        if place.is_dir():
            return place
    raise FileNotFoundError(f"torchdistill_configs is neither {places[0]} nor {places[1]}")


@dataclass(frozen=True)
class Stage:
    """How long a stage is."""

    key: str  # where it stands: "train" or "train.stage1"
    epochs: int
    milestones: tuple[int, ...]  # after which epochs the learning rate falls


def edited(path: Path, overrides: Sequence[str]):
    """The recipe with its overrides, as akd-train reads it.

    Raises:
        ConfigError: the file is no YAML, or an override names a place that cannot be.
    """
    from akd_ext.train.config.document import YamlTree  # torchdistill takes seconds to import

    tree = YamlTree(str(path))
    for override in overrides:
        place, _, value = override.partition("=")
        tree.set(place, value, parse=True)
    return tree


@functools.cache
def stages(path: Path, overrides: tuple[str, ...]) -> tuple[Stage, ...]:
    """The stages of a recipe with its overrides."""
    train = edited(path, overrides).plain()["train"]
    found = {f"train.{key}": value for key, value in train.items() if key.startswith("stage")} or {"train": train}
    return tuple(
        Stage(key, value["num_epochs"], tuple(value.get("scheduler", {}).get("kwargs", {}).get("milestones", ())))
        for key, value in found.items()
    )


def scaled(path: Path, overrides: tuple[str, ...], scale: float) -> Iterator[str]:
    """Overrides that shorten every stage and its learning rate schedule alike."""
    for stage in stages(path, overrides) if scale != 1 else ():
        epochs = max(1, round(scale * stage.epochs))
        yield f"{stage.key}.num_epochs={epochs}"
        if stage.milestones:  # at 0 the learning rate would fall before the first step
            milestones = [max(1, round(at / stage.epochs * epochs)) for at in stage.milestones]
            yield f"{stage.key}.scheduler.kwargs.milestones={milestones}"


def content_sha256(path: Path) -> str:
    """What a recipe says, whatever its comments."""
    return _content_sha256(path, path.stat().st_mtime_ns)


@functools.cache
def _content_sha256(path: Path, changed: int) -> str:
    return hashlib.sha256(repr(edited(path, ()).plain()).encode()).hexdigest()


def whole_file(experiment: Experiment, name: str, task: str = "") -> str:
    """One row of a table as a YAML file that says all by itself, for torchdistill's own scripts.

    Example:
        >>> from akd_ext.reproduce.experiments import EXPERIMENTS
        >>> "loss: kl" in whole_file(EXPERIMENTS["cifar10-cnn"], "annealing_kd_kl")
        True
    """
    row = experiment.rows[name]
    overrides = (*row.overrides, *row.by_task.get(task, ()))
    path = config_dir() / experiment.folder / f"{row.recipe}.yaml"
    tree = edited(path, (*overrides, *_paths(experiment, name, row, task)))
    heading = f"{experiment.name}, {row.title}" + (f", {task}" if task else "")
    changes = "".join(f"#   {override}\n" for override in overrides)
    return f"# {heading}: {experiment.folder}/{row.recipe}.yaml{' with' if changes else ''}\n{changes}\n{tree.dump()}"


def _paths(experiment: Experiment, name: str, row: Row, task: str) -> Iterator[str]:
    """Every row has a checkpoint of its own, and finds that of its teacher."""
    root = f"./runs/{experiment.folder if experiment.is_text else experiment.name}"

    def checkpoint(run: str) -> str:
        return f"{root}/{run}/{task}/checkpoint" if experiment.is_text else f"{root}/{run}/checkpoint.pt"

    yield f"models.{row.model}.dst_ckpt={checkpoint(name)}"
    for stage in row.stages[1:]:
        yield f"{stage}.student.{'src_folder' if experiment.is_text else 'src_ckpt'}={checkpoint(name)}"
    if row.teacher and experiment.is_text:
        for part in ("config_kwargs", "tokenizer_kwargs", "model_kwargs"):
            yield f"models.teacher_model.{part}.pretrained_model_name_or_path={checkpoint(row.teacher)}"
    elif row.teacher:
        yield f"models.teacher_model.src_ckpt={checkpoint(row.teacher)}"
    yield from cache(experiment, row, root)


def cache(experiment: Experiment, row: Row, folder: str | Path) -> Iterator[str]:
    """The override that keeps the teacher's logits below ``folder``: one pass serves every method and seed."""
    if row.teacher and (experiment.is_text or experiment.cached_teacher):
        place = f"{folder}/{'teacher_logits' if experiment.is_text else 'cache'}"
        yield f"{row.stages[0]}.train_data_loader.dataset_wrapper.kwargs.cache_dir={place}"


def write_configs(experiment: Experiment, folder: Path) -> list[Path]:
    """Write every row of a table, for GLUE every task of every row, as a whole file; return their names."""
    written = []
    for name in experiment.rows:
        for task in experiment.tasks:
            path = folder / name / f"{task}.yaml" if task else folder / f"{name}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(whole_file(experiment, name, task), encoding="utf-8")
            written.append(path)
    return written
