"""What a torchdistill YAML may say, as a table: each kind of section with its keys, each key with what it may hold.

`checker` walks a file along this table. What a table cannot say (the order of stages, what a checkpoint's file is for)
stands there.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Key:
    """What one key of a section may hold."""

    section: str = ""  # a section of this kind
    registry: str = ""  # a name in this registry, ...
    given: int | None = None  # ... which is called with the section's kwargs after so many arguments of torchdistill's
    type: str = ""  # see `values.TYPES`
    required: bool = False


_ANYTHING = Key()


def _keys(names: str) -> dict[str, Key]:
    return dict.fromkeys(names.split(), _ANYTHING)


_FLAG = Key(type="flag")
_LIST = Key(type="list")


def _component(registry: str, given: int | None, more: str = "") -> dict[str, Key]:
    """The keys of a section that names something registered and gives it kwargs."""
    return {"key": Key(registry=registry, given=given, required=True), "kwargs": _ANYTHING, **_keys(more)}


# What torchdistill (or, of text, akd-train) reads. It ignores anything else, so a typing error there would pass in silence.
SECTIONS: dict[str, dict[str, Key]] = {
    "root": _keys("dependencies datasets models train test private"),
    "dependency": _keys("name package"),
    "text dataset": _keys("name dataset_id_map max_length raw_data_kwargs base_split_name"),
    "!import_get": _keys("key package"),
    "!import_call": {**_keys("key package"), "init": Key(section="init")},
    "!import_call_method": {**_keys("package class_name method_name"), "init": Key(section="init")},
    "init": _keys("args kwargs"),
    "models": _keys("model student_model teacher_model"),
    "model": {
        "key": Key(required=True),
        **_keys("kwargs repo_or_dir src_ckpt dst_ckpt config_kwargs tokenizer_kwargs model_kwargs student_init"),
        "quantized": _FLAG,
        "sync_bn": _FLAG,
    },
    "stages": {"log_freq": Key(type="count"), **dict.fromkeys(("student", "teacher", "model"), Key(section="handed over"))},
    "handed over": _keys("dst_ckpt"),
    "stage": {
        "num_epochs": Key(type="count", required=True),
        "pre_epoch_process": Key(registry="pre-epoch process"),
        "pre_forward_process": Key(registry="pre-forward process"),
        "post_forward_process": Key(registry="post-forward process"),
        "post_epoch_process": Key(registry="post-epoch process"),
        "train_data_loader": Key(section="loader"),
        "val_data_loader": Key(section="loader"),
        "teacher": Key(section="role"),
        "student": Key(section="role"),
        "model": Key(section="role"),
        "optimizer": Key(section="optimizer"),
        "scheduler": Key(section="scheduler"),
        "criterion": Key(section="criterion", required=True),
    },
    "role": {
        "forward_proc": Key(registry="forward process", required=True),
        "auxiliary_model_wrapper": Key(section="auxiliary model wrapper"),
        "forward_hook": Key(section="forward hook"),
        "requires_grad": _FLAG,
        "frozen_modules": _LIST,
        "sequential": _LIST,
        **_keys("wrapper adaptations src_ckpt src_folder"),
    },
    "auxiliary model wrapper": {
        "key": Key(registry="auxiliary model wrapper"),
        "frozen_modules": _LIST,
        "sequential": _LIST,
        **_keys("kwargs adaptations"),
    },
    "forward hook": {"input": _LIST, "output": _LIST},
    "wrapper": {"key": Key(registry="wrapper"), "kwargs": _ANYTHING},
    "adaptation": {"key": Key(registry="adaptation module", required=True), "kwargs": _ANYTHING},
    "test": _keys("test_data_loader"),
    "private": _keys("private_data_loader pred_output idx2str"),
    "loader": {
        "sampler": Key(section="sampler"),
        "batch_sampler": Key(section="batch sampler"),
        "dataset_wrapper": Key(section="dataset wrapper"),
        "collate_fn": Key(registry="collate function"),
        "requires_supp": _FLAG,
        **_keys("dataset_id kwargs task_name"),
    },
    "sampler": _keys("class_or_func kwargs"),
    "batch sampler": _component("batch sampler", 1),
    "dataset wrapper": _component("dataset wrapper", 1, "args"),
    "optimizer": {
        **_component("optimizer", 1),
        "filters_params": _FLAG,
        "module_wise_configs": _LIST,
        "grad_accum_step": Key(type="count"),
        "max_grad_norm": Key(type="positive number"),
    },
    "module-wise optimizer": {"module": Key(required=True), "is_teacher": _FLAG, "kwargs": _ANYTHING},
    "scheduler": {**_component("scheduler", 1), "scheduling_step": Key(type="whole number")},
    "criterion": {
        **_component("high-level loss", None, "args"),
        "func2extract_model_loss": Key(registry="function to extract the model's loss"),
    },
    "weighted sum": _keys("model_term sub_terms"),
    "model term": _keys("weight"),
    "term": {
        "weight": Key(type="number", required=True),
        "criterion": Key(section="loss", required=True),
        "criterion_wrapper": Key(section="loss wrapper"),
    },
    "loss": _component("loss", 0, "args"),
    "loss wrapper": _component("loss wrapper", None, "args"),
    "wrapped loss": {"input": Key(section="wrapped input"), "target": Key(section="wrapped target"), "weights": _ANYTHING},
    "wrapped input": {"is_from_teacher": _FLAG, **_keys("module_path io")},
    "wrapped target": {"is_from_teacher": _FLAG, "uses_label": _FLAG, **_keys("module_path io")},
    "feature pair": {
        "weight": Key(type="number"),
        **dict.fromkeys("student teacher student_first student_second teacher_first teacher_second".split(),
                        Key(section="feature map")),
    },
    "feature map": _keys("io path"),
}  # fmt: skip
SECTIONS["only stage"] = {**SECTIONS["stage"], "log_freq": _ANYTHING}

# What torchdistill called them before version 1.
OLD_NAMES = {"name": "key", "type": "key", "params": "kwargs", "factor": "weight", "ckpt": "src_ckpt"}


def is_known(key: str) -> bool:
    """True if torchdistill reads a key of this name somewhere."""
    return any(key in section for section in SECTIONS.values())
