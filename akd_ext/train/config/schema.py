"""The border: everything a YAML file can get wrong is found here, once, before a dataset is read or a step is taken.

Each check raises `ConfigError` with one sentence: the key, its place in the file, the nearest valid choice.
"""

from __future__ import annotations

import inspect
import os
import re
from typing import Any

from akd_ext.train.system.errors import ConfigError, nearest, resembles

from . import registries
from .document import Tagged, YamlTree
from .imports import import_attribute, import_module

_HOOKS = {
    "pre_epoch_process": "pre-epoch process",
    "pre_forward_process": "pre-forward process",
    "post_forward_process": "post-forward process",
    "post_epoch_process": "post-epoch process",
}
_CHECKPOINTS = (".pt", ".pth", ".th", ".safetensors")
# What torchdistill reads. Anything else is ignored by it, so a typing error here would pass in silence.
KNOWN = {
    "root": ("dependencies", "datasets", "models", "train", "test", "private"),
    "models": ("model", "student_model", "teacher_model"),
    "model": (
        "key", "kwargs", "repo_or_dir", "src_ckpt", "dst_ckpt", "quantized", "sync_bn", "config_kwargs",
        "tokenizer_kwargs", "model_kwargs", "student_init",
    ),
    "stage": (
        "num_epochs", "log_freq", "train_data_loader", "val_data_loader", "teacher", "student", "model", "optimizer",
        "scheduler", "criterion", *_HOOKS,
    ),
    "role": (
        "forward_proc", "wrapper", "requires_grad", "frozen_modules", "sequential", "adaptations", "forward_hook",
        "auxiliary_model_wrapper", "src_ckpt", "dst_ckpt", "src_folder",
    ),
    "loader": (
        "dataset_id", "sampler", "batch_sampler", "collate_fn", "dataset_wrapper", "requires_supp", "kwargs",
        "cache_output", "task_name",
    ),
    "optimizer": ("key", "kwargs", "filters_params", "max_grad_norm", "grad_accum_step", "module_wise_configs",
                  "module_wise_kwargs"),
    "scheduler": ("key", "kwargs", "scheduling_step"),
    "criterion": ("key", "args", "kwargs", "func2extract_model_loss"),
    "term": ("criterion", "criterion_wrapper", "weight"),
}  # fmt: skip


def is_known(key: str) -> bool:
    """True if torchdistill reads a key of this name somewhere."""
    return any(key in names for names in KNOWN.values())


class Checker:
    """Walks the plain view of one file, except for what the run will not need (``-test_only``, ``-student_only``)."""

    def __init__(self, tree: YamlTree, *, needs_train: bool = True, needs_teacher: bool = True):
        self.tree, self.needs_train, self.needs_teacher = tree, needs_train, needs_teacher
        self.root = tree.plain()
        self.written: list[str] = []  # files torchdistill itself writes between two stages

    # -- the tools ---------------------------------------------------------------------------------------------------

    def fail(self, place: str, problem: str, given: Any = None, valid: Any = ()) -> None:
        raise ConfigError(f"{place}: {problem}{_hint(given, valid)} ({self.tree.where(place)})")

    def mapping(self, parent: dict, place: str, key: str, *, required: bool = True) -> dict | None:
        """The mapping at ``place.key``; None when it is absent or made by a tag; {} when it is left empty."""
        inner, value = _join(place, key), parent.get(key)
        if isinstance(value, (Tagged, dict)):
            return value if isinstance(value, dict) else None
        if value is not None:
            self.fail(inner, f"'{key}' must be a mapping, not {value!r}")
        if required:
            meant = [other for other in parent if not is_known(str(other)) and resembles(other, [key], 0.6)]
            if meant:
                self.fail(_join(place, meant[0]), f"torchdistill reads no '{meant[0]}' here", meant[0], [key])
            self.fail(inner, f"the section '{key}' {'is empty' if key in parent else 'is missing'}")
        return {} if key in parent else None

    def typos(self, section: dict, place: str, kind: str) -> None:
        for key in section:
            if not str(key).startswith("_") and key not in KNOWN[kind]:
                near = resembles(key, KNOWN[kind])
                if near and near not in section:
                    self.fail(_join(place, key), f"torchdistill reads no '{key}' here", key, [near])

    def registered(self, section: dict, place: str, name: str, kind: str, *, required: bool = True) -> Any:
        """What the key at ``place.name`` names in the registry of ``kind``; None if it is absent or not known yet."""
        value, inner = section.get(name), _join(place, name)
        if isinstance(value, Tagged):
            return None
        valid = registries.choices(kind)
        if value is None:
            if required:
                old = "; before version 1 torchdistill called it 'name'" if name == "key" and "name" in section else ""
                self.fail(inner, f"'{name}' is missing; it names a {kind}, for example '{_example(kind, valid)}'{old}")
            return None
        if not isinstance(value, str) or value not in valid:
            none = "" if valid else "; none is registered"
            self.fail(inner, f"'{value}' is not a registered {kind}{none}", value, valid)
        return valid[value]

    def call(self, function: Any, label: str, section: dict, place: str, *, given: int, numbers: bool = True) -> None:
        """Checks the kwargs at ``place.kwargs`` against the signature of what will be called with them."""
        kwargs, inner = section.get("kwargs"), _join(place, "kwargs")
        if isinstance(kwargs, Tagged) or function is None:
            return
        if kwargs is not None and not isinstance(kwargs, dict):
            self.fail(inner, f"'kwargs' must be a mapping, not {kwargs!r}")
        for key, value in (kwargs or {}).items():
            if numbers and isinstance(value, str) and _looks_like_a_float(value):
                self.fail(_join(inner, key), f"YAML reads '{value}' as text, not as a number; write {float(value)!r}")
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError):
            return  # built in C, no signature to compare with
        kinds = {p.kind for p in parameters}
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)][given:]
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            for key in kwargs or {}:
                if key not in [p.name for p in named]:
                    self.fail(_join(inner, key), f"{label} takes no '{key}'", key, [p.name for p in named])
        if inspect.Parameter.VAR_POSITIONAL not in kinds and not section.get("args"):
            for parameter in named:
                if parameter.default is parameter.empty and parameter.name not in (kwargs or {}):
                    self.fail(inner, f"{label} needs '{parameter.name}'")

    def number(self, section: dict, place: str, key: str) -> None:
        value = section.get(key)
        if isinstance(value, str) and _looks_like_a_float(value):
            self.fail(_join(place, key), f"YAML reads '{value}' as text, not as a number; write {float(value)!r}")
        if isinstance(value, (bool, str)) or not isinstance(value, (int, float, Tagged)):
            self.fail(_join(place, key), f"must be a number, not {value!r}")

    def count(self, section: dict, place: str, key: str) -> None:
        value = section.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, Tagged)) or (isinstance(value, int) and value < 1):
            problem = "is missing" if key not in section else f"must be a whole number from 1, not {value!r}"
            self.fail(_join(place, key), f"'{key}' {problem}")

    # -- the sections ------------------------------------------------------------------------------------------------

    def check(self) -> None:
        self.typos(self.root, "", "root")
        self.dependencies()
        self.tags(self.root, "")
        self.dataset_ids = self.find_datasets()
        models = self.section("models")
        self.typos(models, "models", "models")
        self.student = "student_model" if "student_model" in models else "model"
        if self.student not in models:
            for other in [key for key in models if key not in KNOWN["models"] and not str(key).startswith("_")]:
                self.fail(f"models.{other}", f"torchdistill reads no '{other}' here", other, ["student_model"])
            self.mapping(models, "models", "student_model")
        self.has_teacher = models.get("teacher_model") is not None
        self.model(models, self.student)
        if self.has_teacher and self.needs_teacher:
            self.model(models, "teacher_model")
        if self.needs_train:
            self.train(self.section("train"))
        self.loader(self.section("test"), "test", "test_data_loader")

    def find_datasets(self) -> list[str]:
        """What a loader's dataset_id may be."""
        return list(self.section("datasets"))

    def section(self, name: str) -> dict:
        found = self.mapping(self.root, "", name)
        if found is None:
            self.fail(name, f"'{name}' must be a mapping written out here, not made by a tag")
        return found

    def dependencies(self) -> None:
        """Imports the plug-ins: what they register are valid choices below."""
        listed = self.root.get("dependencies") or []
        listed = [listed] if isinstance(listed, (str, dict)) else listed
        for index, item in enumerate(listed):
            place = f"dependencies.{index}"
            if isinstance(item, dict):
                if "name" not in item:
                    self.fail(place, "a dependency needs a 'name'", "name", item)
                import_module(item["name"], f"{place}.name", item.get("package"))
            elif isinstance(item, (list, tuple)) and item:
                import_module(item[0], place, *item[1:2])
            elif isinstance(item, str):
                import_module(item, place)
            else:
                self.fail(place, f"a dependency is a mapping with a 'name', or a module's name, not {item!r}")

    def tags(self, value: Any, place: str) -> None:
        """Finds what every !import_get, !import_call and !import_call_method refers to, without calling it."""
        if isinstance(value, Tagged):
            entry = value.value if isinstance(value.value, dict) else {}
            if value.tag in ("!import_get", "!import_call"):
                if not isinstance(entry.get("key"), str):
                    self.fail(place, f"{value.tag} needs a 'key'", "key", entry)
                try:
                    found = import_attribute(entry["key"], _join(place, "key"), entry.get("package"))
                except ConfigError as error:
                    raise ConfigError(f"{error} ({self.tree.where(place)})") from error
                if value.tag == "!import_call":
                    self.call(
                        found, entry["key"], entry.get("init") or {}, _join(place, "init"), given=0, numbers=False
                    )
            self.tags(value.value, place)
        elif isinstance(value, dict):
            for key, inner in value.items():
                self.tags(inner, _join(place, key))
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                self.tags(inner, _join(place, index))

    def model(self, models: dict, role: str) -> None:
        place = f"models.{role}"
        section = self.mapping(models, "models", role)
        if section is None:
            self.fail(place, "a model must be a mapping with a key and kwargs, not made by a tag")
        self.typos(section, place, "model")
        if section.get("repo_or_dir") is None:
            builder = self.registered(section, place, "key", "quantized model" if section.get("quantized") else "model")
            self.call(builder, str(section["key"]), section, place, given=0)
        is_teacher = role == "teacher_model"
        dst_ckpt = section.get("dst_ckpt")
        if not is_teacher and not dst_ckpt:
            self.fail(
                f"{place}.dst_ckpt",
                "'dst_ckpt' is missing: it names the file for the best student, or give --output_dir",
            )
        # A student whose src_ckpt is its own dst_ckpt is torchdistill's idiom for "continue if there is something".
        self.file(section, place, may_be_absent=() if is_teacher else (dst_ckpt,))

    def file(self, section: dict, place: str, may_be_absent: tuple = ()) -> None:
        path = section.get("src_ckpt")
        if isinstance(path, str) and path.lower().startswith("http://"):
            self.fail(f"{place}.src_ckpt", "plain http can be changed on the way; accepted: https, or a file")
        if not isinstance(path, str) or not path or path.startswith(("http://", "https://")) or path in may_be_absent:
            return
        path = os.path.expanduser(path)
        if not os.path.isfile(path):
            folder = os.path.dirname(path)
            there = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
            there = [os.path.join(folder, name) for name in there if name.endswith(_CHECKPOINTS)]
            # What this very run will have made before a stage needs it. A student to start from must be there before.
            made = [name for name in may_be_absent if isinstance(name, str) and place.startswith("train.")]
            where = f"{place}.src_ckpt"
            advice = f"train it first, or name another with --set {where}=FILE"
            self.fail(where, f"there is no checkpoint file '{path}'; {advice}", path, made or there)

    def train(self, train: dict) -> None:
        if train.get("log_freq") is not None:
            self.count(train, "train", "log_freq")
        stages = sorted(key for key in train if str(key).startswith("stage"))
        if not stages:
            for key in train:
                if resembles(key, ["stage1"], 0.6):
                    self.fail(_join("train", key), f"'{key}' is not a stage", key, ["stage1"])
            self.typos(train, "train", "stage")
            self.stage(train, "train", first=True)
            return
        for key in stages:
            if not re.fullmatch(r"stage[1-9]\d*", key):
                valid = [f"stage{n}" for n in range(1, len(stages) + 1) if f"stage{n}" not in stages]
                self.fail(f"train.{key}", f"'{key}' is not a stage name (stage1, stage2, ...)", key, valid)
        numbers = sorted(int(key[5:]) for key in stages)
        for expected, number in enumerate(numbers, start=1):
            if number != expected:
                self.fail(
                    f"train.stage{number}",
                    f"'stage{number}' follows {f'stage{expected - 1}' if expected > 1 else 'nothing'}: stages are "
                    "numbered 1, 2, 3, ... without a gap",
                    f"stage{number}", [f"stage{expected}"],
                )  # fmt: skip
        self.written = [train.get(role, {}).get("dst_ckpt") for role in ("student", "teacher", "model")
                        if isinstance(train.get(role), dict)]  # fmt: skip
        for number in numbers:
            place = f"train.stage{number}"
            stage = self.mapping(train, "train", f"stage{number}")
            if stage is None:
                self.fail(place, "a stage must be a mapping written out here, not made by a tag")
            self.stage(stage, place, first=number == 1)

    def stage(self, stage: dict, place: str, *, first: bool) -> None:
        self.typos(stage, place, "stage")
        self.count(stage, place, "num_epochs")
        for name, kind in _HOOKS.items():
            if name in stage:
                self.registered(stage, place, name, kind)
        # A later stage inherits what it leaves out: torchdistill keeps the loaders and the optimizer it has.
        self.loader(stage, place, "train_data_loader", required=first)
        self.loader(stage, place, "val_data_loader", required=first)
        for role in ("teacher", "student") if self.has_teacher else ("model",):
            self.role(stage, place, role, first)
        self.optimizer(stage, place, required=first)
        self.criterion(stage, place)

    def role(self, stage: dict, place: str, role: str, first: bool) -> None:
        inner = f"{place}.{role}"
        section = stage.get(role)
        if not isinstance(section, dict):
            why = "" if self.has_teacher else ", because without models.teacher_model torchdistill reads 'model' here"
            self.fail(inner, f"the section '{role}' is missing{why}; it needs at least a forward_proc")
        self.typos(section, inner, "role")
        self.registered(section, inner, "forward_proc", "forward process")
        wrapper = section.get("wrapper")
        if isinstance(wrapper, dict):
            self.registered(wrapper, f"{inner}.wrapper", "key", "wrapper", required=False)
        elif wrapper:
            self.registered(section, inner, "wrapper", "wrapper")
        auxiliary = section.get("auxiliary_model_wrapper")
        if isinstance(auxiliary, dict):
            self.registered(
                auxiliary, f"{inner}.auxiliary_model_wrapper", "key", "auxiliary model wrapper", required=False
            )
        for name, adaptation in (section.get("adaptations") or {}).items():
            if isinstance(adaptation, dict):
                self.registered(adaptation, f"{inner}.adaptations.{name}", "key", "adaptation module")
        student = self.root["models"].get(self.student)
        made_before = () if first or not isinstance(student, dict) else (student.get("dst_ckpt"), *self.written)
        self.file(section, inner, may_be_absent=made_before)

    def loader(self, stage: dict, place: str, name: str, *, required: bool = True) -> None:
        inner = f"{place}.{name}"
        section = self.mapping(stage, place, name, required=required)
        if section is None:
            return
        if not section and not required:  # where the key is there, torchdistill would not inherit but stumble
            self.fail(inner, "it is empty; leave it out, and the stage before lends its own")
        self.typos(section, inner, "loader")
        dataset_id = section.get("dataset_id")
        if dataset_id is None:
            self.fail(f"{inner}.dataset_id", "'dataset_id' is missing", name, self.dataset_ids)
        if not isinstance(dataset_id, Tagged) and dataset_id not in self.dataset_ids:
            self.fail(f"{inner}.dataset_id", f"'{dataset_id}' is not defined in datasets", dataset_id, self.dataset_ids)
        sampler = self.mapping(section, inner, "sampler")
        if sampler is not None:
            self.sampler(sampler, f"{inner}.sampler")
        for key, kind in (("batch_sampler", "batch sampler"), ("dataset_wrapper", "dataset wrapper")):
            if isinstance(section.get(key), dict) and section[key]:
                found = self.registered(section[key], f"{inner}.{key}", "key", kind)
                self.call(found, section[key]["key"], section[key], f"{inner}.{key}", given=1)
        if section.get("collate_fn") is not None:
            self.registered(section, inner, "collate_fn", "collate function")
        from torch.utils.data import DataLoader

        self.call(DataLoader, "DataLoader", section, inner, given=1)

    def sampler(self, section: dict, place: str) -> None:
        made = section.get("class_or_func")
        if made is None:
            self.fail(f"{place}.class_or_func", "'class_or_func' is missing; for example !import_get with the key "
                      "torch.utils.data.RandomSampler")  # fmt: skip
        if isinstance(made, Tagged) and made.tag == "!import_get":
            found = import_attribute(made.value["key"], f"{place}.class_or_func.key", made.value.get("package"))
            self.call(found, made.value["key"], section, place, given=1)
        elif not isinstance(made, Tagged):
            self.fail(f"{place}.class_or_func", f"'{made}' is text, not a class; write !import_get with a dotted key",
                      f"torch.utils.data.{made}",
                      [f"torch.utils.data.{n}Sampler" for n in ("Random", "Sequential", "SubsetRandom")])  # fmt: skip

    def optimizer(self, stage: dict, place: str, *, required: bool) -> None:
        section = self.mapping(stage, place, "optimizer", required=required)
        if section:
            self.typos(section, f"{place}.optimizer", "optimizer")
            found = self.registered(section, f"{place}.optimizer", "key", "optimizer")
            self.call(found, str(section.get("key")), section, f"{place}.optimizer", given=1)
            if "grad_accum_step" in section:
                self.count(section, f"{place}.optimizer", "grad_accum_step")
            if section.get("max_grad_norm") is not None:
                self.number(section, f"{place}.optimizer", "max_grad_norm")
        section = self.mapping(stage, place, "scheduler", required=False)
        if section:
            self.typos(section, f"{place}.scheduler", "scheduler")
            found = self.registered(section, f"{place}.scheduler", "key", "scheduler")
            self.call(found, str(section.get("key")), section, f"{place}.scheduler", given=1)

    def criterion(self, stage: dict, place: str) -> None:
        inner = f"{place}.criterion"
        section = self.mapping(stage, place, "criterion")
        if section is None:
            return
        self.typos(section, inner, "criterion")
        self.registered(section, inner, "key", "high-level loss")
        self.registered(
            section, inner, "func2extract_model_loss", "function to extract the model's loss", required=False
        )
        kwargs = section.get("kwargs")
        terms = kwargs.get("sub_terms") if isinstance(kwargs, dict) else None
        if section["key"] == "WeightedSumLoss" and isinstance(kwargs, (dict, type(None))):
            if not (kwargs or {}).get("model_term"):
                self.mapping(kwargs or {}, f"{inner}.kwargs", "sub_terms")
        for name, term in (terms or {}).items():
            self.term(term, f"{inner}.kwargs.sub_terms.{name}")

    def term(self, term: Any, place: str) -> None:
        if not isinstance(term, dict):
            self.fail(place, f"a loss term must be a mapping with criterion and weight, not {term!r}")
        self.typos(term, place, "term")
        if "weight" not in term:
            self.fail(
                f"{place}.weight", "'weight' is missing", "weight", [k for k in term if resembles(k, ["weight"], 0.6)]
            )
        self.number(term, place, "weight")
        criterion = self.mapping(term, place, "criterion")
        if criterion is None:
            return  # built by a tag: an nn.Module
        found = self.registered(criterion, f"{place}.criterion", "key", "loss")
        self.call(found, str(criterion.get("key")), criterion, f"{place}.criterion", given=0)
        wrapper = term.get("criterion_wrapper")
        if isinstance(wrapper, dict) and wrapper:
            self.registered(wrapper, f"{place}.criterion_wrapper", "key", "loss wrapper")
        elif registries.is_plain_torch_loss(str(criterion.get("key"))):
            self.fail(
                f"{place}.criterion_wrapper",
                f"'criterion_wrapper' is missing: {criterion['key']} compares two tensors, and the wrapper says which",
                "SimpleLossWrapper",
                registries.choices("loss wrapper"),
            )


def _hint(given: Any, valid: Any) -> str:
    valid = [str(choice) for choice in valid]
    if not valid:
        return ""
    if resembles(given, valid, 0.5) or len(valid) > 15 or len(valid) == 1:
        return f"; the nearest valid choice is '{nearest(given, valid)}'"
    return f"; the valid choices are {', '.join(valid)}"


def _join(place: str, key: Any) -> str:
    return f"{place}.{key}" if place else str(key)


def _example(kind: str, valid: Any) -> str:
    usual = ("forward_batch_only", "WeightedSumLoss", "KDLoss", "SimpleLossWrapper", "SGD", "MultiStepLR", "resnet18")
    return next((name for name in usual if name in valid), None) or next(iter(valid))


def _looks_like_a_float(text: str) -> bool:
    return re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", text) is not None
