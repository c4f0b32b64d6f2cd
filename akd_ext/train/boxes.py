"""One face for torchdistill's four boxes (training or distillation, one stage or many)."""

from __future__ import annotations

from typing import Any

from torch import nn
from torchdistill.common.module_util import check_if_wrapped


def stages_in(train: dict) -> list[dict]:
    """The stages of a YAML's ``train`` in order; a section without stages is one, an empty one has none."""
    names = sorted((key for key in train if key.startswith("stage")), key=lambda key: int(key[5:]))
    return [train[name] for name in names] or ([train] if train else [])


def only_private(built: dict) -> set[str]:
    """The data sets that nothing but the section ``private`` names: test sets, read for --private_output alone."""
    loaders = [(built.get("test") or {}).get("test_data_loader")]
    for stage in stages_in(built.get("train") or {}):
        loaders += [stage.get("train_data_loader"), stage.get("val_data_loader")]
    private = {entry["private_data_loader"]["dataset_id"] for entry in built.get("private") or []}
    return private - {loader.get("dataset_id") for loader in loaders if loader}


def current_stage(box: Any) -> int:
    return getattr(box, "stage_number", 1)


def student_of(box: Any) -> nn.Module:
    """The student as the stage trains it: it may be wrapped, redesigned, or part of an auxiliary wrapper."""
    return box.student_model if hasattr(box, "student_model") else box.model


def original_student(box: Any) -> nn.Module:
    """The student as the user gets it: never a stage's redesign of it, whose output may be no logits at all.

    In its wrapper if it has one: DDP hands round BatchNorm's statistics before a forward pass.
    """
    current = student_of(box)
    original = box.org_student_model if hasattr(box, "org_student_model") else box.org_model
    if unwrapped(current) is unwrapped(original):
        return current
    return unwrapped(original)


def unwrapped(model: nn.Module) -> nn.Module:
    """Without DistributedDataParallel or the like."""
    return model.module if check_if_wrapped(model) and hasattr(model, "module") else model


def freeze_teacher_mode(box: Any) -> bool:
    """Puts a fully frozen teacher in eval mode; torchdistill leaves it in train mode, so its BatchNorm would drift.

    Returns True if there was something to do.
    """
    teacher = getattr(box, "teacher_model", None)
    if teacher is None or box.teacher_updatable or not teacher.training:
        return False
    teacher.eval()
    return True


def temperature_and_phi(box: Any) -> tuple[int | None, float | None]:
    """T and Phi of the stage's annealing term, if it has one. Reads a tensor: call it once per epoch, not per step."""
    from akd_ext.torchdistill.pre_epoch import annealing_losses  # registers the plug-in: a YAML must ask for that first

    for _, loss in annealing_losses(box.criterion):
        return int(loss.temperature), float(f"{float(loss.phi):.7g}")  # float32 holds no more
    return None, None
