"""The torchdistill YAML files of ``torchdistill_configs/``, written from the hyper-parameters in ``tables.py``.

    python -m akd_ext.reproduce.configs --write    # after a change to a table
    python -m akd_ext.reproduce.configs --check    # what the tests run: fails when a file and its table differ

Every file is a complete torchdistill configuration: ``akd-train`` runs it, and so do torchdistill's own scripts.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from . import glue_configs
from .configs_yaml import Note, Tagged, to_yaml
from .experiments import DIGITS, EXPERIMENTS, Experiment  # noqa: F401  DIGITS: for the example below

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
        f"# {experiment.name}: {experiment.source}.\n"
        "# Written by `python -m akd_ext.reproduce.configs --write` from akd_ext/reproduce/experiments.py:\n"
        "# change the table, or copy this file and change the copy.\n\n"
    )
    return header + to_yaml(
        {
            "dependencies": [{"name": "akd_ext.torchdistill"}],
            "datasets": _datasets(experiment, run),
            "models": _models(experiment, name, run),
            "train": _train(experiment, name, run),
            "test": {"test_data_loader": _loader(experiment, "test")},
        }
    )


def checkpoint(experiment: Experiment, name: str) -> str:
    """Where a run keeps its best student unless ``akd-train --output_dir`` says otherwise."""
    return f"./runs/{experiment.name}/{name}/checkpoint.pt"


def _datasets(experiment, run):
    data = experiment.data

    def split(kwargs):
        return Tagged("!import_call", {"key": data.key, "init": {"kwargs": kwargs}})

    splits = {"train": split(data.train | run.train_data), "val": split(data.val)}
    if not data.val_is_test:
        splits["test"] = split(data.test)
    return {f"{data.id}/{name}": value for name, value in splits.items()}


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
    models = {"model": student} if run.teacher is None else {"teacher": _teacher(experiment, stage), "student": student}
    pre_epoch = {}
    if stage.loss != "ce":
        sets = "sets T, and " if stage.loss in ("annealing", "continuation") else ""
        does = (
            "runs the teacher once" if experiment.data.cached_teacher else "puts the teacher's BatchNorm into eval mode"
        )
        pre_epoch = {"pre_epoch_process": Note("annealing_pre_epoch_process", sets + does)}
    milestones = experiment.milestones(stage, stage.epochs)
    scheduler = {
        "key": "MultiStepLR",
        "kwargs": {"milestones": _noted(experiment, "lr_drops", milestones), "gamma": experiment.lr_drop_factor},
    }
    return {
        "num_epochs": stage.epochs,
        "train_data_loader": _loader(experiment, "train", teacher=stage.loss != "ce"),
        "val_data_loader": _loader(experiment, "val"),
        **models,
        "optimizer": {
            "key": "SGD",
            "kwargs": {
                "lr": _noted(experiment, "lr", stage.lr),
                "momentum": experiment.momentum,
                "weight_decay": experiment.weight_decay,
            },
        },
        **({"scheduler": scheduler} if milestones else {}),
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": _LOSSES[stage.loss](experiment, stage.options)},
        },
        **pre_epoch,
    }


def _noted(experiment, key, value):
    return Note(value, experiment.notes[key]) if key in experiment.notes else value


def _teacher(experiment, stage):
    if stage.loss == "ce":
        forward = Note("skip_forward", "this stage learns from labels alone")
    elif experiment.data.cached_teacher:
        forward = Note("cached_forward", "no sample is random, so the teacher's logits of one pass serve every epoch")
    elif experiment.data.whole_batches:
        forward = Note("frozen_forward", "as forward_batch_only, but with BatchNorm folded into the convolutions")
    else:
        forward = "forward_batch_only"
    return {"forward_proc": forward, "requires_grad": False}


def _loader(experiment, split, teacher=False):
    data = experiment.data
    sampler = "torch.utils.data.RandomSampler" if split == "train" else "torch.utils.data.SequentialSampler"
    wrapper, collate = {}, {}
    if data.whole_batches:
        collate = {"collate_fn": Note("whole_batch", "the data set makes a batch in one go")}
        if split == "train":
            kwargs = {"cache_dir": f"./runs/{experiment.name}/cache"} if teacher and data.cached_teacher else {}
            wrapper = {"dataset_wrapper": {"key": "IndexedDatasetWrapper", "kwargs": kwargs}}
    return {
        "dataset_id": f"{data.id}/{'val' if split == 'test' and data.val_is_test else split}",
        **wrapper,
        "sampler": {"class_or_func": Tagged("!import_get", {"key": sampler})},
        **collate,
        "kwargs": {
            "batch_size": experiment.batch_size if split == "train" else data.eval_batch_size,
            "num_workers": 0,
        },
    }


def _ce(experiment, options):
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


def _kd(experiment, options):
    # torchdistill's KDLoss is equation 1 with alpha = 1 - lambda, except that alpha = 0 drops the factor T^2.
    temperature = options.get("temperature", experiment.kd_temperature)
    if experiment.kd_lambda == 1 and temperature != 1:
        raise ValueError("torchdistill's KDLoss has no T^2 when lambda is 1: choose a smaller lambda, or T = 1")
    return {
        "kd": {
            "criterion": {
                "key": "KDLoss",
                "kwargs": {
                    **_logits("student"),
                    **_logits("teacher"),
                    "temperature": temperature,
                    "alpha": Note(
                        round(1 - experiment.kd_lambda, 6),
                        experiment.notes.get("kd_lambda", "1 - lambda, the weight of the labels"),
                    ),
                    "reduction": "batchmean",
                },
            },
            "weight": 1.0,
        }
    }


def _annealing(experiment, options):
    tau_max, annealing = options.get("tau_max", experiment.tau_max), options.get("annealing", "linear")
    falls = (
        "T falls from here to 1, evenly over the epochs of this stage" if tau_max > 1 else "T = 1 throughout: Phi = 1"
    )
    formula = {"linear": "Phi(T) = 1 - (T - 1) / tau_max", "cosine": "Phi(T) = (1 + cos(pi (T - 1) / tau_max)) / 2"}
    return {
        "annealing_kd": {
            "criterion": {
                "key": "AnnealingKDLoss",
                "kwargs": {
                    "tau_max": Note(tau_max, falls),
                    "annealing": Note(annealing, formula[annealing]),
                    "loss": options.get("loss", "mse"),
                    "reduction": options.get("reduction", "mean"),
                    **_logits("student"),
                    **_logits("teacher"),
                },
            },
            "weight": 1.0,
        }
    }


def _continuation(experiment, options):
    return {
        "continuation_kd": {
            "criterion": {
                "key": "ContinuationKDLoss",
                "kwargs": {
                    "tau_max": experiment.tau_max,
                    "margin": Note(1.0, "ours: the squared distance that is forgiven"),
                    **_logits("student"),
                    **_logits("teacher"),
                },
            },
            "weight": 1.0,
        }
    }


def _logits(who):
    return {f"{who}_module_path": ".", f"{who}_module_io": "output"}


_LOSSES = {"ce": _ce, "kd": _kd, "annealing": _annealing, "continuation": _continuation}

# ---------------------------------------------------------------- the files


def files() -> dict[str, str]:
    """All YAML texts by their path below ``torchdistill_configs``."""
    own = {f"{e.folder}/{name}.yaml": render(e, name) for e in EXPERIMENTS.values() for name in e.runs}
    return own | glue_configs.files()


def drift(root: Path) -> list[str]:
    """What differs between the files below ``root`` and the table, one sentence each; empty when nothing does."""
    expected = files()
    folders = sorted({path.partition("/")[0] for path in expected})
    found = {p.relative_to(root).as_posix(): p for f in folders for p in sorted((root / f).rglob("*.yaml"))}
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
        print("run: python -m akd_ext.reproduce.configs --write", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
