"""`Checker` where a YAML for text is another one: its data sets and its models."""

from __future__ import annotations

import torchvision.datasets  # noqa: F401  torchdistill's registry of data sets looks for it among the imported modules
from torchdistill.datasets.registry import COLLATE_FUNC_DICT, register_collate_func

from akd_ext.train.system.errors import ConfigError
from akd_ext.train.tasks.text.data import COLLATE, source_of

from .checker import Checker
from .document import Tagged


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
            self.section(section, path, part, required=True)
        if role != "teacher_model" and not section.get("dst_ckpt"):
            problem = "'dst_ckpt' is missing: it names the folder for the best student, or give --output_dir"
            self.fail(f"{path}.dst_ckpt", problem)
