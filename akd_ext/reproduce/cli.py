"""``akd-reproduce``: trains every run of a results table and writes the table.

Each run is one ``akd-train`` command. A run that is complete is not repeated: stop the command whenever you like, start
it again later: what was under way goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from akd_ext.train.reporting.folding import folded
from akd_ext.train.run_folder import run_lock
from akd_ext.train.system.device import pick_device
from akd_ext.train.system.errors import ConfigError, RunError
from akd_ext.train.system.failures import explain

from . import glue_table, image_table, leaderboard, preflight, report
from .experiments import EXPERIMENTS, Experiment
from .figures import loss_landscape, toy_regression
from .figures.command import json_object, positive
from .jobs import Interrupted, Job, Options, plan, results_of
from .pool import COMMANDS, JobPool
from .pretrained_teacher import PretrainedTeacher
from .recipes import write_configs

# Commands with options of their own.
FIGURES = {"figure2": toy_regression.main, "figure3": loss_landscape.main}
# Options of one kind of table only.
_FOR_IMAGES = ("data_dir", "teacher_ckpt", "teacher_model", "teacher_kwargs", "mean", "std")
_FOR_GLUE = ("tasks", "glue_dir", "teacher", "ta", "student", "student_layers", "lr", "length_buckets", "submission")


def parser() -> argparse.ArgumentParser:
    """The command line of ``akd-reproduce``."""
    p = argparse.ArgumentParser(
        prog="akd-reproduce",
        description="Trains every run of a results table and writes it.",
        allow_abbrev=False,  # "--seed 5" asks for something else than "--seeds 5"
    )
    p.add_argument("name", choices=sorted(EXPERIMENTS), help="which table; or figure2, figure3 (--help after it)")
    p.add_argument(
        "--output_dir",
        type=Path,
        help="where runs and table go (default: ./runs/NAME, with the scale behind it where there is one)",
    )
    p.add_argument(
        "--seeds", type=positive, default=3, metavar="N", help="students per row, seeds 0 to N-1 (default 3)"
    )
    p.add_argument("--only", nargs="+", metavar="RUN", help="these runs, and the teachers they need")
    p.add_argument("--ablations", action="store_true", help="the ablations as well")
    p.add_argument(
        "--epochs_scale", type=_share, default=1.0, metavar="X", help="train X times the epochs; the table says so"
    )
    p.add_argument("--device", help="as for akd-train (default: auto; for digits cpu, they are too small for a GPU)")
    p.add_argument(
        "--jobs",
        type=positive,
        help="runs at once (default: one per CPU of this process, at most 8, or 4 on a GPU; GLUE: 1). A run has the "
        "threads of the environment's OMP_NUM_THREADS, or one",
    )
    p.add_argument("--verbose", action="store_true", help="print every akd-train command; commands.log has them anyway")
    p.add_argument("--write_configs", type=Path, metavar="DIR", help="train nothing; write every row as a whole YAML file, "
                   "which torchdistill's own scripts run as well")  # fmt: skip
    _add_image_arguments(p.add_argument_group("images only"))
    _add_glue_arguments(p.add_argument_group("GLUE only"))
    return p


def _add_image_arguments(images: argparse._ArgumentGroup) -> None:
    add = images.add_argument
    add("--data_dir", type=Path, metavar="DIR", help="where torchvision finds or puts the data (default: ./data)")
    add("--teacher_ckpt", type=Path, metavar="FILE", help="use this teacher instead of training one")
    add("--teacher_model", metavar="KEY", help="its network, where it is not the table's teacher")
    add("--teacher_kwargs", type=json_object, metavar="JSON", help="its arguments")
    add("--mean", type=float, nargs=3, metavar="M", help="of the image channels in its training")
    add("--std", type=float, nargs=3, metavar="S", help="likewise")


def _add_glue_arguments(glue: argparse._ArgumentGroup) -> None:
    glue.add_argument("--tasks", nargs="+", metavar="TASK", help="these tasks (default: all nine)")
    glue.add_argument("--glue_dir", type=Path, metavar="DIR", help="GLUE's official files, not the Hugging Face hub")
    glue.add_argument("--teacher", metavar="MODEL", help="name or folder of the model to fine-tune as the teacher")
    glue.add_argument("--ta", metavar="MODEL", help="the same for the teacher assistant")
    glue.add_argument("--student", metavar="MODEL", help="the same for the student")
    glue.add_argument("--student_layers", type=_layers, metavar="0,1", help="keep only these layers of the student")
    glue.add_argument(
        "--lr", type=_rate, metavar="X", help="learning rate of every run, for models smaller than the paper's"
    )
    glue.add_argument("--length_buckets", action="store_true", help="batches of similar length: less padding")
    glue.add_argument("--submission", type=Path, metavar="DIR", help="write the leaderboard's files; RTE, MRPC and "
                      "STS-B then start from the MNLI student, as in Table 4")  # fmt: skip


def _layers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no list of layers such as 0,1") from None


def _share(text: str) -> float:
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no number above 0 and at most 1")
    return value


def _rate(text: str) -> float:
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is no number above 0")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """A polite kill must end the runs under way, too; Python's default would leave them behind."""
    if threading.current_thread() is not threading.main_thread():  # handlers can only be set there
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _options(args: argparse.Namespace) -> Options:
    device = args.device or ("cpu" if args.name == "digits" else "auto")
    picked = pick_device(device)  # also where one is named: it must be there
    of_teacher = {"--teacher_model": args.teacher_model, "--teacher_kwargs": args.teacher_kwargs, "--mean": args.mean,
                  "--std": args.std}  # fmt: skip
    for flag, value in of_teacher.items():
        if value is not None and args.teacher_ckpt is None:
            raise ConfigError(f"{flag}: it says of which network --teacher_ckpt is, and there is none")
    pretrained = args.teacher_ckpt and PretrainedTeacher(
        args.teacher_ckpt, args.teacher_model, args.teacher_kwargs or {}, args.mean, args.std
    )
    return Options(
        seeds=args.seeds,
        only=tuple(args.only) if args.only else None,
        ablations=args.ablations,
        # By name: the data may live there, and a run on another is another run.
        device=picked.type if device == "auto" else device,
        epochs_scale=args.epochs_scale,
        data_dir=args.data_dir,
        pretrained=pretrained,
        tasks=tuple(args.tasks) if args.tasks else None,
        glue_dir=args.glue_dir,
        models={"teacher": args.teacher, "ta": args.ta, "student": args.student},
        student_layers=args.student_layers,
        lr=args.lr,
        length_buckets=args.length_buckets,
    )


def _check_flags(args: argparse.Namespace, experiment: Experiment) -> None:
    for flag in _FOR_IMAGES if experiment.is_text else _FOR_GLUE:
        if getattr(args, flag):
            kind = "images" if experiment.is_text else "GLUE"
            raise ConfigError(f"--{flag}: it is for the tables of {kind}, and {args.name} is none")


def _reproduce(args: argparse.Namespace) -> str:
    """Train what the arguments ask for; return what to print."""
    start, experiment = time.monotonic(), EXPERIMENTS[args.name]
    _check_flags(args, experiment)
    if args.write_configs is not None:
        files = write_configs(experiment, args.write_configs)
        return f"{len(files)} files written to {args.write_configs}"
    shorter = "" if args.epochs_scale == 1 else f"-x{args.epochs_scale:g}"
    output_dir = args.output_dir or Path("runs") / f"{args.name}{shorter}"
    options = preflight.without_own_teacher(experiment, output_dir, _options(args))
    jobs = plan(experiment, output_dir, options)
    at_once = min(args.jobs or _jobs(experiment, options), len(jobs))
    print(f"{args.name}: {len(jobs)} run{'s' * (len(jobs) != 1)}, {at_once} at a time", flush=True)
    if experiment.is_text:
        preflight.check_files(jobs, args)
    else:
        options = preflight.check_teacher(jobs, options)
        if (teacher := preflight.long_teacher(experiment, jobs, options)) is not None:
            print(folded(teacher, sys.stdout), flush=True)
        preflight.fetch_images(experiment, options)
    with _sigterm_as_ctrl_c(), run_lock("akd-reproduce", "--output_dir", output_dir):
        if experiment.is_text:
            preflight.check_hub(experiment, jobs, options)
        print(folded(f"the commands of the runs go to {output_dir / COMMANDS}", sys.stdout), flush=True)

        def train(jobs: list[Job]) -> None:
            JobPool(jobs, at_once, output_dir / COMMANDS, args.verbose).run()

        train(jobs)
        text = _write_table(experiment, output_dir, options)
        if args.submission is not None:
            from_mnli = leaderboard.plan_submission(jobs)
            train(from_mnli)
            print(*leaderboard.write([*jobs, *from_mnli], args.submission), sep="\n")
    written = "table.json" if experiment.is_text else "table.png and table.json"
    return f"\n{text}\n{output_dir / 'table.md'} and {written} written in {time.monotonic() - start:.0f} s"


def _jobs(experiment: Experiment, options: Options) -> int:
    if experiment.is_text:
        return 1
    return 4 if options.device.startswith("cuda") else min(_cpus(), 8)


def _write_table(experiment: Experiment, output_dir: Path, options: Options) -> str:
    # The table holds what is there, so that --only and --tasks add to it and remove nothing.
    everything = plan(experiment, output_dir, replace(options, only=tuple(experiment.rows), tasks=None))
    found = results_of(everything)
    table = (glue_table if experiment.is_text else image_table).build(experiment, found, options)
    report.write_table(experiment.name, table, found, output_dir)
    if not experiment.is_text:
        image_table.draw(experiment, table, found, output_dir)
    return table.text


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``akd-reproduce`` with the given arguments and return its exit code.

    0 done, 1 a run failed, 2 something in the command cannot work, 130 stopped.
    """
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in FIGURES:
        return FIGURES[argv[0]](argv[1:])
    args = parser().parse_args(argv)
    try:
        print(folded(_reproduce(args), sys.stdout))
        return 0
    except Interrupted as error:
        return _fail(130, str(error))
    except ConfigError as error:
        return _fail(2, f"error: {error}")
    except (RunError, FileNotFoundError) as error:
        return _fail(1, f"error: {error}")
    except OSError as error:
        return _fail(1, f"error: {explain(error) or error}")
    except KeyboardInterrupt:
        return _fail(130, "stopped; start it again to go on where it was")


def _fail(code: int, sentence: str) -> int:
    print(folded(f"akd-reproduce: {sentence}", sys.stderr), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
