"""``akd-reproduce glue-distilroberta`` and ``glue-bert-small``: Tables 3, 5, 9 and 10, and the files for Table 4.

The planning and the table; the runs themselves are `reproduce.Workers`'.
"""

from __future__ import annotations

import functools
import json
import math
import statistics
from argparse import Namespace
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from akd_ext.filesystem import write_text
from akd_ext.train.run_folder import RunFolder, run_lock
from akd_ext.train.system.errors import ConfigError
from akd_ext.train.tasks.text.glue import PAPER_TASKS, TASKS
from akd_ext.train.tasks.text.glue_files import find_file
from akd_ext.train.tasks.text.models import looks_local
from akd_ext.train.tasks.text.predictions import collect

from . import glue_configs
from .cli import TEACHER_SEED, Job, ReproduceError, Workers, device_of, sha256
from .glue_configs import FAMILIES, METHODS, NAMES, Family
from .glue_paper import PAPER, Value, score
from .paths import config_dir
from .report import aligned, mean_and_std

TITLES = {
    "teacher": "teacher",
    "ta": "teacher assistant",
    "scratch": "scratch",
    "kd": "KD",
    "takd": "TAKD",
    "annealing_kd": "Annealing-KD",
    "annealing_kd_kl": "Annealing-KD, KL",
    "annealing_kd_tuned": "Annealing-KD, tuned tau_max",
}
_ABLATIONS = ("annealing_kd_kl", "annealing_kd_tuned")
FROM_MNLI = ("rte", "mrpc", "stsb")  # Table 4: "fine-tune RTE, MRPC and STS-B from trained MNLI student model"


@dataclass(frozen=True)
class GlueJob(Job):
    """One method on one task with one seed."""

    task: str = ""
    model: str | None = None  # what is trained, in place of the file's
    buckets: bool = False
    glue_dir: Path | None = None
    start: GlueJob | None = None  # the student whose encoder this one begins with

    @property
    def label(self) -> str:
        return f"{self.run} {self.task} seed {self.seed}" + (" from MNLI" if self.start else "")

    @property
    def folder(self) -> Path:
        """The best student, as Hugging Face reads it."""
        return RunFolder(self.output_dir).hf_folder

    @property
    def checkpoint(self) -> Path:
        return RunFolder(self.output_dir).hf_weights

    def model_arguments(self) -> list[str]:
        arguments = ["--teacher", str(self.teacher.folder)] if self.teacher is not None else []
        if self.start is not None or self.model is not None:
            arguments += ["--student", str(self.start.folder) if self.start else self.model]
        return arguments + (["--length_buckets"] if self.buckets else [])

    def fingerprint(self) -> dict[str, Any]:
        start = sha256(self.start.checkpoint) if self.start else None
        data = _data(self.glue_dir, self.task) if self.glue_dir else None
        return {**super().fingerprint(), "model": self.model, "buckets": self.buckets, "start": start, "data": data}


@functools.cache
def _data(glue_dir: Path, task: str) -> dict[str, str] | None:
    """What a task's files hold: the same path may be a part of the data today and all of it tomorrow."""
    try:
        return {
            split: sha256(find_file(glue_dir, TASKS[task], split))
            for split, _ in TASKS[task].splits
            if not split.startswith("test")
        }
    except ConfigError:  # another folder than the run's
        return None


def plan(family: Family, output_dir: Path, args: Namespace) -> list[GlueJob]:
    """The runs of a table, every teacher before its students.

    Raises:
        ReproduceError: a method or a task that is not there.
    """
    tasks = args.tasks or list(PAPER_TASKS)
    for task in tasks:
        if task not in PAPER_TASKS:
            raise ReproduceError(f"--tasks: there is no task '{task}'; the tasks are {', '.join(PAPER_TASKS)}")
    methods = args.only or [m for m in family.methods if args.ablations or m not in _ABLATIONS]
    for method in methods:
        if method not in family.methods:
            raise ReproduceError(f"--only: there is no run '{method}'; the runs are {', '.join(family.methods)}")
    jobs: dict[tuple, GlueJob] = {}

    def add(method: str, task: str, seed: int) -> GlueJob:
        if (method, task, seed) not in jobs:
            _, role, teacher = METHODS[method]
            jobs[method, task, seed] = GlueJob(
                run=method,
                task=task,
                seed=seed,
                config=config_dir() / "glue" / family.name / method / f"{task}.yaml",
                output_dir=output_dir / method / task / f"seed{seed}",
                teacher=add(teacher, task, TEACHER_SEED) if teacher else None,
                device=device_of(args),
                flags=("-student_only", *(("--glue_dir", str(args.glue_dir)) if args.glue_dir else ())),
                model={"teacher": args.teacher, "ta": args.ta, "student": args.student}[role],
                buckets=args.length_buckets,
                glue_dir=args.glue_dir,
                places=_cache(method, output_dir),
                overrides=(
                    *_scaled(family, method, task, args.epochs_scale),
                    *_learning_rate(family, method, task, args.lr),
                    *_layers(args, role, bool(teacher)),
                ),
            )
        return jobs[method, task, seed]

    for seed in range(args.seeds):
        for task in tasks:
            for method in methods:
                if method not in ("teacher", "ta") or seed == TEACHER_SEED:
                    add(method, task, seed)
    return list(jobs.values())


def plan_submission(jobs: Iterable[GlueJob]) -> list[GlueJob]:
    """Table 4's runs: students of RTE, MRPC and STS-B that start from the MNLI student of the same method and seed."""
    jobs = list(jobs)
    mnli = {(job.run, job.seed): job for job in jobs if job.task == "mnli"}
    return [
        replace(
            job,
            output_dir=job.output_dir.parent / f"from_mnli_seed{job.seed}",
            start=mnli[job.run, job.seed],
            # Another number of classes: the head is a new one. The layers are taken already.
            overrides=(
                *(item for item in job.overrides if ".student_init=" not in item),
                f"models.{'student_model' if job.teacher else 'model'}.model_kwargs.ignore_mismatched_sizes=true",
            ),
        )
        for job in jobs
        if job.task in FROM_MNLI and (job.run, job.seed) in mnli and job.run not in ("teacher", "ta")
    ]


def _layers(args: Namespace, role: str, has_teacher: bool) -> tuple[str, ...]:
    if role != "student" or not args.student_layers:
        return ()
    model = "student_model" if has_teacher else "model"
    return (f"models.{model}.student_init={{layers: {args.student_layers}}}",)


def _cache(method: str, output_dir: Path) -> tuple[str, ...]:
    """Where the teacher's logits are: one pass serves every method and seed."""
    if METHODS[method][2] is None:
        return ()
    stage = "train.stage1" if method.startswith("annealing") else "train"
    return (f"{stage}.train_data_loader.dataset_wrapper.kwargs.cache_dir={output_dir / 'teacher_logits'}",)


def _scaled(family: Family, method: str, task: str, scale: float) -> tuple[str, ...]:
    """--set arguments that shorten every stage; its learning rate follows by itself."""
    if scale == 1:
        return ()
    stages = glue_configs.epochs(family, method, task)
    return tuple(f"{place}.num_epochs={max(1, round(scale * epochs))}" for place, epochs in stages.items())


def _learning_rate(family: Family, method: str, task: str, lr: float | None) -> tuple[str, ...]:
    """--set arguments that replace the tables' learning rate in every stage."""
    if lr is None:
        return ()
    return tuple(f"{place}.optimizer.kwargs.lr={lr!r}" for place in glue_configs.epochs(family, method, task))


def summarize(family: Family, results: dict[GlueJob, dict]) -> list[dict[str, Any]]:
    """A row per method: for each task the metrics of every seed's best epoch, their mean, and two mean scores."""
    rows = []
    for method in family.methods:
        found: dict[str, dict[str, dict[str, float]]] = {}
        for job, result in results.items():
            if job.run == method and job.start is None:
                found.setdefault(job.task, {})[str(job.seed)] = result["best"]["test_metrics"]
        if not found:
            continue
        tasks = {task: _task(task, found[task]) for task in PAPER_TASKS if task in found}
        rows.append(
            {
                "name": method,
                "title": TITLES[method],
                "tasks": tasks,
                "score": score({task: tuple(cell["mean"]) for task, cell in tasks.items()}),
                "glue_score": statistics.fmean(cell["glue"] for cell in tasks.values()),
                "paper": PAPER[family.name].get(method),
            }
        )
    return rows


def _task(task: str, by_seed: dict[str, dict[str, float]]) -> dict[str, Any]:
    """``mean``, ``std``: of the metric the paper reports, for MNLI matched and mismatched; ``glue``: the mean of all.

    A correlation that is not a number, because a student says the same of everything, counts as 0.
    """
    first = TASKS[task].metrics[0]
    names = [first, f"{first}_mismatched"] if task == "mnli" else [first]
    spread = [mean_and_std([metrics[name] or 0.0 for metrics in by_seed.values()]) for name in names]
    everything = [statistics.fmean(value or 0.0 for value in metrics.values()) for metrics in by_seed.values()]
    return {
        "mean": [s["mean"] for s in spread],
        "std": [s["std"] for s in spread],
        "glue": statistics.fmean(everything),
        "seeds": by_seed,
    }


def markdown(rows: list[dict[str, Any]], family: Family) -> str:
    """The table, with the paper's row below ours; the paper's score is over the same tasks."""
    tasks = [task for task in PAPER_TASKS if any(task in row["tasks"] for row in rows)]
    lines = [["method", *(TASKS[task].folder for task in tasks), "score", "GLUE score"]]
    for row in rows:
        cells = [_cell(row["tasks"].get(task)) for task in tasks]
        # A mean over fewer tasks than the other rows' would pass for comparable.
        scores = [f"{row[name]:.2f}" if all(cells) else "" for name in ("score", "glue_score")]
        lines.append([row["title"], *cells, *scores])
        if row["paper"] is not None:
            paper = {task: row["paper"][task] for task in tasks}
            lines.append(["*paper*", *(_paper(value) for value in paper.values()), f"{score(paper):.2f}", ""])
    return aligned(lines)


def _cell(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return ""
    return " / ".join(
        f"{mean:.2f}" + (f" ± {std:.2f}" if std is not None else "")
        for mean, std in zip(cell["mean"], cell["std"], strict=True)
    )


def _paper(value: Value) -> str:
    return " / ".join(f"{v:.2f}" for v in (value if isinstance(value, tuple) else (value,)))


def _seeds(rows: list[dict[str, Any]]) -> str:
    counts = {
        len(cell["seeds"]) for row in rows if row["name"] not in ("teacher", "ta") for cell in row["tasks"].values()
    }
    few, many = min(counts, default=1), max(counts, default=1)
    return f"{few} to {many} seeds" if few < many else f"{many} seed{'s' if many > 1 else ''}"


def footnote(seeds: str, epochs_scale: float, replaced: dict[str, str], lr: float | None = None) -> str:
    """What the columns mean, and what was not done as in the paper."""
    text = (
        f"On the dev sets, in per cent, mean ± sample standard deviation over {seeds}; teachers have one. CoLA: Matthews "
        "correlation, MRPC: F1, STS-B: Pearson, MNLI: matched / mismatched, else accuracy. The best epoch, of either stage, "
        "is chosen on the same data, as in the paper. *score*: the mean over the tasks of the table; *GLUE score*: as the "
        "leaderboard has it, with all metrics of a task averaged first."
    )
    if epochs_scale != 1:
        text += f"\n\n**Shortened protocol: every stage has {epochs_scale:g} of its epochs.**"
    if lr is not None:
        text += f"\n\n**Every run has the learning rate {lr:g}, not the paper's.**"
    if replaced:
        text += f"\n\n**Other models than the paper's: {', '.join(f'{k} {v}' for k, v in replaced.items())}.**"
    return text


_SECONDS = "An epoch's seconds include the dev set and, where the teacher's logits were not there yet, its one pass."


def seconds_per_epoch(results: dict[GlueJob, dict]) -> str:
    """A Markdown table: what an epoch took, the mean over epochs and seeds."""
    found: dict[str, dict[str, list[float]]] = {}
    for job, result in results.items():
        found.setdefault(job.run, {}).setdefault(job.task, []).extend(e["seconds"] for e in result["epochs"])
    tasks = [task for task in PAPER_TASKS if any(task in row for row in found.values())]
    lines = [["seconds per epoch", *(TASKS[task].folder for task in tasks)]]
    for method in TITLES:
        if method in found:
            cells = (found[method].get(task) for task in tasks)
            lines.append([TITLES[method], *(f"{statistics.fmean(cell):.1f}" if cell else "" for cell in cells)])
    return aligned(lines)


def write_table(family: Family, name: str, results: dict[GlueJob, dict], output_dir: Path, args: Namespace) -> str:
    """Write ``table.md`` and ``table.json`` into ``output_dir``; return the Markdown."""
    rows = summarize(family, results)
    replaced = {k: v for k in ("teacher", "ta", "student", "student_layers") if (v := getattr(args, k))}
    text = markdown(rows, family) + "\n" + footnote(_seeds(rows), args.epochs_scale, replaced, args.lr) + "\n"
    versions = next((r["versions"] for r in results.values() if r["versions"]), {})
    about = ", ".join(f"{package} {version}" for package, version in versions.items())
    write_text(
        output_dir / "table.md",
        f"# akd-reproduce {name}\n\n{text}\n{seconds_per_epoch(results)}\n{_SECONDS}\n\nMeasured with {about}.\n",
    )
    commands = {job.label: ["akd-train", *job.arguments()] for job in results}
    seconds = {job.label: statistics.fmean(e["seconds"] for e in r["epochs"]) for job, r in results.items()}
    data = {"experiment": name, "epochs_scale": args.epochs_scale, "lr": args.lr, "replaced": replaced, "rows": rows,
            "seconds_per_epoch": seconds, "versions": versions, "commands": commands}  # fmt: skip
    write_text(output_dir / "table.json", json.dumps(data, indent=1) + "\n")
    return text


def reproduce(args: Namespace, output_dir: Path, at_once: int) -> str:
    """Train what the arguments ask for and return the table."""
    family = FAMILIES[NAMES[args.name]]
    jobs = plan(family, output_dir, args)
    _check_models(args)
    if args.submission is not None:
        _check_submission(jobs, args.submission)
    if args.glue_dir is not None:
        for task in {job.task for job in jobs}:  # now, not after hours of another task
            for split, _ in TASKS[task].splits:
                if args.submission is not None or not split.startswith("test"):
                    find_file(args.glue_dir, TASKS[task], split)
        if args.submission is not None and any(job.task == "mnli" for job in jobs):
            find_file(args.glue_dir, TASKS["ax"], "test")  # MNLI's students answer it
    with run_lock("akd-reproduce", "--output_dir", output_dir):
        Workers(jobs, at_once).run()
        # The table holds what is there, so that --only and --tasks add to it and remove nothing.
        everything = plan(family, output_dir, Namespace(**{**vars(args), "only": list(family.methods), "tasks": None}))
        found = {job: results for job in everything if (results := job.results()) is not None}
        text = write_table(family, args.name, found, output_dir, args)
        if args.submission is not None:
            more = plan_submission(jobs)
            Workers(more, at_once).run()
            students = [job for job in (*jobs, *more) if job.run not in ("teacher", "ta")]
            for line in collect(_best_seeds(students), args.submission, _predict(args)):
                print(line)
    return text


def _check_models(args: Namespace) -> None:
    """Before hours of another run: folders, and the layers of a student in one."""
    for flag in ("teacher", "ta", "student"):
        name = getattr(args, flag)
        if name and looks_local(name) and not Path(name).expanduser().is_dir():
            raise ReproduceError(f"--{flag}: there is no folder '{name}'")
    config = Path(args.student or "").expanduser() / "config.json"
    if args.student and args.student_layers and config.is_file():
        layers = json.loads(config.read_text()).get("num_hidden_layers", math.inf)
        if not all(0 <= layer < layers for layer in args.student_layers):
            raise ReproduceError(
                f"--student_layers {args.student_layers}: '{args.student}' has layers 0 to {layers - 1}"
            )


def _check_submission(jobs: list[GlueJob], folder: Path) -> None:
    students = {job.task for job in jobs if job.run not in ("teacher", "ta")}
    if not students:
        raise ReproduceError("--submission: students answer, and --only names none")
    after = [task for task in FROM_MNLI if task in students]
    if after and "mnli" not in students:
        raise ReproduceError(
            f"--submission: {', '.join(after)} start from the MNLI student, as in Table 4; add mnli to --tasks"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReproduceError(f"--submission: '{folder}' cannot be written to: {error.strerror}") from error


def _best_seeds(jobs: list[GlueJob]) -> dict[str, dict[str, GlueJob]]:
    """{method: {task: the job whose dev metric is best}}; those from MNLI replace those from the pretrained model."""
    chosen: dict[str, dict[str, GlueJob]] = {}
    value = {job: job.results()["best"]["test_accuracy"] or 0.0 for job in jobs}
    for job in sorted(jobs, key=lambda job: (job.start is not None, value[job])):
        chosen.setdefault(job.run, {})[job.task] = job
    return chosen


def _predict(args: Namespace):
    from akd_ext.train.cli import NOTHING_SAVED, main

    def predict(job: GlueJob, folder: Path) -> None:
        code = main([*job.arguments(), "-test_only", "--private_output", str(folder), "--quiet"])
        if code == NOTHING_SAVED:
            raise KeyboardInterrupt
        if code:
            raise ReproduceError(f"{job.label}: its predictions could not be written")

    return predict
