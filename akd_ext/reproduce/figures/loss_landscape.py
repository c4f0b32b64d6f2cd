"""``akd-reproduce figure3``: the loss surface of stage I at several temperatures.

The surface is that of Li et al. (2018): the loss at the student's weights plus steps along two random directions whose
filters are as long as the student's. The random numbers are the same for every temperature.

As in the paper, each temperature's surface is drawn around the student as it is at that temperature: of a run of
``akd-train`` without augmentation, or given (``--checkpoint 10=A.pt 1=B.pt``). With a single checkpoint all surfaces are of the same
weights; only the second-order term of the student itself tells their curvatures apart then, because

    || z_s - Phi z_t ||^2 = || z_s ||^2 - 2 Phi <z_s, z_t> + Phi^2 || z_t ||^2.

A loss around Phi z_t scales with Phi^2. So beside the rise of the loss stands its ratio to the loss of a student that
answers 0, Phi^2 times the mean square of z_t, in which that scale cancels.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from akd_ext.annealing_functions import linear
from akd_ext.reproduce.experiments import EXPERIMENTS
from akd_ext.reproduce.jobs import Options, plan
from akd_ext.reproduce.pool import COMMANDS, JobPool, command_of
from akd_ext.reproduce.pretrained_teacher import PretrainedTeacher, build_network
from akd_ext.train.system.errors import ConfigError, RunError
from akd_ext.train.system.versions import versions

from . import command as figures
from .landscape import BATCH, logits, random_direction, surfaces
from .loss_landscape_report import draw, measure, table
from .students import student_file

EXPERIMENT = EXPERIMENTS["cifar10-resnet_no_aug"]
TAU_MAX, TEACHER, STUDENT = 10, "resnet110", "resnet8"
TEMPERATURES = (10, 5, 1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``akd-reproduce figure3``."""
    add = parser.add_argument
    add("--data_dir", default="./data", metavar="DIR", help="torchvision's CIFAR-10 folder (default: ./data)")
    add("--download", action="store_true", help="let torchvision download CIFAR-10 into it")
    add("--teacher_ckpt", required=True, metavar="FILE", help="the trained teacher")
    add("--teacher_model", default=TEACHER, metavar="KEY", help="(default: %(default)s)")
    add("--teacher_kwargs", type=figures.json_object, default={}, metavar="JSON", help="its arguments")
    add("--student_model", default=STUDENT, metavar="KEY", help="(default: %(default)s)")
    add("--student_kwargs", type=figures.json_object, default={}, metavar="JSON", help="its arguments")
    add("--checkpoint", nargs="+", metavar="[T=]FILE",
        help="students of stage I, one for each temperature T, or one for all (default: train them)")  # fmt: skip
    add("--epochs", type=figures.positive, default=20, metavar="N", help="of stage I, if trained (default 20)")
    add("--temperatures", type=int, nargs="+", metavar="T", help="which to draw (default: 10 5 1)")
    add("--images", type=figures.positive, default=1024, metavar="N",
        help="the surface is the loss on the first N training images (default 1024)")  # fmt: skip
    add("--grid", type=_grid, default=21, metavar="N", help="points along each direction, odd (default 21)")
    add("--radius", type=_radius, default=1.0, metavar="R",
        help="how far to go; 1: as far as the weights are from 0 (default 1)")  # fmt: skip
    add("--mean", type=float, nargs=3, metavar="M", help="of the image channels (default: as akd_ext's CIFAR configs)")
    add("--std", type=float, nargs=3, metavar="S", help="likewise")
    add("--seed", type=int, default=0, help="of training and directions (default 0)")
    add("--device", default="auto", help="auto (CUDA if there is one), cpu, cuda, cuda:N, mps")


def _grid(text: str) -> int:
    value = int(text)
    if value < 3 or value % 2 == 0:
        raise argparse.ArgumentTypeError(f"{value} is not an odd number of at least 3, and the centre must be a point")
    return value


def _radius(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{value:g} is not a number above 0")
    return value


def _checkpoints(args: argparse.Namespace) -> tuple[list[int], dict[int, str]]:
    """The temperatures to draw, hottest first, and the student's file for each; no files: train."""
    files = args.checkpoint or []
    pairs = [file.split("=", 1) for file in files]
    by_temperature = {int(pair[0]): pair[1] for pair in pairs if len(pair) == 2 and pair[0].isdigit()}
    if by_temperature and len(by_temperature) != len(files) or len(files) > 1 and not by_temperature:
        raise ConfigError(
            "--checkpoint: several files need a temperature each, and each its own: 10=A.pt 5=B.pt 1=C.pt"
        )
    temperatures = args.temperatures or list(by_temperature) or list(TEMPERATURES)
    for temperature in {*temperatures, *by_temperature}:
        if not 1 <= temperature <= TAU_MAX:
            raise ConfigError(f"T = {temperature} is not from 1 to tau_max = {TAU_MAX}")
    if by_temperature and by_temperature.keys() != set(temperatures):
        raise ConfigError("--temperatures and --checkpoint name different temperatures; leave out --temperatures")
    temperatures = sorted(set(temperatures), reverse=True)
    if files and not by_temperature:
        by_temperature = dict.fromkeys(temperatures, files[0])
    if not files and args.epochs < TAU_MAX:
        raise ConfigError(f"--epochs: {args.epochs} is less than one for each of the {TAU_MAX} temperatures")
    return temperatures, {T: by_temperature[T] for T in temperatures if by_temperature}


def _model(role: str, key: str, kwargs: dict[str, Any], path: str | None, flag: str, device: torch.device) -> nn.Module:
    from akd_ext.train.checkpoint.weights import load

    model = build_network(f"--{role}_model", key, kwargs)
    if path is not None:
        load(model, path, flag)
    return model.to(device)


def _data(args: argparse.Namespace, device: torch.device):
    from akd_ext.torchdistill import FastCIFAR10

    normalisation = {name: value for name in ("mean", "std") if (value := getattr(args, name)) is not None}
    try:
        data = FastCIFAR10(args.data_dir, download=args.download, device=device, **normalisation)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except RuntimeError as error:
        raise ConfigError(f"--data_dir: {error}{'' if args.download else '; --download does that'}") from error
    if args.images > len(data):
        raise ConfigError(f"--images: {args.images} are more than the {len(data)} training images there are")
    return data


def run(args: argparse.Namespace) -> int:
    """Train or load the students, walk over the grid, print the table, write ``figure3.png`` and ``figure3.json``."""
    import akd_ext.torchdistill  # noqa: F401  registers the models
    from akd_ext.train.system.device import pick_device

    temperatures, files = _checkpoints(args)
    device = pick_device(args.device)
    data = _data(args, device)
    torch.manual_seed(args.seed)
    teacher = _model("teacher", args.teacher_model, args.teacher_kwargs, args.teacher_ckpt, "--teacher_ckpt", device)
    images = data.__getitems__(range(args.images))[0]
    taught = logits(teacher, images)
    origin = "given" if len({*files.values()}) > 1 or len(files) == 1 else "one for all temperatures, given"
    if not files:
        build_network("--student_model", args.student_model, args.student_kwargs)  # a mistake is found here
        made = _train(args, device)
        files = {T: made[T] for T in temperatures}
        origin = f"trained here: stage I of {args.epochs} epochs without augmentation"
        print("to draw the same students again: --checkpoint", *(f"{T}={file}" for T, file in files.items()))
    students = _load(args, files, device)
    axis = torch.linspace(-args.radius, args.radius, args.grid, dtype=torch.float64).tolist()
    phis = {T: linear(T, TAU_MAX) for T in students}
    found = _surfaces(students, images, taught, phis, axis, args.seed)
    answer = measure(found, phis, taught, axis)
    print(table(answer))
    about = {"command": args.command, "versions": versions(device), "device": str(device), "students": origin}
    figures.write(draw(answer), {**about, "images": args.images, **answer}, args.output_dir, "figure3")
    return 0


def _load(args: argparse.Namespace, files: dict[int, str], device: torch.device) -> dict[int, nn.Module]:
    models = {
        file: _model("student", args.student_model, args.student_kwargs, file, "--checkpoint", device)
        for file in {*files.values()}
    }
    return {T: models[file] for T, file in files.items()}


def _train(args: argparse.Namespace, device: torch.device) -> dict[int, str]:
    """The files of the students that one ``akd-train`` run leaves behind, by temperature."""
    teacher = PretrainedTeacher(Path(args.teacher_ckpt), args.teacher_model, args.teacher_kwargs, args.mean, args.std)
    options = Options(
        seeds=1, only=("annealing_kd",), device=str(device), data_dir=Path(args.data_dir), pretrained=teacher
    )
    runs = args.output_dir / "runs"
    teacher_job, job = plan(EXPERIMENT, runs, options)
    student = PretrainedTeacher(Path(), args.student_model, args.student_kwargs).network("student_model")
    milestones = [max(1, round(share * args.epochs)) for share in (0.5, 0.75)]
    stage = (
        "train.stage1.post_epoch_process=keep_student",
        f"train.stage1.num_epochs={args.epochs}",
        f"train.stage1.scheduler.kwargs.milestones={milestones}",
        "train.stage2.num_epochs=1",  # akd-train wants it, this figure does not
    )
    job = replace(job, seed=args.seed, overrides=(*job.overrides, *student, *stage))
    command = (*command_of("akd_ext.reproduce.figures.students"), str(job.output_dir))
    JobPool([teacher_job, job], 1, runs / COMMANDS, train=command).run()
    return {T: str(student_file(job.output_dir, T)) for T in range(1, TAU_MAX + 1)}


def _surfaces(students, images, taught, phis, axis, seed) -> dict[int, Tensor]:
    from akd_ext.train.reporting.progress import Progress

    by_student: dict[nn.Module, list[int]] = {}
    for T, student in students.items():
        by_student.setdefault(student, []).append(T)
    bar, found = Progress(len(by_student) * len(axis) ** 2 * math.ceil(len(images) / BATCH)), {}
    try:
        for student, temperatures in by_student.items():
            name = "T = " + ", ".join(map(str, temperatures))
            print(f"loss surface, {name}", flush=True)
            bar.describe(name)
            generator = torch.Generator().manual_seed(seed)
            directions = random_direction(student, generator), random_direction(student, generator)
            chosen = [phis[T] for T in temperatures]
            student.register_forward_hook(lambda *_: bar.step())
            found |= zip(temperatures, surfaces(student, images, taught, chosen, directions, axis), strict=True)
    finally:
        bar.close()
    for T, surface in found.items():
        if not surface.isfinite().all():
            raise RunError(f"the loss surface at T = {T} is not finite everywhere")
    return found


def main(argv: Sequence[str]) -> int:
    """Run ``akd-reproduce figure3`` with the given arguments and return its exit code."""
    about = "The loss surface of stage I on CIFAR-10 around the student at several temperatures, and how sharp it is."
    return figures.command("figure3", about, add_arguments, run, argv)
