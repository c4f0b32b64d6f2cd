"""``akd-reproduce``: trains every run of a results table and writes the table.

Each run is one ``akd-train`` command, printed before it starts. A run that is complete is not repeated: stop the
command whenever you like, start it again later: what was under way goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import akd_ext
from akd_ext.filesystem import write_text
from akd_ext.reproduce.figures import loss_landscape as figure3
from akd_ext.reproduce.figures import toy_regression as figure2
from akd_ext.reproduce.figures.command import positive
from akd_ext.train.cli import NOTHING_SAVED, STOPPED
from akd_ext.train.run_folder import RunFolder, run_lock
from akd_ext.train.system.device import pick_device
from akd_ext.train.system.errors import ConfigError, one_sentence
from akd_ext.train.system.failures import explain

from . import configs, report
from .experiments import Experiment, Run
from .glue_configs import NAMES as GLUE
from .paths import config_dir
from .pretrained_teacher import adopt, tested
from .report_curves import plot_curves

# Checkpoint, results and log are akd-train's; this file tells which question they answer.
FINGERPRINT = "fingerprint.json"
# akd-train, also where its script is not on the PATH. Not `python -m`: that looks into the current folder first, and in a
# clone would run the source tree, which has no kernels, instead of the akd_ext that runs here.
TRAIN = (
    sys.executable,
    "-c",
    f"import sys; sys.path[0] = {str(Path(akd_ext.__file__).parents[1])!r}; "
    "from akd_ext.train.cli import main; sys.exit(main())",
)
# Commands with options of their own.
FIGURES = {"figure2": figure2.main, "figure3": figure3.main}
# Options of one kind of table only.
_FOR_IMAGES = ("data_dir", "teacher_ckpt")
_FOR_GLUE = ("tasks", "glue_dir", "teacher", "ta", "student", "student_layers", "lr", "length_buckets", "submission")
# Teachers are trained once, with this seed: the table's spread is that of the students.
TEACHER_SEED = 0


class ReproduceError(Exception):
    """Ends the command with one sentence."""


class Interrupted(ReproduceError):
    """A run was stopped and can go on."""


@dataclass(frozen=True)
class Job:
    """One run of the table, with one seed."""

    run: str
    seed: int
    config: Path
    output_dir: Path
    teacher: Job | None
    device: str
    flags: tuple[str, ...] = ()  # of akd-train: how to run, not what
    overrides: tuple[str, ...] = ()  # --set: what differs from the file
    places: tuple[str, ...] = ()  # --set: where data and caches are
    given: Path | None = None  # a checkpoint to use as it is

    @property
    def label(self) -> str:
        """How the run is called on the screen."""
        return f"{self.run} seed {self.seed}"

    @property
    def checkpoint(self) -> Path:
        """Where ``akd-train`` keeps the best student."""
        return RunFolder(self.output_dir).checkpoint

    def arguments(self) -> list[str]:
        """The arguments of ``akd-train``."""
        arguments = ["--config", str(self.config), "--seed", str(self.seed), "--device", self.device, *self.flags]
        arguments += ["--output_dir", str(self.output_dir)]
        if self.given is not None:
            arguments += ["-test_only"]
        for override in (*self.overrides, *self.places):
            arguments += ["--set", override]
        return arguments + self.model_arguments()

    def model_arguments(self) -> list[str]:
        """The arguments that say which models take part, beside the configuration."""
        if self.teacher is None:
            return []
        return ["--set", f"models.teacher_model.src_ckpt={self.teacher.checkpoint}"]

    def fingerprint(self) -> dict[str, Any]:
        """What the results depend on; equal fingerprints need no second run. The teacher must be there."""
        return {
            "config": sha256(self.config),
            "seed": self.seed,
            "device": self.device,
            "teacher": sha256(self.teacher.checkpoint) if self.teacher else None,
            "overrides": list(self.overrides),
            "given": sha256(self.given) if self.given else None,
        }

    def results(self) -> dict | None:
        """The content of ``results.json`` when it is complete and answers this job's question, else None."""
        try:
            results = tested(self.output_dir) if self.given else self._read("results.json")
            done = self._read(FINGERPRINT)
            current = self.checkpoint.is_file() and done == self.fingerprint()
        except (OSError, ValueError):
            return None
        if not current or not results.get("complete") or results.get("seed", self.seed) != self.seed:
            return None
        return results

    def goes_on(self) -> bool:
        """Whether ``akd-train`` finds a state of this very run and goes on from it."""
        try:
            state = json.loads(RunFolder(self.output_dir).state.read_text())
            return not state["complete"] and self._read(FINGERPRINT) == self.fingerprint()
        except (OSError, ValueError, KeyError):
            return False

    def _read(self, name: str) -> dict:
        return json.loads((self.output_dir / name).read_text())


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass(frozen=True)
class Options:
    """What a table is made with, beside the table itself.

    Args:
        seeds: students per row, seeds 0 to ``seeds - 1``.
        only: these runs and the teachers they need; None: every run that is no ablation.
        ablations: the ablations as well.
        device: as for ``akd-train``.
        data_dir: where the data is, or goes; None: where the configurations say.
        epochs_scale: share of every stage's epochs that is trained.
        teacher_ckpt: the teacher's checkpoint, which is then not trained.
    """

    seeds: int = 3
    only: tuple[str, ...] | None = None
    ablations: bool = False
    device: str = "cpu"
    data_dir: Path | None = None
    epochs_scale: float = 1.0
    teacher_ckpt: Path | None = None


def plan(experiment: Experiment, output_dir: Path, options: Options) -> list[Job]:
    """Return the jobs of a table, every teacher before its students, all methods with one seed before the next seed.

    Raises:
        ReproduceError: ``only`` names a run that the table does not have.
    """
    only = options.only or [name for name, run in experiment.runs.items() if options.ablations or not run.ablation]
    for name in only:
        if name not in experiment.runs:
            raise ReproduceError(f"--only: there is no run '{name}'; the runs are {', '.join(experiment.runs)}")
    teachers = {run.teacher for run in experiment.runs.values() if run.teacher}
    jobs: dict[tuple[str, int], Job] = {}

    def add(name: str, seed: int) -> Job:
        if (name, seed) not in jobs:
            run = experiment.runs[name]
            given = options.teacher_ckpt if name == "teacher" else None
            job = Job(
                run=name,
                seed=seed,
                config=config_dir() / experiment.folder / f"{name}.yaml",
                output_dir=output_dir / name / f"seed{seed}",
                teacher=add(run.teacher, TEACHER_SEED) if run.teacher else None,
                device=options.device,
                flags=("-student_only", "--channels_last") if experiment.data.whole_batches else ("-student_only",),
                overrides=() if given else tuple(_scaled(experiment, run, options.epochs_scale)),
                places=tuple(_places(experiment, run, output_dir, options)),
                given=given,
            )
            jobs[name, seed] = job
        return jobs[name, seed]

    for seed in range(options.seeds):
        for name in experiment.runs:
            if name in only and (name not in teachers or seed == TEACHER_SEED):
                add(name, seed)
    return list(jobs.values())


def _scaled(experiment: Experiment, run: Run, scale: float) -> Iterator[str]:
    """--set arguments that shorten every stage and its learning rate schedule alike."""
    if scale == 1:
        return
    for number, stage in enumerate(run.stages, start=1):
        place = "train" if len(run.stages) == 1 else f"train.stage{number}"
        epochs = max(1, round(scale * stage.epochs))
        yield f"{place}.num_epochs={epochs}"
        if milestones := experiment.milestones(stage, epochs):
            yield f"{place}.scheduler.kwargs.milestones={milestones}"


def _places(experiment: Experiment, run: Run, output_dir: Path, options: Options) -> Iterator[str]:
    data = experiment.data
    for split in ("train", "val") if data.whole_batches else ():
        if options.data_dir is not None:
            yield f"datasets.{data.id}/{split}.init.kwargs.root={options.data_dir}"
        if options.device.startswith("cuda"):
            yield f"datasets.{data.id}/{split}.init.kwargs.device={options.device}"
    if data.cached_teacher and run.teacher:
        place = "train" if len(run.stages) == 1 else "train.stage1"
        yield f"{place}.train_data_loader.dataset_wrapper.kwargs.cache_dir={output_dir / 'cache'}"


class Workers:
    """Runs jobs as ``akd-train`` processes, a few at a time, each after its teacher."""

    def __init__(self, jobs: list[Job], at_once: int, train: Sequence[str] = TRAIN):
        self._jobs, self._at_once, self._train = jobs, at_once, train
        self._processes: set[subprocess.Popen] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def run(self) -> dict[Job, dict]:
        """Return every job's results.

        Raises:
            ReproduceError: a run failed; those that were under way are ended.
        """
        results: dict[Job, dict] = {}
        waiting, running = list(self._jobs), dict[Future, Job]()
        pool = ThreadPoolExecutor(self._at_once)
        try:
            while waiting or running:
                # A teacher that is not among these jobs is there already: those from MNLI come after all others.
                under_way = {*waiting, *running.values()}
                ready = [job for job in waiting if job.teacher not in under_way]
                # No more than run now: in the plan's order a seed's students come before the next seed's.
                for job in ready[: self._at_once - len(running)]:
                    waiting.remove(job)
                    running[pool.submit(self._one, job)] = job
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    job = running.pop(future)
                    results[job], note = future.result()
                    best, last = results[job]["best"]["test_accuracy"], results[job]["last"]["test_accuracy"]
                    counter = f"[{len(results)}/{len(self._jobs)}]"
                    _say(f"{counter} {job.label}: best {_two(best)}, last {_two(last)} ({note})")
        finally:
            self._stop()
            pool.shutdown(cancel_futures=True)
        return results

    def _one(self, job: Job) -> tuple[dict, str]:
        results = job.results()
        if results is not None:
            return results, "was already done"
        _set_aside(job)
        if not job.goes_on():
            # A half-finished run of before must not pass for this one, nor be gone on with.
            there = RunFolder(job.output_dir)
            for path in (there.results, there.test, there.state):
                path.unlink(missing_ok=True)
            write_text(job.output_dir / FINGERPRINT, json.dumps(job.fingerprint(), indent=1) + "\n")
        if job.given is not None:
            adopt(job.given, job.checkpoint)
        _say(_typed(job))
        start = time.monotonic()
        with self._lock:
            if self._stopped:
                raise ReproduceError("stopped")
            process = subprocess.Popen(
                [*self._train, *job.arguments(), "--quiet"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": _threads()},
            )
            self._processes.add(process)
        output, _ = process.communicate()
        with self._lock:
            self._processes.discard(process)
        if process.returncode in (STOPPED, NOTHING_SAVED):
            raise Interrupted(f"{job.label} was stopped; start the same command again to go on where it was")
        if process.returncode != 0:
            said = "\n".join(output.strip().splitlines()[-5:])
            raise ReproduceError(
                f"{job.label} failed with exit code {process.returncode}; to see it again: {_typed(job)}\n{said}"
            )
        results = job.results()
        if results is None:
            raise ReproduceError(f"{job.label}: akd-train ended well, but {job.output_dir} holds no complete results")
        return results, f"{time.monotonic() - start:.0f} s"

    def _stop(self) -> None:
        with self._lock:
            self._stopped = True
            for process in self._processes:
                process.terminate()


def _threads() -> str:
    """Threads of a run; one where the user does not say otherwise, so that the numbers do not depend on --jobs."""
    return os.environ.get("OMP_NUM_THREADS", "1")


def _typed(job: Job) -> str:
    return f"OMP_NUM_THREADS={_threads()} akd-train {shlex.join(job.arguments())}"


def _set_aside(job: Job) -> None:
    """A finished run that answers another question (other epochs, device, teacher, YAML) is kept under another name."""
    try:
        finished = job._read("test.json" if job.given else "results.json").get("complete", True)
        finished = finished and job._read(FINGERPRINT) != job.fingerprint()
    except (OSError, ValueError):
        return
    if finished:
        folder = job.output_dir
        number = next(n for n in itertools.count(1) if not folder.with_name(f"{folder.name}.{n}").exists())
        kept = folder.rename(folder.with_name(f"{folder.name}.{number}"))
        _say(f"{job.label}: what is there was made otherwise; it is kept as {kept}")


def fetch(experiment: Experiment, options: Options) -> None:
    """Downloads what is missing, once: several runs that begin at the same time would write one file."""
    data = experiment.data
    if data.whole_batches:
        import torchvision

        root = str(options.data_dir or data.train["root"])
        try:
            getattr(torchvision.datasets, data.id.upper())(root, download=True)
        except Exception as error:
            raise ReproduceError(
                f"--data_dir: torchvision gets no {data.id} into '{root}': {one_sentence(error)}"
            ) from error


def _two(value: float | None) -> str:
    return "NaN" if value is None else f"{value:.2f}"


def _say(line: str) -> None:
    # print() writes text and newline apart, so two threads would mix their lines.
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def rows(experiment: Experiment, results: dict[Job, dict]) -> dict[str, report.Row]:
    """The rows of the table by run, in the table's order; runs without results are left out."""
    table = {}
    for name, run in experiment.runs.items():
        found = {job.seed: r for job, r in results.items() if job.run == name}
        if found:
            given = any(job.given for job in results if job.run == name)
            epochs = {len(r["epochs"]) for r in found.values()}
            table[name] = report.Row(
                title=f"{run.title} (given)" if given else run.title,
                parameters=experiment.networks[run.network].parameters,
                epochs=max(epochs),
                best={seed: r["best"]["test_accuracy"] for seed, r in found.items()},
                last={seed: r["last"]["test_accuracy"] for seed, r in found.items()},
                paper=run.paper,
            )
    return table


def write_table(experiment: Experiment, results: dict[Job, dict], output_dir: Path, epochs_scale: float = 1.0) -> str:
    """Write ``table.md``, ``table.png``, ``curves.png`` and ``table.json`` into ``output_dir``; return the Markdown."""
    baseline = experiment.runs[experiment.baseline].title
    summary = report.summarize(rows(experiment, results), experiment.baseline)
    versions = next((r["versions"] for r in results.values() if r["versions"]), {})
    note = report.footnote(
        baseline,
        best_on_test=experiment.data.val_is_test,
        epochs_scale=epochs_scale,
        paper=any(row["paper"] is not None for row in summary),
    )
    text = report.markdown(summary, baseline) + "\n" + note + "\n"
    about = ", ".join(f"{name} {version}" for name, version in versions.items())
    head = f"# akd-reproduce {experiment.name}\n\n{experiment.source[0].upper()}{experiment.source[1:]}.\n\n"
    write_text(output_dir / "table.md", f"{head}{text}\nMeasured with {about}.\n")
    commands = {job.label: ["akd-train", *job.arguments()] for job in results}
    data = {
        "experiment": experiment.name,
        "source": experiment.source,
        "epochs_scale": epochs_scale,
        "rows": summary,
        "versions": versions,
        "commands": commands,
    }
    write_text(output_dir / "table.json", json.dumps(data, indent=1) + "\n")
    teachers = {run.teacher for run in experiment.runs.values()}
    students = [row for row in summary if row["name"] not in teachers]
    lines = {row["title"]: row["best"]["mean"] for row in summary if row["name"] in teachers}
    if students:
        report.plot(students, output_dir / "table.png", f"akd-reproduce {experiment.name}", lines)
        curves = {
            row["title"]: [r["epochs"] for job, r in results.items() if job.run == row["name"]] for row in students
        }
        plot_curves(curves, output_dir / "curves.png", f"akd-reproduce {experiment.name}")
    return text


def parser() -> argparse.ArgumentParser:
    """The command line of ``akd-reproduce``."""
    p = argparse.ArgumentParser(prog="akd-reproduce", description="Trains every run of a results table and writes it.")
    names = [*sorted(configs.EXPERIMENTS), *sorted(GLUE)]
    p.add_argument("name", choices=names, help="which table; or figure2, figure3 (--help after it)")
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
        "--data_dir", type=Path, metavar="DIR", help="where torchvision finds or puts the data (default: ./data)"
    )
    p.add_argument("--teacher_ckpt", type=Path, metavar="FILE", help="use this teacher instead of training one")
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
    glue = p.add_argument_group("GLUE only")
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
    return p


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


def device_of(args: argparse.Namespace, default: str = "auto") -> str:
    """The device by name: the data may live there, and a run on another is another run."""
    device = args.device or default
    return pick_device(device).type if device == "auto" else device


def _options(args: argparse.Namespace) -> Options:
    if args.teacher_ckpt is not None and not args.teacher_ckpt.is_file():
        raise ReproduceError(f"--teacher_ckpt: there is no file '{args.teacher_ckpt}'")
    return Options(
        seeds=args.seeds,
        only=tuple(args.only) if args.only else None,
        ablations=args.ablations,
        device=device_of(args, "cpu" if args.name == "digits" else "auto"),
        data_dir=args.data_dir,
        epochs_scale=args.epochs_scale,
        teacher_ckpt=args.teacher_ckpt,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``akd-reproduce`` with the given arguments and return its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in FIGURES:
        return FIGURES[argv[0]](argv[1:])
    args = parser().parse_args(argv)
    shorter = "" if args.epochs_scale == 1 else f"-x{args.epochs_scale:g}"
    output_dir = args.output_dir or Path("runs") / f"{args.name}{shorter}"
    start = time.monotonic()
    try:
        for flag in _FOR_IMAGES if args.name in GLUE else _FOR_GLUE:
            if getattr(args, flag):
                kind = "images" if args.name in GLUE else "GLUE"
                raise ReproduceError(f"--{flag}: it is for the tables of {kind}, and {args.name} is none")
        if args.name in GLUE:
            from .glue_table import reproduce

            with _sigterm_as_ctrl_c():
                text = reproduce(args, output_dir, args.jobs or 1)
            print(f"\n{text}\n{output_dir / 'table.md'} and table.json written in {time.monotonic() - start:.0f} s")
            return 0
        experiment = configs.EXPERIMENTS[args.name]
        options = _options(args)
        jobs = plan(experiment, output_dir, options)
        fetch(experiment, options)
        with _sigterm_as_ctrl_c(), run_lock("akd-reproduce", "--output_dir", output_dir):
            Workers(jobs, args.jobs or (4 if options.device.startswith("cuda") else min(_cpus(), 8))).run()
            # The table holds what is there, so that --only adds rows and removes none.
            everything = plan(experiment, output_dir, replace(options, only=tuple(experiment.runs)))
            found = {job: results for job in everything if (results := job.results()) is not None}
            text = write_table(experiment, found, output_dir, options.epochs_scale)
    except Interrupted as error:
        print(f"akd-reproduce: {error}", file=sys.stderr)
        return 130
    except (ReproduceError, ConfigError, FileNotFoundError) as error:
        print(f"akd-reproduce: error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"akd-reproduce: error: {explain(error) or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("akd-reproduce: stopped; start it again to go on where it was", file=sys.stderr)
        return 130
    print(f"\n{text}\n{output_dir / 'table.md'}, table.png and table.json written in {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    from . import cli as reproduce  # glue_reproduce raises that module's errors, not __main__'s

    sys.exit(reproduce.main())
