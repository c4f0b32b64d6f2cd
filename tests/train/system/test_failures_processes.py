"""Several processes: two runs with one output folder, two runs with one teacher cache, each with one that is killed.

The runs are real processes, forked from a server that has imported everything: no second of imports for each.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from places import SUPPORT, TINY

pytest.importorskip("torchdistill", reason="akd-train runs torchdistill's boxes; pip install '.[experiments]'")
pytest.importorskip("fcntl", reason="processes keep out of each other's way by POSIX file locks")

import failure_fixture

from akd_ext.reproduce import cli as reproduce
from akd_ext.train import trainer as run
from akd_ext.train.cli import main


class Runs:
    def __init__(self, folder: Path):
        self.folder, self.diary, self.processes = folder, folder / "diary", []
        self.diary.mkdir()
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["akd_ext.train.trainer", "akd_ext.torchdistill", "failure_fixture"])

    def arguments(self, out, *args):
        command = ["--config", TINY, "--device", "cpu", "--seed", "0", "-student_only"]
        command += ["--set", "dependencies=[failure_fixture, akd_ext.torchdistill]"]
        return [*command, "--output_dir", str(self.folder / out), *args]

    def start(self, name, out, *args, workers=False):
        said = self.folder / f"said-{name}"
        arguments = (self.arguments(out, *args), str(said), str(self.diary), workers)
        process = self.context.Process(target=failure_fixture.train_in_a_process, args=arguments)
        process.start()
        process.said = lambda: said.read_text() if said.exists() else ""
        self.processes.append(process)
        return process

    def wait(self, condition):
        deadline = time.monotonic() + 120
        while not condition():
            for process in self.processes:
                assert process.exitcode in (None, 0, -signal.SIGKILL), process.said()
            assert time.monotonic() < deadline, [*self.entries(), *(process.said() for process in self.processes)]
            time.sleep(0.01)

    def entries(self, kind=""):
        return sorted(path.name for path in self.diary.iterdir() if path.name.startswith(kind))

    def go(self):
        (self.diary / "go").touch()
        for process in self.processes:
            process.join(120)
            assert process.exitcode in (0, -signal.SIGKILL), process.said()


@pytest.fixture
def runs(tmp_path, monkeypatch):
    # For the server, which before Python 3.14 looks for what it is to import on its own path only.
    monkeypatch.setenv("PYTHONPATH", str(SUPPORT), prepend=os.pathsep)
    runs = Runs(tmp_path)
    yield runs
    for process in runs.processes:
        process.kill()
        process.join()


# -- one output folder -------------------------------------------------------------------------------------------------

HOOKED = ["--set", "train.stage1.pre_epoch_process=hooked_pre_epoch"]


@pytest.fixture
def teacher(tmp_path):
    torch.save(failure_fixture.tiny_net(width=8).state_dict(), tmp_path / "teacher.pt")
    return ["--set", f"models.teacher_model.src_ckpt={tmp_path / 'teacher.pt'}"]


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_second_run_in_one_folder_is_refused_until_the_first_is_dead(runs, teacher, tmp_path, monkeypatch, capfd):
    """The first has a DataLoader worker, which outlives it, and is killed without a chance to clean up."""
    monkeypatch.setattr(run, "draw_curves", lambda *args: None)
    workers = ["--set", "train.stage1.val_data_loader.kwargs={num_workers: 1, batch_size: 16}"]
    first = runs.start("first", "out", *HOOKED, *teacher, *workers, workers=True)
    runs.wait(lambda: runs.entries("epoch1"))
    log = (tmp_path / "out" / "train.log").read_bytes()
    second = runs.arguments("out", *HOOKED, *teacher, *workers, "--quiet")
    assert main(second) == 2
    said = capfd.readouterr().err
    assert re.fullmatch(
        rf"akd-train: error: --output_dir: '{tmp_path}/out' is in use by akd-train, process {first.pid} on \S+, since "
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d; wait for it, end it, or write elsewhere\n",
        said,
    ), said
    assert (tmp_path / "out" / "train.log").read_bytes() == log
    assert main([*second, "-test_only"]) == 0  # which may look at a run under way
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    assert main(second) == 0, capfd.readouterr().err  # at once: the worker looks for its parent every five seconds
    assert json.loads((tmp_path / "out" / "results.json").read_text())["complete"] is True
    assert not [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_runs_that_share_the_yamls_own_checkpoint_are_told_apart_as_well(tmp_path, teacher, monkeypatch, capfd):
    from akd_ext.train.run_folder import run_lock

    monkeypatch.chdir(tmp_path)
    command = ["--config", TINY, "--device", "cpu", "--quiet", *teacher]
    with run_lock("akd-train", "here", "x", lock="resource/tiny-student.pt.lock"):
        assert main(command) == 2
    assert "models.student_model.dst_ckpt: './resource/tiny-student.pt' is in use by akd-train, process" in (
        capfd.readouterr().err
    )


def test_a_second_akd_reproduce_in_one_folder_is_refused(tmp_path, monkeypatch, capfd):
    from akd_ext.train.run_folder import run_lock

    monkeypatch.chdir(tmp_path)
    for command in (["digits"], ["figure2"], ["glue-bert-small"]):
        with run_lock("akd-reproduce", "--output_dir", "out"):
            assert reproduce.main([*command, "--output_dir", "out"]) == 2
        assert "--output_dir: 'out' is in use by akd-reproduce, process" in capfd.readouterr().err
        assert list((tmp_path / "out").iterdir()) == []


def test_without_locks_a_warning_says_that_nobody_watches(tmp_path, monkeypatch, caplog):
    """As on a network share whose server has no lock service."""
    import errno
    import fcntl

    from akd_ext.train.run_folder import run_lock

    def no_locks(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with run_lock("akd-train", "--output_dir", tmp_path):
        pass
    assert f"--output_dir: '{tmp_path}' cannot be locked (No locks available): see to it" in caplog.text


# -- one teacher cache -------------------------------------------------------------------------------------------------


@pytest.fixture
def cached(tmp_path):
    """A teacher that stops in the middle of its one pass."""
    torch.manual_seed(0)
    torch.save(failure_fixture.PatientNet().state_dict(), tmp_path / "patient.pt")
    wrapper = f"{{key: IndexedDatasetWrapper, kwargs: {{cache_dir: {tmp_path / 'cache'}}}}}"
    settings = [
        "models.teacher_model.key=PatientNet",
        "models.teacher_model.kwargs={}",
        f"models.teacher_model.src_ckpt={tmp_path / 'patient.pt'}",
        f"train.stage1.train_data_loader.dataset_wrapper={wrapper}",
        "train.stage1.teacher.forward_proc=cached_forward",
        "train.stage1.pre_epoch_process=annealing_pre_epoch_process",
        "train.stage2.pre_epoch_process=annealing_pre_epoch_process",
    ]
    return [part for setting in settings for part in ("--set", setting)]


def files(folder):
    return sorted(path.suffix for path in (folder / "cache").iterdir())


def test_of_two_runs_one_computes_the_teachers_logits_and_the_other_waits(runs, cached, tmp_path):
    processes = [runs.start(name, name, *cached) for name in ("a", "b")]
    runs.wait(
        lambda: runs.entries("half") and any("waiting for the process that writes" in p.said() for p in processes)
    )
    assert files(tmp_path) == [".lock", ".tmp"]
    runs.go()
    assert len(runs.entries("half")) == 1
    assert files(tmp_path) == [".safetensors"]
    a, b = ((tmp_path / name / "last.safetensors").read_bytes() for name in ("a", "b"))
    assert a == b


def test_a_run_whose_builder_is_killed_builds_itself(runs, cached, tmp_path):
    first = runs.start("first", "first", *cached)
    runs.wait(lambda: runs.entries("half"))
    second = runs.start("second", "second", *cached)
    runs.wait(lambda: "waiting for the process that writes" in second.said())
    os.kill(first.pid, signal.SIGKILL)
    runs.wait(lambda: f"half-{second.pid}" in runs.entries())
    runs.go()
    assert json.loads((tmp_path / "second" / "results.json").read_text())["complete"] is True
    assert files(tmp_path) == [".safetensors"]
