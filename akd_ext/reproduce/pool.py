"""Runs the jobs of a table as ``akd-train`` processes, a few at a time, each after its teacher."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

import akd_ext
from akd_ext.filesystem import write_text
from akd_ext.train.cli import NOTHING_SAVED, STOPPED
from akd_ext.train.system.errors import RunError

from .jobs import FINGERPRINT, Interrupted, Job
from .pretrained_teacher import import_checkpoint
from .status import StatusLine, format_accuracy


def command_of(module: str) -> tuple[str, ...]:
    """What runs a module's ``main``, also where no script is on the PATH.

    Not `python -m`: that looks into the current folder first, and in a clone would run the source tree, which has no
    kernels, instead of the akd_ext that runs here.
    """
    home = str(Path(akd_ext.__file__).parents[1])
    script = f"import sys; sys.path[0] = {home!r}; from {module} import main; sys.exit(main(sys.argv[1:]))"
    return sys.executable, "-c", script


TRAIN = command_of("akd_ext.train.cli")
COMMANDS = "commands.log"  # every command, as it would be typed


class JobPool:
    """Runs jobs and shows how far they are.

    Args:
        jobs: in the order in which they may start.
        at_once: how many run at a time.
        log: the file that every command is appended to.
        verbose: print the commands as well.
        train: what starts ``akd-train``; None: `TRAIN`.
    """

    def __init__(
        self, jobs: list[Job], at_once: int, log: Path, verbose: bool = False, train: Sequence[str] | None = None
    ):
        self._jobs, self._at_once, self._train = jobs, at_once, train or TRAIN
        self._log, self._verbose = log, verbose
        self._status = StatusLine(jobs, at_once)
        self._processes: set[subprocess.Popen] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def run(self) -> dict[Job, dict]:
        """Return every job's results.

        Raises:
            RunError: a run failed; those that were under way are ended.
            Interrupted: a run was stopped and can go on.
        """
        results: dict[Job, dict] = {}
        waiting, running = list(self._jobs), dict[Future, Job]()
        threads = ThreadPoolExecutor(self._at_once)
        try:
            while waiting or running:
                # A teacher that is not among these jobs is there already: those from MNLI come after all others.
                under_way = {*waiting, *running.values()}
                ready = [job for job in waiting if job.teacher not in under_way]
                # No more than run now: in the plan's order a seed's students come before the next seed's.
                for job in ready[: self._at_once - len(running)]:
                    waiting.remove(job)
                    running[threads.submit(self._one, job)] = job
                finished, _ = wait(running, timeout=1, return_when=FIRST_COMPLETED)
                for future in finished:
                    job = running.pop(future)
                    results[job], seconds = future.result()
                    self._say_result(job, results[job], seconds)
                self._status.update(running.values())
        finally:
            self._stop()
            threads.shutdown(cancel_futures=True)
            self._status.close()
        return results

    def _say_result(self, job: Job, results: dict, seconds: float | None) -> None:
        best, last = (format_accuracy(results[which]["test_accuracy"]) for which in ("best", "last"))
        self._status.finished(job, seconds)
        note = "was already done" if seconds is None else f"{seconds:.0f} s"
        self._status.print_line(f"{self._status.counter} {job.label}: best {best}, last {last} ({note})")

    def _one(self, job: Job) -> tuple[dict, float | None]:
        """Its results, and how long it took; None: it was done already."""
        results = job.results()
        if results is not None:
            return results, None
        self._prepare(job)
        start = time.monotonic()
        code, output = self._finish(self._start(job))
        if code in (STOPPED, NOTHING_SAVED):
            raise Interrupted(f"{job.label} was stopped; start the same command again to go on where it was")
        if code != 0:
            said = "\n".join(output.strip().splitlines()[-5:])
            raise RunError(f"{job.label} failed with exit code {code}; to see it again: {shell_command(job)}\n{said}")
        results = job.results()
        if results is None:
            raise RunError(f"{job.label}: akd-train ended well, but {job.output_dir} holds no complete results")
        return results, time.monotonic() - start

    def _prepare(self, job: Job) -> None:
        """Bring a run's folder into the state in which ``akd-train`` finds nothing that misleads it."""
        kept = job.archive_outdated()
        if kept is not None:
            self._status.print_line(f"{job.label}: what is there was made otherwise; it is kept as {kept}")
        if not job.can_resume():
            # A half-finished run of before must not pass for this one, nor be gone on with.
            for path in (job.folder.results, job.folder.test, job.folder.state):
                path.unlink(missing_ok=True)
            write_text(job.output_dir / FINGERPRINT, json.dumps(job.fingerprint(), indent=1) + "\n")
        if job.pretrained is not None:
            import_checkpoint(job.pretrained, job.checkpoint)

    def _start(self, job: Job) -> subprocess.Popen:
        command = shell_command(job)
        if self._verbose:
            self._status.print_line(command)
        with self._lock:
            if self._stopped:
                raise RunError("stopped")
            with open(self._log, "a", encoding="utf-8") as log:
                log.write(f"{command}\n")
            process = subprocess.Popen(
                [*self._train, *job.arguments(), "--quiet"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": _threads()},
            )
            self._processes.add(process)
        return process

    def _finish(self, process: subprocess.Popen) -> tuple[int, str]:
        output, _ = process.communicate()
        with self._lock:
            self._processes.discard(process)
        return process.returncode, output

    def _stop(self) -> None:
        with self._lock:
            self._stopped = True
            for process in self._processes:
                process.terminate()


def _threads() -> str:
    """Threads of a run; one where the user does not say otherwise, so that the numbers do not depend on --jobs."""
    return os.environ.get("OMP_NUM_THREADS", "1")


def shell_command(job: Job) -> str:
    """A run as one would type it."""
    return f"OMP_NUM_THREADS={_threads()} akd-train {shlex.join(job.arguments())}"
