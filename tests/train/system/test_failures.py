"""What goes wrong around a run of akd-train: it ends with one sentence and code 1, and what was saved stays whole."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from places import TINY

pytest.importorskip("torchdistill", reason="akd-train runs torchdistill's boxes; pip install '.[experiments]'")
pytest.importorskip("resource", reason="a full disk is provoked by a limit that POSIX systems have")

import failure_fixture

from akd_ext.logit_cache import cache as _logit_cache
from akd_ext.train import trainer as run
from akd_ext.train.checkpoint import best as checkpoints
from akd_ext.train.cli import main
from akd_ext.train.reporting import console as logs
from akd_ext.train.reporting import results
from akd_ext.train.reporting import tensorboard as scalars
from akd_ext.train.system.errors import one_sentence
from akd_ext.train.system.failures import explain

TOO_LARGE = os.strerror(errno.EFBIG)


@pytest.fixture
def train(tmp_path, monkeypatch, capfd):
    """Runs akd-train with ``hook(epoch, box)`` before every epoch of stage I; gives the one line it prints, if any."""
    monkeypatch.setattr(run, "draw_curves", lambda *args: None)
    monkeypatch.setattr(run, "check_teacher", lambda *args, **kwargs: None)  # the teacher here is untrained
    torch.save(failure_fixture.tiny_net(width=8).state_dict(), tmp_path / "teacher.pt")

    def train(*args, hook=failure_fixture.nothing, code=1, out="out", output_dir=True):
        monkeypatch.setattr(failure_fixture, "HOOK", hook)
        command = ["--config", TINY, "--device", "cpu", "--seed", "0", "--quiet"]
        command += ["--set", "dependencies=[failure_fixture, akd_ext.torchdistill]"]
        command += ["--set", "train.stage1.pre_epoch_process=hooked_pre_epoch"]
        command += ["--set", f"models.teacher_model.src_ckpt={tmp_path / 'teacher.pt'}"]
        command += ["--output_dir", str(tmp_path / out)] if output_dir else []
        assert main([*command, *args]) == code, capfd.readouterr().err
        (said,) = capfd.readouterr().err.strip().splitlines() or [""]
        return said.removeprefix("akd-train: error: ")

    return train


def at_epoch(number, function):
    return lambda epoch, box: function() if epoch == number else None


def assert_intact(out: Path, epochs: int) -> None:
    """``epochs`` are finished, every file of them can be read and is of a sound student, and no half of one is left."""
    from safetensors.torch import load_file

    found = json.loads((out / "results.json").read_text())
    assert found["complete"] is False
    assert len(found["epochs"]) == epochs
    states = [torch.load(out / "checkpoint.pt", weights_only=True)["model"]]
    states += [load_file(out / name) for name in ("best.safetensors", "last.safetensors")]
    assert all(value.isfinite().all() for state in states for value in state.values())
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


# -- no room -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("owner", "method", "name"),
    [
        (checkpoints.BestCheckpoint, "_save", "checkpoint.pt"),  # torch.save
        (checkpoints.BestCheckpoint, "_export", "best.safetensors"),  # safetensors, which is written in Rust
        (results.Results, "write", "results.json"),
    ],
)
def test_a_full_disk_under_a_file_of_the_run(train, tmp_path, monkeypatch, owner, method, name):
    whole, full = getattr(owner, method), []

    def limited(self, *args):
        with failure_fixture.files_of_at_most(600) if full else contextlib.nullcontext():
            return whole(self, *args)

    monkeypatch.setattr(owner, method, limited)
    monkeypatch.setattr(results, "better", lambda new, best: True)  # so that every file is due in every epoch
    said = train(hook=at_epoch(1, lambda: full.append(1)))
    assert said == (
        f"'{tmp_path / 'out' / name}' in stage 1, epoch 2: {TOO_LARGE}. What the epochs before have saved is intact"
    )
    assert_intact(tmp_path / "out", epochs=1)
    assert said in (tmp_path / "out" / "train.log").read_text()


def test_a_full_disk(train, tmp_path):
    """A real one: a file system of 256 KiB, which somebody else fills while the run is under way."""

    def fill():
        with pytest.raises(OSError), open(tmp_path / "disk" / "theirs", "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    with failure_fixture.mounted(tmp_path / "disk", "size=256k"):
        said = train(hook=at_epoch(2, fill), out="disk/out")
        assert f"'{tmp_path}/disk/out/" in said
        assert "in stage 1, epoch 3: No space left on device; make room there, or write elsewhere" in said
        assert_intact(tmp_path / "disk" / "out", epochs=2)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full on this system")
def test_a_full_disk_under_the_log(train, tmp_path):
    assert "--run_log: '/dev/full' cannot be written to: No space left" in train("--run_log", "/dev/full", code=2)

    def full():
        (handler,) = (h for h in logging.getLogger().handlers if isinstance(h, logs._File))
        handler.setStream(open("/dev/full", "w"))

    said = train(hook=at_epoch(1, full))  # one line, not a traceback for every line of the log
    assert f"'{tmp_path}/out/train.log' in stage 1, epoch 2: No space left on device" in said
    assert_intact(tmp_path / "out", epochs=1)


@pytest.mark.integration
@pytest.mark.parametrize("when", ["in an epoch", "at the very end"])
def test_a_full_disk_under_tensorboard(train, tmp_path, monkeypatch, when):
    pytest.importorskip("tensorboard", reason="--tensorboard needs tensorboard; pip install '.[experiments]'")

    made, close, writers = scalars.TensorBoardLogger.__init__, scalars.TensorBoardLogger.close, []

    def make(self, *args, **kwargs):
        made(self, *args, **kwargs)
        writers.extend([self._writer] if self._writer is not None else [])

    def write_much(*args):
        stack.enter_context(failure_fixture.files_of_at_most(100_000))  # more than any other file of the run
        writers[0].add_text("much", "x" * 200_000, 0)
        return close(*args) if args else None

    monkeypatch.setattr(scalars.TensorBoardLogger, "__init__", make)
    if when == "at the very end":
        monkeypatch.setattr(scalars.TensorBoardLogger, "close", write_much)
    with contextlib.ExitStack() as stack:
        said = train("--tensorboard", hook=at_epoch(1, write_much) if when == "in an epoch" else at_epoch(9, None))
    assert f"'{tmp_path}/out/tensorboard'" in said and TOO_LARGE in said
    assert_intact(tmp_path / "out", epochs=len(json.loads((tmp_path / "out" / "results.json").read_text())["epochs"]))


def cached(folder):
    wrapper = f"{{key: IndexedDatasetWrapper, kwargs: {{cache_dir: {folder}}}}}"
    return [
        *("--set", f"train.stage1.train_data_loader.dataset_wrapper={wrapper}"),
        *("--set", "train.stage1.teacher.forward_proc=cached_forward"),
        *("--set", "train.stage1.pre_epoch_process=annealing_pre_epoch_process"),
    ]


@pytest.mark.parametrize("size", [100, 1600], ids=["header", "rows"])
def test_a_full_disk_under_the_teachers_logits(train, tmp_path, monkeypatch, size):
    write_at = _logit_cache.write_at

    def limited(*args):
        with failure_fixture.files_of_at_most(size):  # 48 rows of 24 bytes come behind a header of less than 1600
            write_at(*args)

    monkeypatch.setattr(_logit_cache, "write_at", limited)
    said = train(*cached(tmp_path / "cache"))
    assert said.startswith(f"'{tmp_path}/cache/") and f"' in stage 1, epoch 1: {TOO_LARGE}" in said
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_read_only_folder(train, tmp_path, monkeypatch):
    folder = tmp_path / "theirs"
    with failure_fixture.read_only(folder):
        said = train(out="theirs/out", code=2)
        assert said.startswith(f"--output_dir: '{folder}/out' cannot be written to: ")
        with monkeypatch.context() as patch:
            patch.chdir(folder)
            said = train(output_dir=False, code=2)  # before the first epoch, not after it
            assert said.startswith("models.student_model.dst_ckpt: './resource' cannot be written to: ")
        said = train(*cached(folder / "cache"))
        assert said.startswith(f"'{folder}/cache' in stage 1, epoch 1: ")
        assert list(folder.iterdir()) == []


def test_a_full_disk_under_a_folder_for_hugging_face(tmp_path):
    from safetensors.torch import load_file, save_file

    from akd_ext.train.checkpoint.hf_folder import BestHFFolder

    def save_pretrained(folder, state_dict=None, max_shard_size=None):
        if state_dict:
            save_file(state_dict, Path(folder) / "model.safetensors")

    model = SimpleNamespace(save_pretrained=save_pretrained)
    best = BestHFFolder(str(tmp_path / "checkpoint"), None, model, model)
    best._save({"model": {"weight": torch.ones(1000)}})
    with failure_fixture.files_of_at_most(600), pytest.raises(OSError) as caught:
        best._save({"model": {"weight": torch.zeros(1000)}})
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(tmp_path / "checkpoint"))
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["model.safetensors"]
    assert load_file(tmp_path / "checkpoint" / "model.safetensors")["weight"].sum() == 1000


# -- no memory, no worker ----------------------------------------------------------------------------------------------


def test_memory_runs_out(train, tmp_path):
    said = train(hook=at_epoch(1, lambda: torch.empty(2**50)))  # more than a process can address
    assert said == (
        "memory ran out in stage 1, epoch 2 (4503599627370496 bytes more were asked for); lower batch_size "
        "(grad_accum_step makes up for it) or num_workers. What the epochs before have saved is intact"
    )
    assert_intact(tmp_path / "out", epochs=1)


def test_the_memory_of_the_gpu_runs_out(train, tmp_path):
    def full():
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of ..."
        )

    said = train(hook=at_epoch(1, full))
    assert said.startswith("the memory of the GPU ran out in stage 1, epoch 2 (20.00 GiB more were asked for); lower ")
    assert_intact(tmp_path / "out", epochs=1)


@pytest.mark.cuda
def test_the_memory_of_a_real_gpu_runs_out():
    with pytest.raises(torch.OutOfMemoryError) as caught:
        torch.empty(2**46, dtype=torch.uint8, device="cuda")
    assert re.search(r"GPU ran out \(65536.00 GiB more", explain(caught.value))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the worker has to inherit what this test changes")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_worker_is_killed(train, tmp_path, monkeypatch):
    import train_fixture

    read, doomed = train_fixture.TinyImages.__getitem__, []

    def die(self, index):
        if doomed and torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)  # as the system's out-of-memory killer does
        return read(self, index)

    monkeypatch.setattr(train_fixture.TinyImages, "__getitem__", die)
    workers = ("--set", "train.stage1.train_data_loader.kwargs.num_workers=1")
    said = train(*workers, hook=at_epoch(1, lambda: doomed.append(1)))
    assert re.match(r"a DataLoader worker \(process \d+\) .* in stage 1, epoch 2; the system kills when memory", said)
    assert_intact(tmp_path / "out", epochs=1)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that ..."),
         "a DataLoader worker (process 7) was ended by a signal (Bus error); shared memory may have run out: lower "),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Segmentation fault. "), "num_workers: 0 tells more"),
        (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), "(process 7, 8) ended unexpectedly; "),
        (RuntimeError("unable to write to file </torch_1_2>: No space left on device (28)"), "shared memory ran out; "),
        (RuntimeError("CUDA error: out of memory"), "the memory of the GPU ran out; "),
        (MemoryError("Unable to allocate 8.00 PiB for an array"), "memory ran out; "),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory ran out; lower batch_size"),
        (OSError(errno.EROFS, "Read-only file system", "x"), "'x': Read-only file system"),
        (FileNotFoundError(errno.ENOENT, "No such file", "image.png"), None),
        (ValueError("an ordinary mistake"), None),
    ],
)  # fmt: skip
def test_what_a_machine_does_is_told_from_what_a_program_does(error, sentence):
    found = explain(error)
    assert found is None if sentence is None else sentence in found


def test_an_error_inside_a_worker_is_told_without_its_traceback():
    text = (
        'Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File "x"\n'
    )
    told = one_sentence(ValueError(f"{text}ValueError: image 7 is broken\n"))
    assert told == "Caught ValueError in DataLoader worker process 0: ValueError: image 7 is broken"
