"""The torchdistill YAML files of ``torchdistill_configs/``, written from one table of hyper-parameters.

    python -m akd_ext.experiments.configs --write    # after a change to the table
    python -m akd_ext.experiments.configs --check    # what the tests run: fails when a file and the table differ

Every file is a complete torchdistill configuration: ``akd-train`` runs it, and so do torchdistill's own scripts.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .configs_yaml import Note, Tagged, to_yaml

# ---------------------------------------------------------------- the table


@dataclass(frozen=True)
class Network:
    """A model key of the plug-in, its arguments, and its size for the reader of a table."""

    key: str
    kwargs: dict[str, Any]
    parameters: int


@dataclass(frozen=True)
class Stage:
    """One stage of training: what the student learns from, for how long, how fast."""

    loss: str  # "ce", "kd" or "annealing"
    epochs: int
    lr: float


@dataclass(frozen=True)
class Run:
    """One row of a results table: which network learns from which other one."""

    title: str  # in a table
    purpose: str  # the first line of the file
    network: str
    stages: tuple[Stage, ...]
    teacher: str | None = None  # the run whose checkpoint is the teacher


@dataclass(frozen=True)
class Experiment:
    """One folder of configurations: the data, the networks and the runs of one table."""

    name: str
    train_size: int
    batch_size: int
    momentum: float
    weight_decay: float
    lr_drops: tuple[float, ...]  # shares of a stage's epochs after which the learning rate falls ...
    lr_drop_factor: float  # ... to this share of itself
    kd_lambda: float  # equation 1 of the paper: (1 - lambda) CE + lambda T^2 KL
    kd_temperature: int
    tau_max: int
    networks: dict[str, Network]
    runs: dict[str, Run]
    baseline: str  # the run the others are compared with


DIGITS = Experiment(
    name="digits",
    train_size=200,
    batch_size=32,
    momentum=0.9,
    weight_decay=1e-4,
    lr_drops=(0.5, 0.75),
    lr_drop_factor=0.1,
    kd_lambda=0.9,
    kd_temperature=4,
    tau_max=10,
    networks={
        "teacher": Network("digits_cnn", {"width": 48}, 46_186),
        "ta": Network("digits_mlp", {"width": 128}, 9_610),
        "student": Network("digits_mlp", {"width": 32}, 2_410),
    },
    # Chosen on validation accuracy, with other seeds than the table's: KD does better here with lambda 0.9 and T 4 than
    # with 0.5 and 1. Every student trains for the same 360 epochs, so that no method wins by training longer.
    runs={
        "teacher": Run("teacher", "The teacher, trained on labels", "teacher", (Stage("ce", 40, 0.05),)),
        "ta": Run(
            "TA", "The teacher assistant of TAKD: KD from the teacher", "ta", (Stage("kd", 360, 0.06),), "teacher"
        ),
        "scratch": Run("scratch", "The student alone, trained on labels", "student", (Stage("ce", 360, 0.06),)),
        "kd": Run("KD", "KD (Hinton et al.): teacher to student", "student", (Stage("kd", 360, 0.06),), "teacher"),
        "takd": Run(
            "TAKD", "TAKD (Mirzadeh et al.): teacher assistant to student", "student", (Stage("kd", 360, 0.06),), "ta"
        ),
        "annealing_kd": Run(
            "Annealing-KD",
            "Annealing-KD (Jafari et al.): stage I follows the annealed logits, stage II the labels",
            "student",
            (Stage("annealing", 300, 0.1), Stage("ce", 60, 0.01)),
            "teacher",
        ),
    },
    baseline="kd",
)

EXPERIMENTS = {DIGITS.name: DIGITS}

# ---------------------------------------------------------------- from the table to torchdistill's words


def render(experiment: Experiment, name: str) -> str:
    """Return the YAML text of one run of an experiment.

    Example:
        >>> render(DIGITS, "kd").splitlines()[0]
        '# KD (Hinton et al.): teacher to student.'
    """
    run = experiment.runs[name]
    header = (
        f"# {run.purpose}.\n"
        "# Written by `python -m akd_ext.experiments.configs --write` from the table in that file:\n"
        "# change the table, or copy this file and change the copy.\n\n"
    )
    return header + to_yaml(
        {
            "dependencies": [{"name": "akd_ext.torchdistill"}],
            "datasets": _datasets(experiment),
            "models": _models(experiment, name, run),
            "train": _train(experiment, name, run),
            "test": {"test_data_loader": _loader(experiment, "test")},
        }
    )


def checkpoint(experiment: Experiment, name: str) -> str:
    """Where a run keeps its best student unless ``akd-train --output_dir`` says otherwise."""
    return f"./runs/{experiment.name}/{name}/checkpoint.pt"


def _datasets(experiment):
    def split(name, **kwargs):
        kwargs = {"split": name, **kwargs}
        return Tagged("!import_call", {"key": "akd_ext.torchdistill.Digits", "init": {"kwargs": kwargs}})

    return {
        "digits/train": split("train", train_size=experiment.train_size),
        "digits/val": split("val"),
        "digits/test": split("test"),
    }


def _models(experiment, name, run):
    def network(run):
        chosen = experiment.networks[run.network]
        return {"key": chosen.key, "kwargs": dict(chosen.kwargs)}

    student = network(run) | {"dst_ckpt": checkpoint(experiment, name)}
    if run.teacher is None:
        return {"model": student}
    teacher = network(experiment.runs[run.teacher]) | {"src_ckpt": checkpoint(experiment, run.teacher)}
    return {"teacher_model": teacher, "student_model": student}


def _train(experiment, name, run):
    if len(run.stages) == 1:
        return {"log_freq": 50} | _stage(experiment, name, run, 1)
    return {"log_freq": 50} | {
        f"stage{number}": _stage(experiment, name, run, number) for number in range(1, len(run.stages) + 1)
    }


def _stage(experiment, name, run, number):
    stage = run.stages[number - 1]
    student: dict[str, Any] = {"forward_proc": "forward_batch_only"}
    if number > 1:
        student["src_ckpt"] = Note(checkpoint(experiment, name), f"the best of stage {number - 1}")
    models = {"model": student} if run.teacher is None else {"teacher": _teacher(stage), "student": student}
    pre_epoch = {}
    if stage.loss != "ce":
        why = ("sets T, and " if stage.loss == "annealing" else "") + "puts the teacher's BatchNorm into eval mode"
        pre_epoch = {"pre_epoch_process": Note("annealing_pre_epoch_process", why)}
    return {
        "num_epochs": stage.epochs,
        "train_data_loader": _loader(experiment, "train"),
        "val_data_loader": _loader(experiment, "val"),
        **models,
        "optimizer": {
            "key": "SGD",
            "kwargs": {"lr": stage.lr, "momentum": experiment.momentum, "weight_decay": experiment.weight_decay},
        },
        "scheduler": {
            "key": "MultiStepLR",
            "kwargs": {
                "milestones": [round(share * stage.epochs) for share in experiment.lr_drops],
                "gamma": experiment.lr_drop_factor,
            },
        },
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": _LOSSES[stage.loss](experiment)}},
        **pre_epoch,
    }


def _teacher(stage):
    forward = (
        "forward_batch_only" if stage.loss != "ce" else Note("skip_forward", "this stage learns from labels alone")
    )
    return {"forward_proc": forward, "requires_grad": False}


def _loader(experiment, split):
    sampler = "torch.utils.data.RandomSampler" if split == "train" else "torch.utils.data.SequentialSampler"
    return {
        "dataset_id": f"digits/{split}",
        "sampler": {"class_or_func": Tagged("!import_get", {"key": sampler})},
        "kwargs": {"batch_size": experiment.batch_size if split == "train" else 512, "num_workers": 0},
    }


def _ce(experiment):
    return {
        "ce": {
            "criterion": {"key": "CrossEntropyLoss", "kwargs": {"reduction": "mean"}},
            "criterion_wrapper": {
                "key": "SimpleLossWrapper",
                "kwargs": {
                    "input": {"is_from_teacher": False, "module_path": ".", "io": "output"},
                    "target": {"uses_label": True},
                },
            },
            "weight": 1.0,
        }
    }


def _kd(experiment):
    # torchdistill's KDLoss is equation 1 with alpha = 1 - lambda, except that alpha = 0 drops the factor T^2.
    if experiment.kd_lambda == 1 and experiment.kd_temperature != 1:
        raise ValueError("torchdistill's KDLoss has no T^2 when lambda is 1: choose a smaller lambda, or T = 1")
    return {
        "kd": {
            "criterion": {
                "key": "KDLoss",
                "kwargs": {
                    **_logits("student"),
                    **_logits("teacher"),
                    "temperature": experiment.kd_temperature,
                    "alpha": Note(round(1 - experiment.kd_lambda, 6), "1 - lambda, the weight of the labels"),
                    "reduction": "batchmean",
                },
            },
            "weight": 1.0,
        }
    }


def _annealing(experiment):
    return {
        "annealing_kd": {
            "criterion": {
                "key": "AnnealingKDLoss",
                "kwargs": {
                    "tau_max": Note(experiment.tau_max, "T falls from here to 1, evenly over the epochs of this stage"),
                    "annealing": Note("linear", "Phi(T) = 1 - (T - 1) / tau_max"),
                    "loss": "mse",
                    "reduction": "mean",
                    **_logits("student"),
                    **_logits("teacher"),
                },
            },
            "weight": 1.0,
        }
    }


def _logits(who):
    return {f"{who}_module_path": ".", f"{who}_module_io": "output"}


_LOSSES = {"ce": _ce, "kd": _kd, "annealing": _annealing}

# ---------------------------------------------------------------- the files


def files() -> dict[str, str]:
    """All YAML texts by their path below ``torchdistill_configs``."""
    return {f"{e.name}/{name}.yaml": render(e, name) for e in EXPERIMENTS.values() for name in e.runs}


def drift(root: Path) -> list[str]:
    """What differs between the files below ``root`` and the table, one sentence each; empty when nothing does."""
    expected = files()
    found = {p.relative_to(root).as_posix(): p for e in EXPERIMENTS for p in sorted((root / e).glob("*.yaml"))}
    missing = [f"{path} is missing" for path in expected if path not in found]
    extra = [f"{path} is in no table" for path in found if path not in expected]
    changed = [
        f"{path} differs from the table"
        for path, p in found.items()
        if p.read_text() != expected.get(path, p.read_text())
    ]
    return missing + extra + changed


def main(argv: list[str] | None = None) -> int:
    """Write the files, or check them; the exit code is 1 when a file and the table differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help="write every file from the table")
    action.add_argument("--check", action="store_true", help="fail when a file and the table differ")
    parser.add_argument("--root", type=Path, help="the folder torchdistill_configs (default: the one of this clone)")
    args = parser.parse_args(argv)
    root = args.root or Path(__file__).resolve().parents[2] / "torchdistill_configs"
    if args.write:
        for path, text in files().items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
    problems = drift(root)
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems and args.check:
        print("run: python -m akd_ext.experiments.configs --write", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
