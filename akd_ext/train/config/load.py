"""From ``--config`` and ``--set`` to a configuration that is known to be sound."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from typing import Any, NamedTuple

from akd_ext.train.run_folder import RunFolder
from akd_ext.train.system.errors import ConfigError, one_sentence
from akd_ext.train.system.random_states import random_states_put_back

from .checker import Checker
from .document import YamlTree
from .overwrites import refuse_overwrites
from .schema import is_known
from .text_checker import TextChecker, is_text

logger = logging.getLogger(__name__)


@dataclass
class Config:
    """A checked YAML file. Nothing in it has been built before `construct` is called."""

    path: str
    tree: YamlTree
    checker: Checker

    @property
    def is_text(self) -> bool:
        """Whether the models are Hugging Face's, as in torchdistill's GLUE script."""
        return is_text(self.checker.root)

    @property
    def student_role(self) -> str:
        return self.checker.student

    def dump(self) -> str:
        return self.tree.dump()

    def construct(self) -> dict:
        """Builds the datasets and everything else the tags call; then tries the losses and optimizers of all stages."""
        config = self.tree.construct()
        _fill_empty_kwargs(config)
        if self.checker.needs_train:
            _rehearse(config["train"], self.tree)
        return config


class TextChoices(NamedTuple):
    """A run's choices for text.

    Attributes:
        teacher, student: a model's name on the hub or its folder, in place of the file's.
        length_buckets: training batches of sentences of similar length.
        glue_dir: GLUE's official files, which a run must not overwrite.
    """

    teacher: str | None = None
    student: str | None = None
    length_buckets: bool = False
    glue_dir: str | None = None


def load_config(
    path: str,
    overrides: list[str] | None = None,
    output_dir: str | None = None,
    *,
    text: TextChoices | None = None,
    needs_train: bool = True,
    needs_teacher: bool = True,
) -> Config:
    """Reads, edits and checks a torchdistill YAML file.

    Args:
        path: the file.
        overrides: ``a.b.c=value`` each, the value being YAML.
        output_dir: if given, the student's dst_ckpt moves there, and every src_ckpt that names the same file follows.
        text: what counts where the models are Hugging Face's.
        needs_train, needs_teacher: False leaves the section ``train``, or the teacher, unchecked.

    Raises:
        ConfigError: one sentence with the key, its line and the nearest valid choice.
    """
    tree = YamlTree(path)
    has_text, text = is_text(tree.plain()), text or TextChoices()
    for role, name in (("teacher", text.teacher), ("student", text.student)):
        if has_text and name is not None:
            _name_model(tree, role, name)
    for override in overrides or []:  # after the flags, which say less
        key_path, equals, value = override.partition("=")
        if not equals or not key_path:
            raise ConfigError(f"--set {override}: write it as a.b.c=value")
        tree.set(key_path, value, parse=True, may_add=_may_add)
    if has_text and text.length_buckets:
        _bucket_by_length(tree)
    if output_dir is not None:
        folder = RunFolder(output_dir)
        _move_checkpoint(tree, str(folder.hf_folder if has_text else folder.checkpoint))
    checker = (TextChecker if has_text else Checker)(tree, needs_train=needs_train, needs_teacher=needs_teacher)
    checker.check()
    if needs_train:
        refuse_overwrites(checker.root, tree, checker.student, output_dir, text.glue_dir if has_text else None)
    for warning in checker.warnings:
        logger.warning("%s", warning)
    if checker.ignored:
        found = ", ".join(f"{key} ({tree.location(key)})" for key in dict.fromkeys(checker.ignored))
        logger.warning("akd-train and torchdistill read none of these keys, so they change nothing: %s", found)
    return Config(path, tree, checker)


def _name_model(tree: YamlTree, role: str, name: str) -> None:
    """--teacher and --student: configuration, tokenizer and weights all come from there."""
    models = tree.plain()["models"]
    key = f"{role}_model" if f"{role}_model" in models or role == "teacher" else "model"
    if key not in models and role == "teacher" and "model" in models:
        # Not taken for it: a file that trains one model on labels would learn nothing of a teacher.
        raise ConfigError(f"--teacher: '{tree.path}' has one model, models.model, and nobody teaches it; --student names "
                          "that model, whatever it is trained for")  # fmt: skip
    if key not in models:
        raise ConfigError(f"--{role}: '{tree.path}' has no models.{key}")
    for part in ("config_kwargs", "tokenizer_kwargs", "model_kwargs"):
        tree.set(f"models.{key}.{part}.pretrained_model_name_or_path", name, may_add=lambda key_path, key: True)


def _bucket_by_length(tree: YamlTree) -> None:
    """--length_buckets: another sampler in every stage."""
    train = tree.plain().get("train") or {}
    stages = [f"train.{key}" for key in train if str(key).startswith("stage")] or ["train"]
    for stage in stages:
        section = train if stage == "train" else train[stage.partition(".")[2]]
        loader = section.get("train_data_loader")
        if isinstance(loader, dict) and isinstance(loader.get("kwargs"), dict) and "batch_size" in loader["kwargs"]:
            sampler = "!import_get {key: akd_ext.torchdistill.text.LengthBucketSampler}"
            kwargs = f"{{batch_size: {loader['kwargs']['batch_size']}}}"
            value = f"{{class_or_func: {sampler}, kwargs: {kwargs}}}"
            tree.set(f"{stage}.train_data_loader.sampler", value, parse=True, may_add=lambda key_path, key: True)


def _may_add(key_path: tuple[str, ...], key: str) -> bool:
    """A --set may add arguments, a data set and what torchdistill knows; any other new key is a typing error."""
    named = any(part.endswith("kwargs") for part in key_path) or key_path == ("datasets",)
    return named or is_known(key) or key.startswith("_")


def _move_checkpoint(tree: YamlTree, target: str) -> None:
    plain = tree.plain()
    models = plain.get("models")
    role = "student_model" if isinstance(models, dict) and "student_model" in models else "model"
    student = models.get(role) if isinstance(models, dict) else None
    if not isinstance(student, dict):
        return  # the checks will say what is wrong
    old = student.get("dst_ckpt")
    moved = [f"models.{role}.dst_ckpt"]

    def walk(value: Any, key_path: str) -> None:
        for key, inner in value.items() if isinstance(value, dict) else ():
            if key in ("src_ckpt", "src_folder") and old is not None and inner == old:
                moved.append(f"{key_path}.{key}")
            walk(inner, f"{key_path}.{key}")

    for section in ("models", "train"):
        walk(plain.get(section), section)
    for key_path in moved:
        tree.set(key_path, target)


def _fill_empty_kwargs(value: Any) -> None:
    """An empty ``kwargs:`` is None in YAML, which torchdistill would unpack with ``**``."""
    if isinstance(value, dict):
        if value.get("kwargs", value) is None:
            value["kwargs"] = {}
        for inner in value.values():
            _fill_empty_kwargs(inner)
    elif isinstance(value, list):
        for inner in value:
            _fill_empty_kwargs(inner)


def _rehearse(train: dict, tree: YamlTree) -> None:
    """Builds each stage's loss, optimizer and scheduler once and throws them away.

    A wrong value in stage 2 would otherwise be found when stage 1 has been trained. The random state is put back, so a
    rehearsed run equals an unrehearsed one.
    """
    import torch
    from torchdistill.losses.registry import get_high_level_loss
    from torchdistill.optim.registry import get_optimizer, get_scheduler

    stages = {f"train.{key}": value for key, value in train.items() if key.startswith("stage")} or {"train": train}
    with random_states_put_back():
        for key_path, stage in stages.items():
            part = f"{key_path}.criterion"
            try:
                get_high_level_loss(stage["criterion"])
                part, optimizer = f"{key_path}.optimizer", stage.get("optimizer")
                # Only torch's own: somebody's optimizer may need the real parameters.
                if optimizer and optimizer["key"] in vars(torch.optim):
                    dummy = [torch.nn.Parameter(torch.zeros(2, 2))]
                    made = get_optimizer(dummy, optimizer["key"], **copy.deepcopy(optimizer["kwargs"]))
                    part, scheduler = f"{key_path}.scheduler", stage.get("scheduler")
                    if scheduler and scheduler["key"] in vars(torch.optim.lr_scheduler):
                        get_scheduler(made, scheduler["key"], **copy.deepcopy(scheduler["kwargs"]))
            except Exception as error:
                raise ConfigError(
                    f"{part}: it cannot be built: {type(error).__name__}: {one_sentence(error)} ({tree.location(part)})"
                ) from error
