"""`Checker` where a YAML for text is another one: its data sets and its models."""

from __future__ import annotations

import os

import torchvision.datasets  # noqa: F401  torchdistill's registry of data sets looks for it among the imported modules
from torchdistill.datasets.registry import COLLATE_FUNC_DICT, register_collate_func

from akd_ext.train.system.errors import ConfigError
from akd_ext.train.tasks.text.data import COLLATE, source_of
from akd_ext.train.tasks.text.models import looks_local
from akd_ext.train.tasks.text.task import RUNS_NO_TEACHER

from .checker import Checker
from .document import Tagged, YamlTree

NAME = "pretrained_model_name_or_path"


def is_text(plain: dict) -> bool:
    """Whether a YAML describes Hugging Face models, in the way of torchdistill's GLUE script."""
    models = plain.get("models")
    entries = [models.get(role) for role in ("model", "student_model")] if isinstance(models, dict) else []
    return any(isinstance(entry, dict) and "model_kwargs" in entry for entry in entries)


class TextChecker(Checker):
    """`Checker` with other data sets and models, and with the test sets to answer under ``private``."""

    def check(self) -> None:
        if isinstance(self.root.get("datasets"), Tagged):  # first, as its plug-ins may be of another script
            self.fail("datasets", "it must be a mapping of GLUE tasks, or of files of your own, not made by a tag")
        super().check()
        entries = self.root.get("private") or []
        if not isinstance(entries, list):
            self.fail("private", "it must be a list of test sets to answer")
        for number, entry in enumerate(entries):
            path = f"private.{number}"
            if not isinstance(entry, dict) or not isinstance(entry.get("pred_output"), str):
                self.fail(path, "it needs a private_data_loader and pred_output, the name of a file")
            self.section(entry, path, "private_data_loader", kind="loader", required=True)
            self.keys(entry, path, "private")

    def find_datasets(self) -> list[str]:
        if COLLATE not in COLLATE_FUNC_DICT:  # it needs the tokenizer, which comes later
            register_collate_func(lambda batch: batch, key=COLLATE)
        ids: list[str] = []
        for name, entry in self.top("datasets").items():
            path = f"datasets.{name}"
            if not isinstance(entry, dict):
                self.fail(path, "it must be a mapping with name and dataset_id_map")
            self.keys(entry, path, "text dataset")
            try:
                ids += source_of(entry, path).ids.values()
            except ConfigError as error:
                raise ConfigError(f"{error} ({self.tree.location(path)})") from error
        return ids

    def model(self, models: dict, role: str) -> None:
        path = f"models.{role}"
        section = self.section(models, "models", role, kind="model", required=True)
        if section is None:
            self.fail(path, "a model must be a mapping written out here, not made by a tag")
        for part in ("config_kwargs", "tokenizer_kwargs", "model_kwargs"):
            found = self.section(section, path, part, required=True)
            if role != "teacher_model" or self._runs_the_teacher():
                self._folder((found or {}).get(NAME), f"{path}.{part}.{NAME}", role)
        if role != "teacher_model" and not section.get("dst_ckpt"):
            problem = "'dst_ckpt' is missing: it names the folder for the best student, or give --output_dir"
            self.fail(f"{path}.dst_ckpt", problem)

    def _runs_the_teacher(self) -> bool:
        train = self.root.get("train")
        sections = [train, *train.values()] if isinstance(train, dict) else []
        teachers = [section.get("teacher") for section in sections if isinstance(section, dict)]
        procs = [teacher.get("forward_proc") for teacher in teachers if isinstance(teacher, dict)]
        return not procs or any(proc != RUNS_NO_TEACHER for proc in procs)

    def _folder(self, name: object, path: str, role: str) -> None:
        """A model that is no name on the hub must be there."""
        if not isinstance(name, str) or not looks_local(name):
            return
        folder, flag = os.path.expanduser(name), "--teacher" if role == "teacher_model" else "--student"
        inner = os.path.join(name, "checkpoint")  # where a run keeps its model, see RunFolder
        if not os.path.isfile(os.path.join(folder, "config.json")) and os.path.isdir(os.path.expanduser(inner)):
            self.fail(
                path, f"'{name}' is the folder of a run; its model is in '{inner}': name that, as by {flag} {inner}"
            )
        if not os.path.isdir(folder):
            self.fail(path, f"there is no folder '{name}'; {self.maker(name)}, or name another with {flag} FOLDER")

    def changes(self, other: YamlTree) -> list[str]:
        theirs, made = other.plain().get("datasets"), []
        theirs = theirs if isinstance(theirs, dict) else {}
        for place, entry in self.root["datasets"].items():
            task = entry.get("name")
            if isinstance(theirs.get(place), dict) and theirs[place].get("name") != task:
                other.set(f"datasets.{place}.name", task)
                made.append(f"--set datasets.{place}.name={task}")
        return made
