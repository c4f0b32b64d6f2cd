"""The runs of a table: what each is, in which order they come, which are done already."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from akd_ext.train.run_folder import RunFolder
from akd_ext.train.system.errors import ConfigError, RunError
from akd_ext.train.tasks.text.glue import TASKS
from akd_ext.train.tasks.text.glue_files import find_file

from .experiments import Experiment, Row
from .pretrained_teacher import PretrainedTeacher, tested
from .recipes import cache, config_dir, content_sha256, scaled

# Checkpoint, results and log are akd-train's; this file tells which question they answer.
FINGERPRINT = "fingerprint.json"
# Teachers are trained once, with this seed: the table's spread is that of the students.
TEACHER_SEED = 0
FROM_MNLI = ("rte", "mrpc", "stsb")  # Table 4: "fine-tune RTE, MRPC and STS-B from trained MNLI student model"


class Interrupted(RunError):
    """A run was stopped and can go on."""


@dataclass(frozen=True)
class Job:
    """One run of the table, with one seed; for GLUE on one task."""

    run: str
    seed: int
    config: Path
    output_dir: Path
    teacher: Job | None
    device: str
    flags: tuple[str, ...] = ()  # of akd-train: how to run, not what
    overrides: tuple[str, ...] = ()  # --set: what differs from the file
    places: tuple[str, ...] = ()  # --set: where data and caches are
    pretrained: Path | None = None  # a checkpoint to use as it is
    task: str = ""
    model: str | None = None  # what is trained, in place of the file's
    buckets: bool = False
    glue_dir: Path | None = None
    start: Job | None = None  # the student whose encoder this one begins with

    @property
    def label(self) -> str:
        """How the run is called on the screen."""
        names = [self.run, self.task, f"seed {self.seed}", "from MNLI" if self.start else ""]
        return " ".join(name for name in names if name)

    @property
    def folder(self) -> RunFolder:
        """Where ``akd-train`` keeps what."""
        return RunFolder(self.output_dir)

    @property
    def checkpoint(self) -> Path:
        """The file with the best student's weights."""
        return self.folder.hf_weights if self.task else self.folder.checkpoint

    def arguments(self) -> list[str]:
        """The arguments of ``akd-train``."""
        arguments = ["--config", str(self.config), "--seed", str(self.seed), "--device", self.device, *self.flags]
        arguments += ["--output_dir", str(self.output_dir)]
        if self.pretrained is not None:
            arguments += ["-test_only"]
        for override in (*self.overrides, *self.places):
            arguments += ["--set", override]
        if self.teacher is not None and self.task:
            arguments += ["--teacher", str(self.teacher.folder.hf_folder)]
        elif self.teacher is not None:
            arguments += ["--set", f"models.teacher_model.src_ckpt={self.teacher.checkpoint}"]
        if self.start is not None or self.model is not None:
            arguments += ["--student", str(self.start.folder.hf_folder) if self.start else self.model]
        return arguments + (["--length_buckets"] if self.buckets else [])

    def fingerprint(self) -> dict[str, Any]:
        """What the results depend on; equal fingerprints need no second run. The teacher must be there."""
        found = {
            "config": content_sha256(self.config),
            "seed": self.seed,
            "device": self.device,
            "teacher": sha256(self.teacher.checkpoint) if self.teacher else None,
            "overrides": list(self.overrides),
            "given": sha256(self.pretrained) if self.pretrained else None,
        }
        if self.task:
            start = sha256(self.start.checkpoint) if self.start else None
            data = data_sha256(self.glue_dir, self.task) if self.glue_dir else None
            found |= {"model": self.model, "buckets": self.buckets, "start": start, "data": data}
        return found

    def results(self) -> dict | None:
        """The content of ``results.json`` when it is complete and answers this job's question, else None."""
        try:
            results = tested(self.folder.test) if self.pretrained else read(self.folder.results)
            current = self.checkpoint.is_file() and self._asked() == self.fingerprint()
        except (OSError, ValueError):
            return None
        if not current or not results.get("complete") or results.get("seed", self.seed) != self.seed:
            return None
        return results

    def can_resume(self) -> bool:
        """Whether ``akd-train`` finds a state of this very run and goes on from it."""
        try:
            return not read(self.folder.state)["complete"] and self._asked() == self.fingerprint()
        except (OSError, ValueError, KeyError):
            return False

    def archive_outdated(self) -> Path | None:
        """Keep a finished run that answers another question (other epochs, device, teacher, recipe) under another name.

        Returns:
            The name, or None where there is no such run.
        """
        try:
            finished = read(self.folder.test if self.pretrained else self.folder.results).get("complete", True)
            finished = finished and self._asked() != self.fingerprint()
        except (OSError, ValueError):
            return None
        if not finished:
            return None
        folder = self.output_dir
        number = next(n for n in itertools.count(1) if not folder.with_name(f"{folder.name}.{n}").exists())
        return folder.rename(folder.with_name(f"{folder.name}.{number}"))

    def _asked(self) -> dict:
        """The fingerprint of what is in the folder."""
        return read(self.output_dir / FINGERPRINT)


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@functools.cache
def data_sha256(glue_dir: Path, task: str) -> dict[str, str] | None:
    """What a task's files hold: the same path may be a part of the data today and all of it tomorrow."""
    splits = [split for split, _ in TASKS[task].splits if not split.startswith("test")]
    try:
        return {split: sha256(find_file(glue_dir, TASKS[task], split)) for split in splits}
    except ConfigError:  # another folder than the run's
        return None


@dataclass(frozen=True)
class Options:
    """What a table is made with, beside the table itself.

    Args:
        seeds: students per row, seeds 0 to ``seeds - 1``.
        only: these rows and the teachers they need; None: every row that is no ablation.
        ablations: the ablations as well.
        device: as for ``akd-train``.
        epochs_scale: share of every stage's epochs that is trained.
        data_dir: of images: where the data is, or goes; None: where the recipes say.
        pretrained: of images: the teacher, which is then not trained.
        tasks, glue_dir, models, student_layers, lr, length_buckets: of GLUE: as the flags of ``akd-reproduce``; models
            by role.
    """

    seeds: int = 3
    only: tuple[str, ...] | None = None
    ablations: bool = False
    device: str = "cpu"
    epochs_scale: float = 1.0
    data_dir: Path | None = None
    pretrained: PretrainedTeacher | None = None
    tasks: tuple[str, ...] | None = None
    glue_dir: Path | None = None
    models: dict[str, str | None] = field(default_factory=dict)
    student_layers: list[int] | None = None
    lr: float | None = None
    length_buckets: bool = False


def plan(experiment: Experiment, output_dir: Path, options: Options) -> list[Job]:
    """Return the jobs of a table, every teacher before its students, all methods with one seed before the next seed.

    Raises:
        ConfigError: ``only`` or ``tasks`` names what the table does not have.
    """
    rows, tasks = experiment.rows, options.tasks or experiment.tasks
    only = options.only or [name for name, row in rows.items() if options.ablations or not row.ablation]
    _check_names("--tasks", "task", tasks, experiment.tasks)
    _check_names("--only", "run", only, rows)
    specifics = _text if experiment.is_text else _images
    jobs: dict[tuple[str, str, int], Job] = {}

    def add(name: str, task: str, seed: int) -> Job:
        if (name, task, seed) not in jobs:
            row = rows[name]
            job = Job(
                run=name,
                seed=seed,
                config=config_dir() / experiment.folder / f"{row.recipe}.yaml",
                output_dir=output_dir.joinpath(name, task, f"seed{seed}"),
                teacher=add(row.teacher, task, TEACHER_SEED) if row.teacher else None,
                device=options.device,
                task=task,
                overrides=(*row.overrides, *row.by_task.get(task, ())),
                places=tuple(cache(experiment, row, output_dir)),
            )
            if not (options.pretrained and name == "teacher"):
                job = replace(job, overrides=(*job.overrides, *scaled(job.config, job.overrides, options.epochs_scale)))
            jobs[name, task, seed] = specifics(experiment, row, options, job)
        return jobs[name, task, seed]

    for seed, task, name in itertools.product(range(options.seeds), tasks, rows):
        if name in only and (name not in experiment.teachers or seed == TEACHER_SEED):
            add(name, task, seed)
    return list(jobs.values())


def _check_names(flag: str, what: str, names, known) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(f"{flag}: there is no {what} '{name}'; the {what}s are {', '.join(known)}")


def _images(experiment: Experiment, row: Row, options: Options, job: Job) -> Job:
    flags, places, pretrained = ("-student_only",), [], options.pretrained
    if experiment.dataset.startswith("cifar"):
        flags += ("--channels_last",)
        for split in ("train", "val"):
            kwargs = f"datasets.{experiment.dataset}/{split}.init.kwargs"
            if options.data_dir is not None:
                places.append(f"{kwargs}.root={options.data_dir}")
            if options.device.startswith("cuda"):
                places.append(f"{kwargs}.device={options.device}")
    job = replace(job, flags=flags, places=(*places, *job.places))
    if pretrained is None:
        return job
    more = pretrained.inputs(experiment.dataset)
    if job.run == "teacher":
        more += pretrained.network(row.model)
    elif row.teacher == "teacher":
        more += pretrained.network("teacher_model")
    return replace(job, overrides=(*job.overrides, *more), pretrained=pretrained.path if job.run == "teacher" else None)


def _text(experiment: Experiment, row: Row, options: Options, job: Job) -> Job:
    more = []
    if options.lr is not None:
        more += [f"{stage}.optimizer.kwargs.lr={options.lr!r}" for stage in row.stages]
    if row.role == "student" and options.student_layers:
        more.append(f"models.{row.model}.student_init={{layers: {options.student_layers}}}")
    return replace(
        job,
        flags=("-student_only", *(("--glue_dir", str(options.glue_dir)) if options.glue_dir else ())),
        model=options.models.get(row.role),
        buckets=options.length_buckets,
        glue_dir=options.glue_dir,
        overrides=(*job.overrides, *more),
    )


def results_of(jobs: list[Job]) -> dict[Job, dict]:
    """The results that are there."""
    return {job: results for job in jobs if (results := job.results()) is not None}
