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


def _component(registry: str, given: int | None, more: str = "") -> dict[str, Key]:
    """The keys of a section that names something registered and gives it kwargs."""
    return {"key": Key(registry=registry, given=given, required=True), "kwargs": _ANYTHING, **_keys(more)}


# What torchdistill reads. It ignores anything else, so a typing error there would pass in silence.
SECTIONS: dict[str, dict[str, Key]] = {
    "root": _keys("dependencies datasets models train test private"),
    "models": _keys("model student_model teacher_model"),
    "model": _keys(
        "key kwargs repo_or_dir src_ckpt dst_ckpt quantized sync_bn "
        "config_kwargs tokenizer_kwargs model_kwargs student_init"
    ),
    "stage": {
        "num_epochs": Key(type="count", required=True),
        "log_freq": _ANYTHING,
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
        **_keys(
            "wrapper requires_grad frozen_modules sequential adaptations forward_hook src_ckpt dst_ckpt src_folder"
        ),
    },
    "auxiliary model wrapper": {
        "key": Key(registry="auxiliary model wrapper"),
        **_keys("kwargs frozen_modules sequential adaptations"),
    },
    "wrapper": {"key": Key(registry="wrapper"), "kwargs": _ANYTHING},
    "adaptation": {"key": Key(registry="adaptation module", required=True), "kwargs": _ANYTHING},
    "loader": {
        "sampler": Key(section="sampler"),
        "batch_sampler": Key(section="batch sampler"),
        "dataset_wrapper": Key(section="dataset wrapper"),
        "collate_fn": Key(registry="collate function"),
        **_keys("dataset_id requires_supp kwargs cache_output task_name"),
    },
    "sampler": _keys("class_or_func kwargs"),
    "batch sampler": _component("batch sampler", 1),
    "dataset wrapper": _component("dataset wrapper", 1, "args"),
    "optimizer": {
        **_component("optimizer", 1, "filters_params module_wise_configs module_wise_kwargs"),
        "grad_accum_step": Key(type="count"),
        "max_grad_norm": Key(type="number"),
    },
    "scheduler": _component("scheduler", 1, "scheduling_step"),
    "criterion": {
        **_component("high-level loss", None, "args"),
        "func2extract_model_loss": Key(registry="function to extract the model's loss"),
    },
    "term": {
        "weight": Key(type="number", required=True),
        "criterion": Key(section="loss", required=True),
        "criterion_wrapper": Key(section="loss wrapper"),
    },
    "loss": _component("loss", 0, "args"),
    "loss wrapper": _component("loss wrapper", None, "args"),
}


def is_known(key: str) -> bool:
    """True if torchdistill reads a key of this name somewhere."""
    return any(key in section for section in SECTIONS.values())
