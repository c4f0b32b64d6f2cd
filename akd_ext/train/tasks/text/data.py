"""From sentences to token ids: GLUE from the hub or from the official files, or a user's own CSV or JSON."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch.utils.data import Dataset

from akd_ext.train.system.errors import ConfigError, nearest, one_sentence

from .examples import Example
from .glue import TASKS, GlueTask
from .glue_files import read_split
from .user_files import read_table

logger = logging.getLogger(__name__)
COLLATE = "DataCollatorWithPadding"  # torchdistill's GLUE script registers it under this name


@dataclass(frozen=True)
class Source:
    """One entry of a YAML's ``datasets``: the task, and which split is called what."""

    task: GlueTask
    ids: dict[str, str]  # {split: dataset_id}
    max_length: int
    files: dict[str, str]  # {split: file}, of a user's own task

    def without(self, dataset_ids: set[str]) -> Source:
        return replace(self, ids={split: name for split, name in self.ids.items() if name not in dataset_ids})


def source_of(entry: dict, place: str) -> Source:
    """Reads one entry of ``datasets``, in the form torchdistill's GLUE script has given it.

    Raises:
        ConfigError: an unknown task or split, or a task of one's own without files.
    """
    name, files = entry.get("name"), entry.get("raw_data_kwargs") or {}
    max_length = entry.get("max_length", 128)
    if type(max_length) is not int or max_length < 2:
        raise ConfigError(f"{place}.max_length: it must be a whole number from 2, not {max_length!r}")
    ids = dict(entry.get("dataset_id_map") or {})
    if not ids:
        raise ConfigError(f"{place}.dataset_id_map: it is missing; it names the splits, such as train: 'cola/train'")
    if name is not None:
        if name not in TASKS:
            raise ConfigError(f"{place}.name: there is no task '{name}'; the nearest valid choice is "
                              f"'{nearest(name, TASKS)}'")  # fmt: skip
        _check_splits(ids, dict(TASKS[name].splits), place)
        return Source(TASKS[name], ids, max_length, {})
    found = {split: files.get(key) for split, key in (("train", "train_file_path"), ("validation", "valid_file_path"))}
    found = {split: path for split, path in found.items() if path}
    if "train" not in found:
        raise ConfigError(f"{place}: it has neither the 'name' of a GLUE task nor a raw_data_kwargs.train_file_path")
    _check_splits(ids, found, place)
    return Source(GlueTask("own", "", (), (), "", (), (), ()), ids, max_length, found)


def _check_splits(ids: dict, known: dict, place: str) -> None:
    for split in ids:
        if split not in known:
            raise ConfigError(f"{place}.dataset_id_map.{split}: there is no such split; there are {', '.join(known)}")


def load_examples(source: Source, glue_dir: str | None) -> tuple[GlueTask, dict[str, list[Example]]]:
    """All splits that the YAML names, and the task, which for a user's own data is known only now."""
    if source.files:
        return read_table(source.files)
    if glue_dir is not None:
        return source.task, {split: read_split(glue_dir, source.task, split) for split in source.ids}
    return source.task, _from_hub(source.task, source.ids)


def _from_hub(task: GlueTask, splits) -> dict[str, list[Example]]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ConfigError(
            "GLUE comes from the Hugging Face hub, and the package datasets is not installed; "
            "pip install '.[glue]', or give --glue_dir with the official files"
        ) from error
    try:
        loaded = load_dataset("nyu-mll/glue", task.name)
    except Exception as error:
        raise ConfigError(
            f"'{task.name}' could not be loaded from the Hugging Face hub ({type(error).__name__}: "
            f"{one_sentence(error)}); --glue_dir reads the official files instead"
        ) from error
    found = {}
    for split in splits:
        rows = loaded[split]
        columns = [rows[name] for name in task.hub_texts]
        hidden = split.startswith("test")
        found[split] = [
            Example(tuple(texts), None if hidden else label, str(index))
            for *texts, label, index in zip(*columns, rows["label"], rows["idx"], strict=True)
        ]
    return found


class TextDataset(Dataset):
    """Token ids. An item is a dict of what the tokenizer makes, and ``label`` where there is one.

    Attributes:
        labels: the labels in the task's own order, for the metrics; None without.
        indices: how the files number the examples.
    """

    def __init__(self, examples: Sequence[Example], tokenizer, max_length: int, label_ids: Sequence[int] | None):
        columns = list(zip(*(example.texts for example in examples), strict=True))
        made = tokenizer(*map(list, columns), truncation=True, max_length=max_length)
        self._columns = {name: list(values) for name, values in made.items()}
        self.indices = [example.index for example in examples]
        self.labels = None
        if examples[0].label is not None:
            self.labels = [example.label for example in examples]
            # A model may have its classes in another order than the task.
            self._columns["label"] = self.labels if label_ids is None else [label_ids[y] for y in self.labels]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict:
        return {name: values[index] for name, values in self._columns.items()}

    def fingerprint(self) -> str:
        """SHA-256 of everything a model is given."""
        sha = hashlib.sha256()
        for name in sorted(self._columns):
            sha.update(f"{name}{self._columns[name]}".encode())
        return sha.hexdigest()
