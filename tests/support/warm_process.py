"""akd-train in processes that may be killed, from one that has imported everything: a start costs a fork.

Run as a script it is that process. It has one thread, so that a fork is safe; it reads a line of JSON for each run.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from places import ROOT, SUPPORT


class Warm:
    """Starts runs: ``with Warm(folder) as warm: warm.run(["--config", ...])``. Their output is in ``folder / "log"``."""

    def __init__(self, folder: Path):
        self._folder = folder

    def __enter__(self) -> Warm:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{SUPPORT}{os.pathsep}{ROOT}"}
        self._process = subprocess.Popen([sys.executable, __file__, str(self._folder / "log")], text=True,
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)  # fmt: skip
        return self

    def __exit__(self, *error) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()

    def run(self, arguments: list[str], **trap) -> int:
        """The exit code of akd-train, or minus the signal that ended it. ``trap``: see `set_trap`."""
        self._process.stdin.write(json.dumps([arguments, trap]) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def log(self) -> str:
        """What the last run wrote to the console."""
        return (self._folder / "log").read_text()


def set_trap(place: str, number: int = 0, counted: str | None = None) -> None:
    """Arranges for this process to be killed, by a real SIGKILL, or to get another signal.

    place:
        "call": at the ``number``-th call of any function, Python's or C's, since training began. With ``counted`` the
        number of such calls is written into that file and nobody is killed.
        "half a state": the ``number``-th file of tensors is half written.
        "before the head": all files of the ``number``-th state are there, but not yet the one that makes it count.
        "stage boundary": stage 2 is entered, and its state not yet saved.
        "step": after the ``number``-th step.
        "signals to all": after the ``number``-th step SIGINT and SIGTERM to this process and its workers.
    """
    from akd_ext.train import trainer as run
    from akd_ext.train.checkpoint import checkpointer as resume
    from akd_ext.train.checkpoint import state_file as saved_state

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    times = 0

    def due() -> bool:
        nonlocal times
        times += 1
        return times == number

    def before(owner, name: str, action) -> None:
        function = getattr(owner, name)

        def wrapped(*args, **kwargs):
            action(*args, **kwargs)
            return function(*args, **kwargs)

        setattr(owner, name, wrapped)

    if place == "call":
        fit = run.Trainer.fit

        def watched(*args, **kwargs):
            calls = 0

            def profile(frame, event, argument):
                nonlocal calls
                if event in ("call", "c_call"):
                    calls += 1
                    if counted is None and calls == number:
                        kill()

            sys.setprofile(profile)
            try:
                return fit(*args, **kwargs)
            finally:
                sys.setprofile(None)
                if counted is not None:
                    Path(counted).write_text(str(calls))

        run.Trainer.fit = watched
    elif place == "half a state":

        def half(state, file):
            if due():
                file.write(b"PK half of something")
                file.flush()
                kill()

        import torch

        # torch.save is everybody's; only that of the states is to be caught.
        saved_state.torch = SimpleNamespace(save=torch.save, load=torch.load)
        before(saved_state.torch, "save", half)
    elif place == "before the head":
        before(saved_state.StateFile, "_commit", lambda *args: kill() if due() else None)
    elif place == "stage boundary":

        def entered(checkpointer) -> bool:
            return checkpointer._parts["box"].box.stage_number == 2

        before(resume.Checkpointer, "after_epoch", lambda self, *args: entered(self) and kill())
    elif place == "step":
        before(resume.Checkpointer, "after_step", lambda *args: kill() if due() else None)
    elif place == "signals to all":
        os.setsid()

        def signals(*args) -> None:
            if due():
                os.killpg(0, signal.SIGINT)
                os.killpg(0, signal.SIGTERM)

        before(resume.Checkpointer, "after_step", signals)
    else:
        raise ValueError(place)


def serve(log: str) -> None:
    import torchvision.datasets  # noqa: F401
    from train_fixture import tiny_net  # noqa: F401

    from akd_ext.train import cli as train
    from akd_ext.train import trainer as run

    run.draw_curves = lambda *args: None  # half of the time of such a small run
    for line in sys.stdin:
        arguments, trap = json.loads(line)
        child = os.fork()
        if child == 0:
            code = 99
            try:
                output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(output, 1)
                os.dup2(output, 2)
                if trap:
                    set_trap(**trap)
                code = train.main(arguments)
            finally:
                with contextlib.suppress(Exception):
                    sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        print(-os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
