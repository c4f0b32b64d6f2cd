"""Going on after SIGTERM or Ctrl-C: exactly where the run was, whatever takes part in it; and what is refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from places import TINY

pytest.importorskip("torchdistill", reason="akd-train runs torchdistill's boxes; pip install '.[experiments]'")

from resume_fixture import outcome

from akd_ext.train.checkpoint import checkpointer as resume
from akd_ext.train.checkpoint import state_file as saved_state
from akd_ext.train.cli import NOTHING_SAVED, STOPPED, main

LOADER = "train.stage1.train_data_loader"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    import train_fixture

    return train_fixture.save_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def anywhere(teacher):
    """Runs akd-train: two stages of three and two epochs, 3 steps each. ``stop_at``: a signal comes in that step."""

    def run(folder: Path, *args: str, stop_at: int = 0, signals=(signal.SIGTERM,), seed: int = 0) -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("akd_ext.train.trainer.draw_curves", lambda *args: None)  # half of the time
            interrupt(patch, stop_at, signals)
            return main([
                "--config", TINY, "--device", "cpu", "--seed", str(seed), "--quiet",
                "--set=dependencies=[train_fixture, resume_fixture]", "--set=datasets.tiny/train.init.kwargs.size=24",
                f"--set={LOADER}.kwargs.batch_size=8", "--set=models.student_model.key=dropout_net",
                f"--set=models.teacher_model.src_ckpt={teacher}", "--output_dir", str(folder), *args,
            ])  # fmt: skip

    return run


@pytest.fixture
def train(anywhere, tmp_path):
    return lambda *args, out="out", **more: anywhere(tmp_path / out, *args, **more)


@pytest.fixture(scope="module")
def whole(anywhere, tmp_path_factory):
    """The outcome of a run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    assert anywhere(folder) == 0
    return outcome(folder)


@pytest.fixture(scope="module")
def stopped_once(anywhere, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped")
    assert anywhere(folder, stop_at=5) == STOPPED
    return folder


@pytest.fixture
def stopped(stopped_once, tmp_path):
    """A run that was stopped, with a best epoch and in the middle of the next one; in a folder that was copied."""
    return Path(shutil.copytree(stopped_once, tmp_path / "out"))


def interrupt(patch, step: int, signals) -> None:
    after_step, steps = resume.Checkpointer.after_step, 0

    def interrupted(*args):
        nonlocal steps
        steps += 1
        if steps == step:
            for number in signals:
                os.kill(os.getpid(), number)
        after_step(*args)

    patch.setattr(resume.Checkpointer, "after_step", interrupted)


def head(folder: Path) -> dict:
    return json.loads((folder / "resume" / "state.json").read_text())


NOISY = "--set=datasets.tiny/train.key=resume_fixture.NoisyImages"
VARIANTS = {
    "random samples": [NOISY],
    "workers": [NOISY, f"--set={LOADER}.kwargs.num_workers=2"],
    "workers that live on": [f"--set={LOADER}.kwargs.num_workers=1", f"--set={LOADER}.kwargs.persistent_workers=True"],
    "a sampler's own generator": [
        f"--set={LOADER}.sampler.class_or_func=!import_get {{key: resume_fixture.seeded_sampler}}"
    ],
    "a schedule of steps": [
        "--set=train.stage1.optimizer={key: AdamW, kwargs: {lr: 0.01}}",
        "--set=train.stage1.scheduler={key: OneCycleLR, kwargs: {max_lr: 0.1, total_steps: 9}, scheduling_step: 1}",
    ],
    "a schedule by metric": [
        "--set=train.stage1.scheduler={key: ReduceLROnPlateau, kwargs: {mode: max, patience: 0, threshold: 0.5}}",
    ],
    "accumulated gradients": ["--set=train.stage1.optimizer.grad_accum_step=2", "--set=train.stage1.optimizer.max_grad_norm=0.1"],
    "loss scaling": ["--amp", "fp16", "--set=train.stage1.optimizer.grad_accum_step=2"],
    "a loss with a state": [
        "--set=train.stage1.criterion.kwargs.sub_terms.more={criterion: {key: CountingLoss, kwargs: {}}, weight: 0.1}"
    ],
    "a teacher that learns": ["--set=train.stage1.teacher.requires_grad=True"],
    "a student with a part for one stage": [
        "--set=train.stage1.student={forward_proc: forward_batch_only, sequential: ['0', '1', '2', '3', '4', '5', '+more'],"
        " adaptations: {more: {key: Linear, kwargs: {in_features: 6, out_features: 6}}}}",
    ],
    "cached logits": [
        "--set=dependencies=[train_fixture, resume_fixture, akd_ext.torchdistill]",
        "--set=train.stage1.pre_epoch_process=annealing_pre_epoch_process",
        "--set=train.stage1.teacher.forward_proc=cached_forward",
        "--set=train.stage2.teacher.forward_proc=forward_batch_only",
        f"--set={LOADER}.dataset_wrapper={{key: IndexedDatasetWrapper}}",
    ],
}  # fmt: skip


@pytest.mark.integration
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_stopped_run_goes_on_exactly_where_it_was(train, tmp_path, variant, monkeypatch, capfd):
    arguments = VARIANTS[variant]
    if (
        variant == "loss scaling"
    ):  # grows at every step, until one overflows and is left out: which, depends on the scale
        monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, growth_interval=1))
    assert train(*arguments, out="whole") == 0, capfd.readouterr().err
    assert train(*arguments, stop_at=5) == STOPPED, capfd.readouterr().err
    assert "stopped by SIGTERM; the same command goes on from epoch 2, step 2 (stage 1)" in capfd.readouterr().err
    assert train(*arguments) == 0, capfd.readouterr().err
    assert outcome(tmp_path / "out") == outcome(tmp_path / "whole")


@pytest.mark.integration
@pytest.mark.parametrize("step", [3, 9, 10, 15])
def test_stopped_at_the_ends_of_epochs_and_stages(train, tmp_path, whole, step):
    """After the last step of an epoch, of stage I and of the run, and after the first one of stage II."""
    assert train(stop_at=step) == STOPPED
    assert train() == 0
    assert outcome(tmp_path / "out") == whole


def test_ctrl_c_twice_stops_at_once(train, tmp_path, capfd):
    code = train("--save_every_steps", "2", stop_at=6, signals=(signal.SIGINT, signal.SIGINT))
    assert code == STOPPED
    assert "the same command goes on from epoch 2, step 1 (stage 1)" in capfd.readouterr().err  # of step 4, not 6
    assert (head(tmp_path / "out")["where"]["epoch"], head(tmp_path / "out")["where"]["step"]) == (1, 1)


def test_ctrl_c_and_a_sigterm_after_it_finish_the_step(train, tmp_path, capfd):
    """What a terminal and akd-reproduce send together."""
    assert train(stop_at=5, signals=(signal.SIGINT, signal.SIGTERM)) == STOPPED
    assert "stopped by Ctrl-C" in capfd.readouterr().err
    assert head(tmp_path / "out")["where"] == {"stage": 1, "epoch": 1, "step": 2, "T": 2, "phi": 0.6666667}


def test_stopped_before_anything_was_saved(train, monkeypatch, capfd):
    monkeypatch.setattr("akd_ext.train.trainer.Trainer.fit", lambda *args: os.kill(os.getpid(), signal.SIGTERM))
    assert train() == NOTHING_SAVED
    assert "stopped by SIGTERM; no state was saved" in capfd.readouterr().err


def test_a_signal_finds_pythons_own_handlers_again_after_the_run(train):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    train("--set=train.stage1.num_epochs=1", "--set=train.stage2.num_epochs=1")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.integration
def test_a_finished_run_is_not_trained_again_unless_asked_for(train, tmp_path, monkeypatch, capfd):
    assert train() == 0
    out, trained = tmp_path / "out", []
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    monkeypatch.setattr("akd_ext.train.trainer.Trainer.fit", lambda *args: trained.append(args))
    for more in ((), ("--resume",)):
        assert train(*more) == 0
        assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    assert trained == []
    assert train(seed=1) == 2  # nor overwritten by another one
    assert "holds a finished run that was made otherwise: seed is 0 there and 1 here" in capfd.readouterr().err
    monkeypatch.undo()
    assert train("--overwrite", seed=1) == 0
    assert json.loads((out / "results.json").read_text())["seed"] == 1
    (out / "checkpoint.pt").unlink()
    assert train(seed=1) == 0  # its results are gone, so it is not finished
    assert (out / "checkpoint.pt").is_file()


@pytest.mark.integration
def test_workers_that_live_on_from_the_first_epoch(train, tmp_path):
    """They draw a seed when they begin, in the middle of what the resumed run does again."""
    arguments = VARIANTS["workers that live on"]
    assert train(*arguments, out="whole") == 0
    assert train(*arguments, stop_at=2) == STOPPED
    assert train(*arguments) == 0
    assert outcome(tmp_path / "out") == outcome(tmp_path / "whole")


def test_resume_and_overwrite_are_one_too_many(train, capfd):
    assert train("--resume", "--overwrite") == 2
    assert "give one of them" in capfd.readouterr().err


def test_resume_without_a_state_is_refused(train, tmp_path, capfd):
    assert train("--resume") == 2
    assert f"--resume: there is no state in '{tmp_path / 'out' / 'resume'}' to go on from" in capfd.readouterr().err


@pytest.mark.parametrize("flag", ["--resume", "--overwrite", "--save_every_steps=1"])
def test_the_flags_need_a_folder(flag, capfd):
    assert main(["--config", TINY, "--quiet", flag]) == 2
    assert f"{flag.split('=')[0]}: it is about the training in --output_dir" in capfd.readouterr().err


@pytest.mark.integration
@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--set=train.stage1.num_epochs=4"], "config.train.stage1.num_epochs is 3 there and 4 here"),
        (["--set=models.student_model.kwargs={width: 5}"], "config.models.student_model.kwargs.width is None there"),
        (["--amp", "bf16"], "amp is None there and 'bf16' here"),
        (["--set=datasets.tiny/val.init.kwargs.size=31"], "samples.tiny/val is 30 there and 31 here"),
    ],
)
def test_another_run_is_refused_and_nothing_is_touched(train, stopped, more, reason, capfd):
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    assert train(*more) == 2
    said = capfd.readouterr().err
    assert "holds the state of a run that was made otherwise" in said and reason in said and "--overwrite" in said
    assert {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()} == before
    assert train(*more, "--overwrite") == 0


def test_another_teacher_is_refused_and_the_same_one_elsewhere_is_not(train, stopped, tmp_path, teacher, capfd):
    import train_fixture

    other = tmp_path / "other.pt"
    torch.manual_seed(1)
    torch.save(train_fixture.tiny_net(width=8).state_dict(), other)
    assert train("--set", f"models.teacher_model.src_ckpt={other}") == 2
    assert "teacher weights is '" in capfd.readouterr().err
    other.write_bytes(teacher.read_bytes())
    assert train("--set", f"models.teacher_model.src_ckpt={other}") == 0


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("state-1-2.pt", cut),
        ("state-1-2.pt", flip),
        ("state-1-2.pt", Path.unlink),
        ("state.json", cut),
        ("state.json", flip),
    ],
)
def test_a_damaged_state_is_refused_by_the_name_of_the_file(train, stopped, name, harm, capfd):
    path = stopped / "resume" / name
    assert path.is_file()
    harm(path)
    assert train() == 2
    said = capfd.readouterr().err
    assert name in said and "--overwrite starts over" in said
    assert any(word in said for word in ("is cut off", "was changed", "cannot be read: No such file"))


def rewrite(folder: Path, change) -> None:
    """As somebody would who also puts the checksums right."""
    content = head(folder)
    del content["sha256"]
    change(content)
    content["sha256"] = saved_state._sha256_of(content)
    (folder / "resume" / "state.json").write_text(json.dumps(content))


class Code:
    def __init__(self, folder: Path):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_a_state_that_would_run_code_is_refused_and_runs_none(train, stopped, tmp_path, capfd):
    path = stopped / "resume" / "state-1-2.pt"
    torch.save({"box": Code(tmp_path / "executed")}, path)
    rewrite(stopped, lambda content: content["file"].update(sha256=saved_state._sha256(path)))
    assert train() == 2
    assert "state-1-2.pt' cannot be read as a state: Weights only load failed" in capfd.readouterr().err
    assert not (tmp_path / "executed").exists()


def test_a_checkpoint_that_would_run_code_is_replaced_before_the_next_stage_loads_it(train, stopped, tmp_path):
    """torchdistill itself loads a stage's src_ckpt with pickle; what a resumed run hands it is the file it had saved."""
    (stopped / "checkpoint.pt").unlink()
    (stopped / "checkpoint.pt").write_bytes(pickle.dumps({"model": Code(tmp_path / "executed")}))
    assert train() == 0
    assert not (tmp_path / "executed").exists()


def test_a_state_of_another_model_is_refused(train, stopped, monkeypatch, capfd):
    """The same YAML, but the code it names has changed."""
    from torchdistill.models import registry

    build = registry.MODEL_DICT["dropout_net"]
    monkeypatch.setitem(registry.MODEL_DICT, "dropout_net", lambda **kwargs: build(width=5))
    assert train() == 2
    assert "the state in --output_dir does not fit the student of this run: " in capfd.readouterr().err


def test_a_state_of_another_version_is_refused(train, stopped, capfd):
    rewrite(stopped, lambda content: content.update(format=99))
    assert train() == 2
    assert "was written by another version of akd_ext (expected: format 3)" in capfd.readouterr().err


def test_what_only_code_could_bring_back_is_said_and_the_run_goes_on(train, tmp_path, monkeypatch, caplog):
    class Odd(torch.optim.lr_scheduler.ConstantLR):
        def state_dict(self):
            return {**super().state_dict(), "odd": object()}

    from torchdistill.optim import registry

    monkeypatch.setitem(registry.SCHEDULER_DICT, "Odd", Odd)
    assert train("--set=train.stage1.scheduler={key: Odd, kwargs: {}}") == 0
    assert "the learning rate scheduler: odd holds a object" in caplog.text
    assert not (tmp_path / "out" / "resume" / "state-1-0.pt").exists()


def test_processes_that_see_different_folders_are_told(train, stopped, monkeypatch, capfd):
    """As on two machines with a local --output_dir each: one finds a state, the other none."""
    monkeypatch.setattr("akd_ext.train.distributed.group.all_gather_object", lambda value: [value, None])
    assert train() == 2
    assert "--output_dir: the processes do not all see the same" in capfd.readouterr().err


def test_a_moved_folder_goes_on(train, stopped, tmp_path, whole):
    stopped.rename(tmp_path / "moved")
    assert train(out="moved") == 0
    assert outcome(tmp_path / "moved") == whole


def test_the_log_goes_on_too(train, stopped):
    before = (stopped / "train.log").read_text()
    assert train() == 0
    after = (stopped / "train.log").read_text()
    assert after.startswith(before)
    assert "the run goes on from epoch 2, step 2 (stage 1)" in after[len(before) :]


@pytest.mark.integration
def test_somebody_elses_files_in_the_folder_stay(anywhere, tmp_path):
    mine = tmp_path / "resume" / "notes.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    assert anywhere(tmp_path) == 0
    assert mine.read_text() == "mine"
    assert sorted(os.listdir(mine.parent)) == ["notes.txt", "state.json"]
    assert anywhere(tmp_path, "--overwrite") == 0
    assert mine.read_text() == "mine"
