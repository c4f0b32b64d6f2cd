"""The files for GLUE's leaderboard: Table 4 of the paper."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from akd_ext.train.system.errors import ConfigError, RunError
from akd_ext.train.tasks.text.predictions import collect

from .jobs import FROM_MNLI, Job

_TEACHERS = ("teacher", "ta")


def plan_submission(jobs: Iterable[Job]) -> list[Job]:
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
        if job.task in FROM_MNLI and (job.run, job.seed) in mnli and job.run not in _TEACHERS
    ]


def check(jobs: list[Job], folder: Path) -> None:
    students = {job.task for job in jobs if job.run not in _TEACHERS}
    if not students:
        raise ConfigError("--submission: students answer, and --only names none")
    after = [task for task in FROM_MNLI if task in students]
    if after and "mnli" not in students:
        raise ConfigError(
            f"--submission: {', '.join(after)} start from the MNLI student, as in Table 4; add mnli to --tasks"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--submission: '{folder}' cannot be written to: {error.strerror}") from error


def _best_seeds(jobs: list[Job]) -> dict[str, dict[str, Job]]:
    """{method: {task: the job whose dev metric is best}}; those from MNLI replace those from the pretrained model."""
    chosen: dict[str, dict[str, Job]] = {}
    value = {job: job.results()["best"]["test_accuracy"] or 0.0 for job in jobs}
    for job in sorted(jobs, key=lambda job: (job.start is not None, value[job])):
        chosen.setdefault(job.run, {})[job.task] = job
    return chosen


def _predict(job: Job, folder: Path) -> None:
    from akd_ext.train.cli import NOTHING_SAVED, main

    code = main([*job.arguments(), "-test_only", "--private_output", str(folder), "--quiet"])
    if code == NOTHING_SAVED:
        raise KeyboardInterrupt
    if code:
        raise RunError(f"{job.label}: its predictions could not be written")


def write(jobs: list[Job], folder: Path) -> list[str]:
    """Let the best seed of each student answer the test sets; say what was written and what is missing."""
    students = [job for job in jobs if job.run not in _TEACHERS]
    return collect(_best_seeds(students), folder, _predict)
