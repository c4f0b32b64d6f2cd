"""The border: everything a YAML file can get wrong is found here, once, before a dataset is read or a step is taken.

The table in `schema` says what each section may hold; here stands what it cannot say.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from akd_ext.train.system.errors import ConfigError, resembles

from . import losses, registries
from .document import Tagged, YamlTree
from .imports import import_attribute, import_module
from .overwrites import is_same
from .schema import SECTIONS, Key
from .walker import Walker, join

_CHECKPOINTS = (".pt", ".pth", ".th", ".safetensors")


class Checker(Walker):
    """Walks the plain view of one file, except for what the run will not need (``-test_only``, ``-student_only``)."""

    def __init__(self, tree: YamlTree, *, needs_train: bool = True, needs_teacher: bool = True):
        super().__init__(tree)
        self.needs_train, self.needs_teacher = needs_train, needs_teacher
        self.warnings: list[str] = []  # said before the first epoch
        self.made: tuple = ()  # checkpoints that this very run will have written before they are read

    def check(self) -> None:
        self.keys(self.root, "", "root")
        self.dependencies()
        self.tags(self.root, "")
        self.dataset_ids = self.find_datasets()
        models = self.top("models")
        self.keys(models, "models", "models")
        self.student = "student_model" if "student_model" in models else "model"
        if self.student not in models:
            for other in [key for key in models if key not in SECTIONS["models"] and not str(key).startswith("_")]:
                self.fail(f"models.{other}", f"torchdistill reads no '{other}' here", other, ["student_model"])
            self.section(models, "models", "student_model", required=True)
        self.has_teacher = models.get("teacher_model") is not None
        for role in (self.student, *(["teacher_model"] if self.has_teacher and self.needs_teacher else [])):
            self.model(models, role)
        if self.needs_train:
            self.train(self.top("train"))
        test = self.top("test")
        self.section(test, "test", "test_data_loader", kind="loader", required=True)
        self.keys(test, "test", "test")

    def find_datasets(self) -> list[str]:
        """What a loader's dataset_id may be."""
        return list(self.top("datasets"))

    def top(self, name: str) -> dict:
        found = self.section(self.root, "", name, required=True)
        if found is None:
            self.fail(name, f"'{name}' must be a mapping written out here, not made by a tag")
        return found

    def dependencies(self) -> None:
        """Imports the plug-ins: what they register are valid choices below."""
        listed = self.root.get("dependencies") or []
        for index, item in enumerate([listed] if isinstance(listed, (str, dict)) else listed):
            path = f"dependencies.{index}"
            if isinstance(item, dict):
                if "name" not in item:
                    self.fail(path, "a dependency needs a 'name'", "name", item)
                self.keys(item, path, "dependency")
                import_module(item["name"], f"{path}.name", item.get("package"))
            elif isinstance(item, str):
                import_module(item, path)
            elif isinstance(item, (list, tuple)) and item:
                import_module(item[0], path, *item[1:2])
            else:
                self.fail(path, f"a dependency is a mapping with a 'name', or a module's name, not {item!r}")

    def tags(self, value: Any, path: str) -> None:
        """Finds what every !import_get, !import_call and !import_call_method refers to, without calling it."""
        if isinstance(value, Tagged):
            self.tag(value, path)
            value = value.value
        children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, inner in children:
            self.tags(inner, join(path, key))

    def tag(self, tagged: Tagged, path: str) -> None:
        entry = tagged.value if isinstance(tagged.value, dict) else {}
        if tagged.tag in SECTIONS:
            self.keys(entry, path, tagged.tag)
        if tagged.tag not in ("!import_get", "!import_call"):
            return
        if not isinstance(entry.get("key"), str):
            self.fail(path, f"{tagged.tag} needs a 'key'", "key", entry)
        try:
            found = import_attribute(entry["key"], join(path, "key"), entry.get("package"))
        except ConfigError as error:
            raise ConfigError(f"{error} ({self.tree.location(path)})") from error
        if tagged.tag == "!import_call":
            self.signature(found, entry["key"], entry.get("init") or {}, join(path, "init"), given=0)

    # -- models and checkpoints --------------------------------------------------------------------------------------

    def model(self, models: dict, role: str) -> None:
        path = f"models.{role}"
        section = self.section(models, "models", role, kind="model", required=True)
        if section is None:
            self.fail(path, "a model must be a mapping with a key and kwargs, not made by a tag")
        if section.get("repo_or_dir") is None:
            kind = "quantized model" if section.get("quantized") else "model"
            builder = self.registered(section, path, "key", Key(registry=kind, required=True))
            self.call(builder, str(section["key"]), section, path, given=0)
        self.made = ()
        if role != "teacher_model":
            if not section.get("dst_ckpt"):
                problem = "'dst_ckpt' is missing: it names the file for the best student, or give --output_dir"
                self.fail(f"{path}.dst_ckpt", problem)
            # A student whose src_ckpt is its own dst_ckpt is torchdistill's idiom for "continue if there is something".
            self.made = (section["dst_ckpt"],)
        elif self.needs_train and not self.has_weights(section):
            problem = "it names no src_ckpt and no pretrained weights, so the teacher starts with random ones"
            self.warnings.append(f"{path}: {problem} ({self.tree.location(path)})")
        self.source(section, path)

    def has_weights(self, section: dict) -> bool:
        """Whether a teacher's weights come from anywhere, as far as its entry, or a stage, says."""
        kwargs = section.get("kwargs") or {}
        stages = [stage for stage in (self.root.get("train") or {}).values() if isinstance(stage, dict)]
        loaded = [stage.get("teacher") for stage in [*stages, self.root.get("train") or {}]]
        return bool(
            section.get("src_ckpt")
            or section.get("repo_or_dir")
            or not isinstance(kwargs, dict)
            or any(value and re.search("pretrained|weights|ckpt|checkpoint", key) for key, value in kwargs.items())
            or any(isinstance(entry, dict) and entry.get("src_ckpt") for entry in loaded)
        )

    def source(self, section: dict, path: str) -> None:
        """The file to start from must be there, unless this very run makes it."""
        file, key_path = section.get("src_ckpt"), f"{path}.src_ckpt"
        if isinstance(file, str) and file.lower().startswith("http://"):
            self.fail(key_path, "plain http can be changed on the way; accepted: https, or a file")
        if not isinstance(file, str) or not file or file.lower().startswith("https://") or file in self.made:
            return
        file = os.path.expanduser(file)
        if os.path.isdir(file):
            inside = sorted(name for name in os.listdir(file) if name.endswith(_CHECKPOINTS))
            hint = f", such as '{os.path.join(file, inside[0])}'" if inside else ""
            self.fail(key_path, f"'{file}' is a folder; accepted: a checkpoint file{hint}")
        if not os.path.isfile(file):
            folder = os.path.dirname(file)
            there = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
            there = [os.path.join(folder, name) for name in there if name.endswith(_CHECKPOINTS)]
            made = [name for name in self.made if isinstance(name, str) and path.startswith("train.")]
            advice = f"{self.maker(section['src_ckpt'])}, or name another with --set {key_path}=FILE"
            self.fail(key_path, f"there is no checkpoint file '{file}'; {advice}", file, made or there)

    def maker(self, checkpoint: str) -> str:
        """How to get a checkpoint: where a YAML beside this one writes it, by which command."""
        for path in sorted(Path(self.tree.path).parent.glob("*.yaml")):
            with contextlib.suppress(ConfigError, OSError):
                other = YamlTree(str(path))
                changes = self.changes(other)
                models = other.plain().get("models")
                models = models.values() if isinstance(models, dict) else ()  # it may be any YAML
                if checkpoint in [model.get("dst_ckpt") for model in models if isinstance(model, dict)]:
                    return " ".join(["train it first, with akd-train --config", str(path), *changes])
        return "train it first"

    def changes(self, other: YamlTree) -> list[str]:
        """Turns another file into one for the data of this one; returns the arguments that do so."""
        return []

    # -- stages ------------------------------------------------------------------------------------------------------

    def train(self, train: dict) -> None:
        number_of_stages = self.stage_names(train)
        if not number_of_stages:
            if train.get("log_freq") is not None:
                self.typed(train, "train", "log_freq", "count")
            self.stage(train, "train", first=True)
            return
        stages = [f"stage{number}" for number in range(1, number_of_stages + 1)]
        self.keys({key: value for key, value in train.items() if key not in stages}, "train", "stages")
        student = self.root["models"].get(self.student)
        written = [(train.get(role) or {}).get("dst_ckpt") for role in ("student", "teacher", "model")]
        for name in stages:
            stage = self.section(train, "train", name, required=True)
            if stage is None:
                self.fail(f"train.{name}", "a stage must be a mapping written out here, not made by a tag")
            first = name == "stage1"
            self.made = (student.get("dst_ckpt"), *written) if not first and isinstance(student, dict) else ()
            self.stage(stage, f"train.{name}", first=first)

    def stage_names(self, train: dict) -> int:
        """How many stages there are, which must be numbered without a gap; 0 if the section is itself the only one.

        torchdistill leaves out a stage whose name it does not know, and says nothing.
        """
        stages = [key for key in train if str(key).startswith("stage")]
        valid = [f"stage{n}" for n in range(1, len(stages) + 2) if f"stage{n}" not in stages]
        for key, value in train.items():
            is_meant = key not in SECTIONS["stages"] and key not in SECTIONS["stage"] and not str(key).startswith("_")
            if str(key).isdigit() or (is_meant and isinstance(value, dict) and resembles(key, ["stage1"], 0.6)):
                if key not in stages:
                    self.fail(join("train", key), f"'{key}' is not a stage", f"stage{key}"[-6:], valid[:1])
        for key in stages:
            if not re.fullmatch(r"stage[1-9]\d*", key):
                self.fail(f"train.{key}", f"'{key}' is not a stage name (stage1, stage2, ...)", key, valid[:1])
        for expected, key in enumerate(sorted(stages, key=lambda key: int(key[5:])), start=1):
            if key != f"stage{expected}":
                after = f"stage{expected - 1}" if expected > 1 else "nothing"
                problem = f"'{key}' follows {after}: stages are numbered 1, 2, 3, ... without a gap"
                self.fail(f"train.{key}", problem, key, [f"stage{expected}"])
        return len(stages)

    def stage(self, stage: dict, path: str, *, first: bool) -> None:
        # A later stage inherits what it leaves out: torchdistill keeps the loaders and the optimizer it has.
        for name in ("train_data_loader", "val_data_loader", "optimizer"):
            found = self.section(stage, path, name, required=first)
            if (
                found == {} and name != "optimizer"
            ):  # where the key is there, torchdistill would not inherit but stumble
                self.fail(f"{path}.{name}", "it is empty; leave it out, and the stage before lends its own")
        for role in ("teacher", "student") if self.has_teacher else ("model",):
            if not isinstance(stage.get(role), dict):
                why = (
                    "" if self.has_teacher else ", because without models.teacher_model torchdistill reads 'model' here"
                )
                self.fail(f"{path}.{role}", f"the section '{role}' is missing{why}; it needs at least a forward_proc")
        self.keys(stage, path, "stage" if path != "train" else "only stage")
        if self.has_teacher:
            self.teacher_gradient(stage, path)

    def teacher_gradient(self, stage: dict, path: str) -> None:
        """torchdistill trains a teacher unless a line forbids it, and it would learn to follow its own student."""
        teacher, key_path = stage["teacher"], f"{path}.teacher.requires_grad"
        if teacher["forward_proc"] == "skip_forward" or not losses.read_teacher(stage["criterion"]):
            return
        if teacher.get("requires_grad") is None:
            problem = (
                "'requires_grad' is missing, and without it torchdistill trains the teacher, too: write False to keep it "
                "as it is, True to train it on purpose (or, with frozen_modules, a part of it)"
            )
            self.fail(key_path, problem)
        if teacher["requires_grad"] is True:
            part = "what frozen_modules leaves of the teacher" if teacher.get("frozen_modules") else "the whole teacher"
            self.warnings.append(f"{key_path} is True: {part} is trained in this stage, as well as the student")

    # -- what the table cannot say of a section, called by `keys` ----------------------------------------------------

    def also_role(self, section: dict, path: str) -> None:
        wrapper = section.get("wrapper")
        if isinstance(wrapper, dict):
            self.keys(wrapper, f"{path}.wrapper", "wrapper")
        elif wrapper:
            self.registered(section, path, "wrapper", Key(registry="wrapper"))
        for name, adaptation in (section.get("adaptations") or {}).items():
            if isinstance(adaptation, dict):
                self.keys(adaptation, f"{path}.adaptations.{name}", "adaptation")
        if self.made and not path.endswith(".teacher"):
            self.hand_over(section, path)
        self.source(section, path)

    def hand_over(self, section: dict, path: str) -> None:
        """A later stage that starts from another run's student: meant at times, mostly a name that was not changed."""
        made = [name for name in self.made if isinstance(name, str)]
        for key in ("src_ckpt", "src_folder"):
            source = section.get(key)
            if isinstance(source, str) and source and not any(is_same(name, source) for name in made):
                self.warnings.append(
                    f"{path}.{key}: it is '{source}', which this run does not write, so the student of the stages before is "
                    f"not used; theirs is '{self.made[0]}' ({self.tree.location(f'{path}.{key}')})"
                )

    def also_loader(self, section: dict, path: str) -> None:
        dataset_id = section.get("dataset_id")
        if not isinstance(dataset_id, Tagged) and dataset_id not in self.dataset_ids:
            problem = "'dataset_id' is missing" if dataset_id is None else f"'{dataset_id}' is not defined in datasets"
            self.fail(f"{path}.dataset_id", problem, dataset_id or path.rpartition(".")[2], self.dataset_ids)
        self.call(DataLoader, "DataLoader", section, path, given=1)

    def also_sampler(self, section: dict, path: str) -> None:
        made, inner = section.get("class_or_func"), f"{path}.class_or_func"
        example = "torch.utils.data.RandomSampler"
        if made is None:
            self.fail(inner, f"'class_or_func' is missing; for example !import_get with the key {example}")
        if not isinstance(made, Tagged):
            valid = [f"torch.utils.data.{name}Sampler" for name in ("Random", "Sequential", "SubsetRandom")]
            problem = f"'{made}' is text, not a class; write !import_get with a dotted key"
            self.fail(inner, problem, f"torch.utils.data.{made}", valid)
        if made.tag == "!import_get":
            found = import_attribute(made.value["key"], f"{inner}.key", made.value.get("package"))
            self.call(found, made.value["key"], section, path, given=1)

    def also_optimizer(self, section: dict, path: str) -> None:
        for number, entry in enumerate(section.get("module_wise_configs") or []):
            inner = f"{path}.module_wise_configs.{number}"
            if not isinstance(entry, dict):
                self.fail(inner, f"it must be a mapping with a module and kwargs, not {entry!r}")
            self.keys(entry, inner, "module-wise optimizer")

    def also_criterion(self, section: dict, path: str) -> None:
        kwargs, path = section.get("kwargs") or {}, f"{path}.kwargs"
        if not isinstance(kwargs, dict):
            return
        if section["key"] == "WeightedSumLoss":
            if not kwargs.get("model_term"):
                self.section(kwargs, path, "sub_terms", required=True)
            self.keys(kwargs, path, "weighted sum")
            self.section(kwargs, path, "model_term", kind="model term")
        for name, term in (kwargs.get("sub_terms") or {}).items():
            inner = f"{path}.sub_terms.{name}"
            if not isinstance(term, dict):
                self.fail(inner, f"a loss term must be a mapping with criterion and weight, not {term!r}")
            self.keys(term, inner, "term")

    def also_term(self, term: dict, path: str) -> None:
        criterion, wrapper = term["criterion"], term.get("criterion_wrapper")
        if not isinstance(criterion, dict):
            return  # built by a tag: an nn.Module
        key, inner = str(criterion.get("key")), f"{path}.criterion_wrapper"
        if not wrapper and losses.is_plain(key):
            problem = f"'criterion_wrapper' is missing: {key} compares two tensors, and the wrapper says which"
            self.fail(inner, problem, "SimpleLossWrapper", registries.choices("loss wrapper"))
        if isinstance(wrapper, dict) and wrapper.get("key") in losses.WRAPPERS:
            if not losses.is_plain(key) and losses.finds_its_own(key):
                self.fail(inner, f"leave it out: {key} finds both models' outputs itself, and takes no two tensors")
            if isinstance(wrapper.get("kwargs"), dict):
                self.keys(wrapper["kwargs"], f"{inner}.kwargs", "wrapped loss")
        kwargs = criterion.get("kwargs")
        if isinstance(kwargs, dict) and kwargs.get("reduction") == "none" and wrapper is None:
            problem = f"'none' leaves one number per sample, and training needs one; {key} takes another reduction"
            self.fail(f"{path}.criterion.kwargs.reduction", problem)

    def also_loss(self, section: dict, path: str) -> None:
        kwargs = section.get("kwargs")
        for name, pairs in kwargs.items() if isinstance(kwargs, dict) else ():
            if name.endswith("_pairs") and isinstance(pairs, dict) and losses.is_of_torchdistill(str(section["key"])):
                for pair in pairs:
                    self.section(pairs, f"{path}.kwargs.{name}", pair, kind="feature pair", required=True)
