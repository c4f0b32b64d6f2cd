"""Looked for before the first run, which may take hours: every model, file and folder that the plan needs."""

from __future__ import annotations

import json
import math
import re
from argparse import Namespace
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from akd_ext.train.system.errors import ConfigError, RunError, one_sentence
from akd_ext.train.tasks.text.data import Source, load_examples
from akd_ext.train.tasks.text.glue import TASKS
from akd_ext.train.tasks.text.glue_files import find_file
from akd_ext.train.tasks.text.models import looks_local

from . import leaderboard
from .experiments import Experiment
from .jobs import Job, Options, plan
from .pretrained_teacher import PretrainedTeacher, build_network, read_weights
from .recipes import edited, stages

# ---------------------------------------------------------------- images


def without_own_teacher(experiment: Experiment, output_dir: Path, options: Options) -> Options:
    """``--teacher_ckpt`` may name this very table's teacher, to spare its training: then it is no foreign file.

    Raises:
        ConfigError: there is no such file, or it lies in the folder of a run of this table that is to be made anew.
    """
    teacher = options.pretrained
    if teacher is None:
        return options
    if not teacher.path.is_file():
        raise ConfigError(f"--teacher_ckpt: there is no file '{teacher.path}'")
    found, here = teacher.path.resolve(), output_dir.resolve()
    parts = found.relative_to(here).parts if found.is_relative_to(here) else ()
    if len(parts) < 3 or parts[0] not in experiment.rows or not re.fullmatch(r"seed\d+", parts[1]):
        return options
    own = replace(options, pretrained=None)
    (job,) = plan(experiment, output_dir, replace(own, only=("teacher",), seeds=1))
    if teacher == PretrainedTeacher(teacher.path) and job.results() and job.checkpoint.samefile(found):
        return own
    raise ConfigError(
        f"--teacher_ckpt: '{teacher.path}' is in the folder of this table's run '{parts[0]} {parts[1]}', which would be "
        "made anew; name a copy of the file that lies elsewhere"
    )


def check_teacher(jobs: Iterable[Job], options: Options) -> Options:
    """The checkpoint must fit the network; returns the options with that network's size.

    Raises:
        ConfigError: it holds more than weights, or another network's.
    """
    job = next((job for job in jobs if job.pretrained), None)
    if job is None:
        return options
    from akd_ext.train.checkpoint.weights import load

    entry = edited(job.config, job.overrides).plain()["models"]["model"]
    read_weights(job.pretrained)
    model = build_network("--teacher_model", entry["key"], entry["kwargs"])
    load(model, str(job.pretrained), "--teacher_ckpt")
    size = sum(parameter.numel() for parameter in model.parameters())
    return replace(options, pretrained=replace(options.pretrained, parameters=size))


def long_teacher(experiment: Experiment, jobs: Iterable[Job], options: Options) -> str | None:
    """A warning where a CPU is about to train the teacher of a CIFAR table; None where there is nothing to say."""
    job = next((job for job in jobs if job.run == "teacher" and not job.pretrained and job.results() is None), None)
    if job is None or options.device != "cpu" or not experiment.dataset.startswith("cifar"):
        return None
    network = edited(job.config, job.overrides).plain()["models"]["model"]
    depth = network["kwargs"].get("depth")
    name = network["key"] if depth is None else f"{network['key']} of depth {depth}"
    epochs = sum(stage.epochs for stage in stages(job.config, job.overrides))
    return (
        f"the teacher, a {name}, is trained first, for {epochs} epoch{'s' * (epochs != 1)} on the CPU, which may take days; "
        "--teacher_ckpt FILE spares it"
    )


def fetch_images(experiment: Experiment, options: Options) -> None:
    """Downloads what is missing, once: several runs that begin at the same time would write one file.

    Raises:
        RunError: torchvision cannot get it.
    """
    if not experiment.dataset.startswith("cifar"):
        return
    import torchvision

    root = str(options.data_dir or "./data")  # as the recipes have it
    try:
        getattr(torchvision.datasets, experiment.dataset.upper())(root, download=True)
    except Exception as error:
        raise RunError(
            f"--data_dir: torchvision gets no {experiment.dataset} into '{root}': {one_sentence(error)}"
        ) from error


# ---------------------------------------------------------------- GLUE


def check_files(jobs: list[Job], args: Namespace) -> None:
    """The folders and files of a GLUE table that are on this machine.

    Raises:
        ConfigError: a folder, a file or a layer is not there.
    """
    _check_folders(args)
    if args.submission is not None:
        leaderboard.check(jobs, args.submission)
    for task in {job.task for job in jobs} if args.glue_dir is not None else ():
        for split, _ in TASKS[task].splits:
            if args.submission is not None or not split.startswith("test"):
                find_file(args.glue_dir, TASKS[task], split)
        if task == "mnli" and args.submission is not None:
            find_file(args.glue_dir, TASKS["ax"], "test")  # MNLI's students answer it


def check_hub(experiment: Experiment, jobs: list[Job], options: Options) -> None:
    """The data and the models that the runs left to do take from the Hugging Face hub, or from a folder.

    Raises:
        ConfigError: one of them cannot be had.
    """
    left = [job for job in jobs if job.results() is None]
    for task in {job.task for job in left} if options.glue_dir is None else ():
        load_examples(Source(TASKS[task], {}, 128, {}), None)
    for role, job in {experiment.rows[job.run].role: job for job in left}.items():
        recipe = edited(job.config, ()).plain()["models"][experiment.rows[job.run].model]
        _check_model(role, job.model or recipe["model_kwargs"]["pretrained_model_name_or_path"])


def _check_folders(args: Namespace) -> None:
    for flag in ("teacher", "ta", "student"):
        name = getattr(args, flag)
        if name and looks_local(name) and not Path(name).expanduser().is_dir():
            raise ConfigError(f"--{flag}: there is no folder '{name}'")
    config = Path(args.student or "").expanduser() / "config.json"
    if args.student and args.student_layers and config.is_file():
        layers = json.loads(config.read_text()).get("num_hidden_layers", math.inf)
        if not all(0 <= layer < layers for layer in args.student_layers):
            raise ConfigError(f"--student_layers {args.student_layers}: '{args.student}' has layers 0 to {layers - 1}")


def _check_model(role: str, name: str) -> None:
    """Its configuration and tokenizer are small and quickly had; where they are, the weights are."""
    from transformers import AutoConfig, AutoTokenizer

    folder = str(Path(name).expanduser()) if looks_local(name) else name
    try:
        AutoConfig.from_pretrained(folder)
        AutoTokenizer.from_pretrained(folder)
    except Exception as error:
        raise ConfigError(
            f"--{role}: the model '{name}' cannot be had: {one_sentence(error)}; --{role} names another one, on the hub or "
            "in a folder"
        ) from error
