"""Real processes around one cache: a killed writer, several at once, a dead one that others wait for."""

import os
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from subject_process import PACKAGE

from akd_ext.logit_cache import HiddenStateCache, LogitCache

pytest.importorskip("fcntl", reason="processes share a cache by POSIX file locks")

# Writes what it does into the folder `diary`; a fill goes on when there is a file `go` there.
SUBJECT = """
    import logging, os, pathlib, sys, time, torch
    import akd_ext.logit_cache

    folder, diary, me = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
    kind = getattr(akd_ext.logit_cache, sys.argv[4])
    given = {"LogitCache": (torch.ones(3, 4),), "HiddenStateCache": (torch.ones(3, 2, 4), torch.tensor([0, 1, 2]))}

    class Diary(logging.Handler):
        def emit(self, record):
            if "waiting" in record.getMessage():
                (diary / f"waiting-{me}").touch()

    logging.getLogger("akd_ext.logit_cache").addHandler(Diary())
    logging.getLogger("akd_ext.logit_cache").setLevel(logging.INFO)

    def fill():
        yield torch.arange(3), *given[kind.__name__]
        (diary / f"half-{me}").touch()
        while not (diary / "go").exists():
            time.sleep(0.01)
        yield torch.arange(3, 6), *given[kind.__name__]

    cache = kind.build_or_open(folder, {"x": 1}, fill, num_samples=6)
    assert sum(cache[torch.tensor([i])][0].sum() for i in range(6)) == 24
    (diary / f"done-{me}").touch()
"""


class Subjects:
    def __init__(self, tmp_path, kind):
        self.kind = kind
        self.folder, self.diary, self.processes = tmp_path / "cache", tmp_path / "diary", {}
        self.diary.mkdir()

    def start(self, name):
        command = [sys.executable, "-c", textwrap.dedent(SUBJECT), self.folder, self.diary, name, self.kind.__name__]
        environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "PYTHONDONTWRITEBYTECODE": "1"}
        self.processes[name] = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    def until(self, *names):
        self.wait(lambda: set(names) <= set(self.entries()))

    def wait(self, condition):
        deadline = time.monotonic() + 120
        while not condition():
            for process in self.processes.values():
                assert not process.poll(), process.stderr.read()
            assert time.monotonic() < deadline, f"after two minutes: {self.entries()}"
            time.sleep(0.01)

    def entries(self, kind=""):
        return sorted(path.name for path in self.diary.iterdir() if path.name.startswith(kind))

    def files(self):
        return sorted(path.suffix for path in self.folder.iterdir())

    def kill(self, name):
        process = self.processes.pop(name)
        process.kill()  # SIGKILL: no cleaning up
        process.communicate()


@pytest.fixture(params=[LogitCache, HiddenStateCache])
def subjects(request, tmp_path):
    subjects = Subjects(tmp_path, request.param)
    yield subjects
    for process in subjects.processes.values():
        process.kill()
        process.communicate()


def build(subjects, identity, rows):
    """A cache in this process; as hidden states the rows are samples of one token."""
    index = torch.arange(len(rows))
    states = rows.unsqueeze(1), torch.ones(len(rows), dtype=torch.int64)
    batches = [(index, rows)] if subjects.kind is LogitCache else [(index, *states)]
    cache = subjects.kind.build_or_open(subjects.folder, identity, lambda: batches, num_samples=len(rows))
    return cache.logits if subjects.kind is LogitCache else cache.hidden


@pytest.mark.integration
def test_a_killed_writer_leaves_nothing_that_can_be_read(subjects):
    subjects.start("a")
    subjects.until("half-a")
    assert subjects.files() == [".lock", ".tmp"]
    build(subjects, {"x": 2}, torch.ones(1, 2))
    assert subjects.files() == [".lock", ".safetensors", ".tmp"], "the file of a living writer was removed"
    subjects.kill("a")
    build(subjects, {"x": 3}, torch.ones(1, 2))
    assert subjects.files() == [".safetensors", ".safetensors"], "the file of a dead writer was left"


@pytest.mark.integration
def test_a_killed_writers_own_file_is_started_afresh(subjects):
    subjects.start("a")
    subjects.until("half-a")
    subjects.kill("a")
    logits = torch.randn(6, 4)
    assert torch.equal(build(subjects, {"x": 1}, logits), logits)
    assert subjects.files() == [".safetensors"]


@pytest.mark.integration
def test_of_two_processes_one_builds_and_the_other_waits(subjects):
    subjects.start("a")
    subjects.start("b")
    subjects.wait(lambda: len(subjects.entries("half")) + len(subjects.entries("waiting")) == 2)
    assert len(subjects.entries("half")) == 1
    (subjects.diary / "go").touch()
    subjects.until("done-a", "done-b")
    assert len(subjects.entries("half")) == 1
    assert subjects.files() == [".safetensors"]


@pytest.mark.integration
def test_who_waits_for_a_writer_that_dies_builds(subjects):
    subjects.start("a")
    subjects.until("half-a")
    subjects.start("b")
    subjects.until("waiting-b")
    subjects.kill("a")
    subjects.until("half-b")
    (subjects.diary / "go").touch()
    subjects.until("done-b")
    assert subjects.files() == [".safetensors"]
