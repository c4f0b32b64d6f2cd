"""akd-train end to end, on a toy problem with two stages (train_tiny.yaml)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from places import ROOT, SUPPORT, TINY

pytest.importorskip("torchdistill", reason="akd-train runs torchdistill's boxes; pip install '.[experiments]'")

from akd_ext.train.cli import main


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    import train_fixture

    return str(train_fixture.save_teacher(tmp_path_factory.mktemp("teacher")))


@pytest.fixture
def train(tmp_path, teacher, monkeypatch):
    """Runs akd-train on the toy problem; gives the exit code and the output folder."""

    def run(*args: str, out: str = "out", seed: int = 0, quiet: bool = True, draw: bool = False) -> tuple[int, Path]:
        if not draw:  # half of the time of such a small run
            monkeypatch.setattr("akd_ext.train.trainer.draw_curves", lambda *args: None)
        common = ["--config", TINY, "--device", "cpu", "--seed", str(seed), *(["--quiet"] if quiet else [])]
        folder = tmp_path / out
        return main(
            [*common, "--set", f"models.teacher_model.src_ckpt={teacher}", "--output_dir", str(folder), *args]
        ), folder

    return run


def read(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def weights(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def without_times(results: dict) -> dict:
    return {**results, "epochs": [{k: v for k, v in e.items() if k != "seconds"} for e in results["epochs"]]}


def test_two_stages_write_everything_the_schema_names(train):
    code, out = train("--tensorboard", draw=True)
    assert code == 0
    results = read(out)
    assert list(results) == [
        "config", "seed", "device", "complete", "versions", "epochs", "best_per_stage", "best", "last", "teacher",
    ]  # fmt: skip
    assert (results["config"], results["seed"], results["device"], results["complete"]) == (TINY, 0, "cpu", True)
    assert results["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"torch", "torchdistill", "akd_ext", "python"} <= results["versions"].keys()
    for entry in results["epochs"]:
        assert list(entry) == ["epoch", "stage", "T", "phi", "train_loss", "loss_terms", "val_accuracy", "seconds"]
    assert [(e["epoch"], e["stage"], e["T"], e["phi"]) for e in results["epochs"]] == [
        (1, 1, 3, 0.3333333), (2, 1, 2, 0.6666667), (3, 1, 1, 1.0), (4, 2, None, None), (5, 2, None, None),
    ]  # fmt: skip
    for stage in (1, 2):
        of_stage = [e for e in results["epochs"] if e["stage"] == stage]
        first_best = max(of_stage, key=lambda e: e["val_accuracy"])  # max gives the earliest of equals
        assert results["best_per_stage"][str(stage)] == {k: first_best[k] for k in ("epoch", "val_accuracy")}
    best = max(results["epochs"], key=lambda e: e["val_accuracy"])
    assert {k: results["best"][k] for k in ("epoch", "stage", "val_accuracy")} == {
        k: best[k] for k in ("epoch", "stage", "val_accuracy")
    }
    assert results["last"]["epoch"] == 5
    for part in ("best", "last", "teacher"):
        assert 0 <= results[part]["test_accuracy"] <= 100
    names = {path.name for path in out.iterdir()}
    assert names == {
        "results.json", "best.safetensors", "last.safetensors", "train.log", "curves.png", "config.yaml",
        "checkpoint.pt", "tensorboard", "resume",
    }  # fmt: skip
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    (events,) = (out / "tensorboard").iterdir()
    for tag in ("train/loss", "train/akd", "train/phi", "train/lr", "val/accuracy"):
        assert tag.encode() in events.read_bytes()
    log = (out / "train.log").read_text()
    assert "torchdistill 1." in log and "stage 2 starts from" in log and "(ce " in log


def test_each_loss_term_is_logged_by_name_and_the_terms_add_up(train):
    _, out = train()
    for entry in read(out)["epochs"]:
        assert list(entry["loss_terms"]) == (["akd"] if entry["stage"] == 1 else ["ce", "kd"])
        assert sum(entry["loss_terms"].values()) == pytest.approx(entry["train_loss"], rel=1e-5)


def test_the_logged_loss_is_the_mean_over_samples_of_what_the_criterion_returned(train, monkeypatch):
    from torchdistill.losses.high_level import WeightedSumLoss

    seen = []
    forward = WeightedSumLoss.forward

    def spy(self, io_dict, model_loss_dict, targets):
        loss = forward(self, io_dict, model_loss_dict, targets)
        seen.append((loss.item(), len(targets)))
        return loss

    monkeypatch.setattr(
        "akd_ext.train.trainer.dry_build_stages", lambda *args, **kwargs: None
    )  # it asks for losses, too
    monkeypatch.setattr(WeightedSumLoss, "forward", spy)
    # 48 samples in batches of 20, 20 and 8: a mean over steps would differ from the mean over samples.
    _, out = train("--set", "train.stage1.train_data_loader.kwargs.batch_size=20", "--set", "train.stage2.num_epochs=1")
    for index, entry in enumerate(read(out)["epochs"]):
        steps = seen[3 * index : 3 * index + 3]
        assert sum(size for _, size in steps) == 48
        assert entry["train_loss"] == pytest.approx(sum(loss * size for loss, size in steps) / 48, rel=1e-6)


@pytest.mark.parametrize("scores", [(30.0, 50.0, 40.0, 20.0, 10.0), (0.0, 0.0, 0.0, 0.0, 0.0), (float("nan"),) * 5])
def test_stage_2_starts_from_the_best_of_stage_1(train, monkeypatch, scores):
    """Whatever the validation says, also 0 and NaN, and also when stage II is never as good as stage I was."""
    import train_fixture

    from akd_ext.train.tasks import image_classification as images
    from akd_ext.train.tasks.evaluate import Accuracy

    after = []  # the student's weights when each epoch is validated

    def fake_evaluate(model, loader, *args, **kwargs):
        if len(after) == len(scores):  # the test after the last epoch
            return Accuracy(0.0, None)
        after.append({key: value.clone() for key, value in model.state_dict().items()})
        return Accuracy(scores[len(after) - 1], None)

    monkeypatch.setattr("akd_ext.train.trainer.check_teacher", lambda *args, **kwargs: None)  # it evaluates, too
    monkeypatch.setattr(images, "evaluate", fake_evaluate)
    train_fixture.SEEN.clear()
    code, out = train()
    assert code == 0
    best = 1 if scores[1] == 50.0 else 0
    start_of_stage_2 = next(state for epoch, stage, state in train_fixture.SEEN if stage == 2)
    assert same(start_of_stage_2, after[best])
    assert not same(start_of_stage_2, after[2])  # not merely the last of stage I
    assert same(weights(out / "best.safetensors"), after[best])
    assert same(weights(out / "last.safetensors"), after[4])
    assert same(torch.load(out / "checkpoint.pt", weights_only=True)["model"], after[best])  # what -test_only reads
    results = read(out)
    assert results["best"]["epoch"] == best + 1 and results["best"]["stage"] == 1
    assert results["best_per_stage"]["2"]["epoch"] == 4


@pytest.mark.integration
def test_same_seed_same_results_and_another_seed_others(train):
    (_, a), (_, b), (_, c) = train(out="a"), train(out="b"), train(out="c", seed=1)
    assert without_times(read(a)) == without_times(read(b))
    for name in ("best.safetensors", "last.safetensors"):
        assert (a / name).read_bytes() == (b / name).read_bytes()
    assert not same(weights(a / "best.safetensors"), weights(c / "best.safetensors"))


def test_the_test_split_is_not_read_before_training_has_ended(train, monkeypatch):
    import train_fixture

    read_item, order = train_fixture.TinyImages.__getitem__, []

    def spy(self, index):
        order.append(len(self))
        return read_item(self, index)

    monkeypatch.setattr(train_fixture.TinyImages, "__getitem__", spy)
    train()
    first_test = order.index(24)  # the sizes tell the splits apart: 48, 30 and 24 samples
    assert set(order[first_test:]) == {24}
    assert len(order) - first_test == 3 * 24  # last, best, teacher


def test_the_frozen_teacher_is_not_changed_by_training(train, teacher, monkeypatch):
    """torchdistill leaves it in train mode, so that its BatchNorm statistics drift."""
    from akd_ext.train import build

    teachers = []
    make = build.get_distillation_box

    def spy(teacher_model, *args):
        teachers.append(teacher_model)
        return make(teacher_model, *args)

    monkeypatch.setattr(build, "get_distillation_box", spy)
    # The default pre-epoch process does not touch the teacher, unlike the plug-in's.
    process = "pre_epoch_process=default_pre_epoch_process_with_teacher"
    code, _ = train("--set", f"train.stage1.{process}", "--set", f"train.stage2.{process}")
    assert code == 0
    assert same(teachers[0].state_dict(), torch.load(teacher, weights_only=True))


@pytest.mark.integration
def test_cached_logits_are_kept_as_amp_computes_them_and_told_of_once_a_stage(train, tmp_path, capsys):
    from akd_ext.logit_cache import LogitCache

    wrapper = f"{{key: IndexedDatasetWrapper, kwargs: {{cache_dir: {tmp_path / 'logits'}}}}}"
    cached = [
        *("--set", "dependencies=[train_fixture, akd_ext.torchdistill]"),
        *("--set", "train.stage1.pre_epoch_process=annealing_pre_epoch_process"),
        *("--set", "train.stage2.pre_epoch_process=annealing_pre_epoch_process"),
        *("--set", "train.stage1.teacher.forward_proc=cached_forward"),  # and, by its alias, that of stage 2
        *("--set", f"train.stage1.train_data_loader.dataset_wrapper={wrapper}"),
    ]
    for amp in ([], ["--amp", "bf16"]):
        assert train(*cached, *amp, "--overwrite", quiet=False)[0] == 0
        assert capsys.readouterr().err.count("\nteacher logits: 48 x 6 ") == 2
    dtypes = {LogitCache.open(path).logits.dtype for path in (tmp_path / "logits").iterdir()}
    assert dtypes == {torch.float32, torch.bfloat16}


@pytest.mark.integration
@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_amp_trains_and_stays_near_float32(train, amp):
    accumulate = (
        "--set",
        "train.stage1.optimizer.grad_accum_step=2",
        "--set",
        "train.stage1.optimizer.max_grad_norm=0.5",
    )
    (code, plain), (code_amp, mixed) = train(*accumulate, out="plain"), train(*accumulate, "--amp", amp, out="mixed")
    assert code == code_amp == 0
    for a, b in zip(read(plain)["epochs"], read(mixed)["epochs"], strict=True):
        assert b["train_loss"] == pytest.approx(a["train_loss"], rel=0.05)
    a, b = weights(plain / "last.safetensors"), weights(mixed / "last.safetensors")
    assert all(b[key].dtype == a[key].dtype for key in a)  # the weights themselves stay float32
    assert not same(a, b)  # autocast was really on


def test_fp16_clips_unscaled_gradients_and_steps_through_the_scaler():
    from types import SimpleNamespace

    from torchdistill.core.interfaces.post_forward_proc import default_post_forward_process

    from akd_ext.train.system.precision import Precision

    weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    box = SimpleNamespace(
        optimizer=torch.optim.SGD([weight], lr=1.0), max_grad_norm=1.0, grad_accum_step=2, stage_grad_count=0,
        accelerator=None, lr_scheduler=None, scheduling_step=0,
    )  # fmt: skip
    optimizer, precision = box.optimizer, Precision("fp16", torch.device("cpu"))
    with precision.steps(box):
        for _ in range(2):  # the mean of two gradients w is w itself: norm 5, clipped to 1
            default_post_forward_process(box, loss=precision.scaled((weight**2).sum() / 2))
    torch.testing.assert_close(weight.data, torch.tensor([3.0 - 0.6, 4.0 - 0.8]))
    assert box.optimizer is optimizer and box.max_grad_norm == 1.0
    before = weight.detach().clone()
    with precision.steps(box):
        for _ in range(2):
            default_post_forward_process(box, loss=precision.scaled((weight * float("inf")).sum()))
    assert torch.equal(weight.data, before)  # an overflow skips the step


@pytest.mark.integration
def test_channels_last_gives_the_same_student(train):
    (_, plain), (code, nhwc) = train(out="plain"), train("--channels_last", out="nhwc")
    assert code == 0
    a, b = weights(plain / "last.safetensors"), weights(nhwc / "last.safetensors")
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-3, atol=1e-4)


@pytest.mark.integration
def test_compile_compiles_both_models_in_place(train, monkeypatch):
    """With the identity as compiler: the state_dict keys and the numbers must be the same."""
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self))
    (_, plain), (code, other) = train(out="plain"), train("--compile", out="compiled")
    assert code == 0 and len({id(module) for module in compiled}) == 2
    assert same(weights(plain / "last.safetensors"), weights(other / "last.safetensors"))


@pytest.mark.integration
def test_test_only_tests_the_checkpoint_and_leaves_the_results_alone(train, capfd):
    _, out = train()
    before = (out / "results.json").read_bytes(), (out / "train.log").read_bytes()
    code, _ = train("-test_only")
    assert code == 0
    assert ((out / "results.json").read_bytes(), (out / "train.log").read_bytes()) == before
    tested = json.loads((out / "test.json").read_text())
    results = read(out)
    assert tested == {"student": results["best"]["test_accuracy"], "teacher": results["teacher"]["test_accuracy"]}
    code, _ = train("-test_only", "-student_only")
    assert code == 0 and json.loads((out / "test.json").read_text())["teacher"] is None


def test_set_changes_values_and_the_resolved_config_runs_again(train, tmp_path):
    args = ("--set", "train.stage1.num_epochs=1", "--set", "train.stage2.num_epochs=1", "--set",
            "train.stage2.optimizer.kwargs.lr=1e-3", "--set", "datasets.tiny/train.init.kwargs.size=32")  # fmt: skip
    code, out = train(*args)
    assert code == 0 and [e["stage"] for e in read(out)["epochs"]] == [1, 2]
    again = tmp_path / "again"
    assert main(["--config", str(out / "config.yaml"), "--seed", "0", "--device", "cpu", "--quiet",
                 "--output_dir", str(again)]) == 0  # fmt: skip
    assert same(weights(out / "last.safetensors"), weights(again / "last.safetensors"))


@pytest.mark.integration
def test_dst_ckpt_and_the_src_ckpt_that_names_it_move_into_the_output_folder(train, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, out = train()
    assert (out / "checkpoint.pt").is_file()
    assert not (tmp_path / "resource").exists()  # where the YAML itself would have put it
    text = (out / "config.yaml").read_text()
    assert text.count(str(out / "checkpoint.pt")) + text.count("*student_ckpt") >= 2
    assert "./resource/" not in text


@pytest.mark.integration
def test_without_output_dir_the_checkpoint_goes_where_the_yaml_says(teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = main(["--config", TINY, "--set", f"models.teacher_model.src_ckpt={teacher}", "--seed", "0", "--quiet",
                 "--run_log", str(tmp_path / "run.log")])  # fmt: skip
    assert code == 0
    assert (tmp_path / "resource" / "tiny-student.pt").is_file()
    assert "epoch 5/5  " in (tmp_path / "run.log").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["resource", "run.log"]


def test_testing_the_student_alone_needs_no_teacher(train):
    _, out = train()
    code, _ = train("-test_only", "-student_only", "--set", "models.teacher_model.src_ckpt=gone.pt")
    assert code == 0


@pytest.mark.integration
def test_the_real_annealing_loss_reports_its_temperature(train):
    term = "train.stage1.criterion.kwargs.sub_terms.akd.criterion.key=AnnealingKDLoss"
    code, out = train("--set", "dependencies=[train_fixture, akd_ext.torchdistill]", "--set", term,
                      "--set", "train.stage1.pre_epoch_process=annealing_pre_epoch_process")  # fmt: skip
    assert code == 0
    assert [(e["T"], e["phi"]) for e in read(out)["epochs"]][:3] == [(3, 0.3333333), (2, 0.6666667), (1, 1.0)]


@pytest.mark.integration
def test_on_a_terminal_there_is_a_bar_and_log_lines_do_not_tear_it(train, tmp_path, monkeypatch):
    import io

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TQDM_MININTERVAL", "0")
    code, _ = train("--set", "train.log_freq=1", quiet=False)
    assert code == 0
    shown = terminal.getvalue().replace("\n", "\r").split("\r")
    bars = [line for line in shown if "|" in line and "stage 1/2" in line]
    assert any(all(word in line for word in ("loss ", "T 3", "Phi 0.333", "images/s ", "epoch 1/5")) for line in bars)
    assert all("<" in line for line in bars)  # [time spent<time left
    assert sum(line.startswith("epoch ") and " val " in line for line in shown) == 5  # each on a line of its own
    assert sum("*: the best epoch of its stage" in line for line in shown) == 1  # what the mark means
    folders = (str(tmp_path), str(tmp_path.parent))  # as long as they happen to be
    without_path = [line.strip().replace(folders[0], "").replace(folders[1], "") for line in shown]
    assert max(len(line) for line in without_path if "|" not in line) <= 100  # a bar is as wide as the terminal
    assert not any("  step 1/3  " in line for line in shown)  # the bar says it


@pytest.mark.integration
def test_a_safetensors_file_and_a_dataparallel_checkpoint_can_be_teachers(train, teacher, tmp_path):
    from safetensors.torch import save_file

    state = torch.load(teacher, weights_only=True)
    save_file(state, tmp_path / "teacher.safetensors")
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "wrapped.th")
    (_, a), (_, b), (_, c) = (
        train(out="a"),
        train("--set", f"models.teacher_model.src_ckpt={tmp_path / 'teacher.safetensors'}", out="b"),
        train("--set", f"models.teacher_model.src_ckpt={tmp_path / 'wrapped.th'}", out="c"),
    )
    for other in (b, c):
        assert same(weights(a / "last.safetensors"), weights(other / "last.safetensors"))


def test_a_nan_loss_stops_the_run_with_one_sentence(train, capfd):
    code, out = train("--set", "train.stage1.pre_epoch_process=poison_pre_epoch", draw=True)
    assert code == 1
    errors = capfd.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert "the loss became nan in stage 1, epoch 2" in errors[0]
    results = read(out)
    assert results["complete"] is False and len(results["epochs"]) == 1
    assert (out / "best.safetensors").is_file() and (out / "curves.png").is_file()


def test_plateau_scheduler_gets_a_metric(train):
    code, _ = train(
        "--set", "train.stage1.scheduler.key=ReduceLROnPlateau", "--set", "train.stage1.scheduler.kwargs={}"
    )
    assert code == 0


@pytest.mark.integration
def test_no_step_waits_for_the_device(train, monkeypatch):
    """On a GPU reading a value waits for all work before it; four times the steps must not mean more readings."""
    from torch.utils._python_dispatch import TorchDispatchMode

    readings = 0
    tolist = torch.Tensor.tolist  # on the CPU it reads memory without asking the dispatcher

    def counted_tolist(self):
        nonlocal readings
        readings += 1
        return tolist(self)

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            nonlocal readings
            readings += op is torch.ops.aten._local_scalar_dense.default
            return op(*args, **(kwargs or {}))

    monkeypatch.setattr(torch.Tensor, "tolist", counted_tolist)
    found = []
    for batch in (16, 4):  # 3 and 12 steps per epoch; the validation and test loaders follow by an alias
        readings = 0
        with Count():
            code, _ = train("--set", f"train.stage1.train_data_loader.kwargs.batch_size={batch}",
                            "--set", "train.log_freq=1000", out=f"b{batch}")  # fmt: skip
        assert code == 0
        found.append(readings)
    assert found[0] == found[1] > 0


@pytest.mark.integration
def test_runs_as_a_module_with_a_plain_console(tmp_path, teacher):
    command = [sys.executable, "-m", "akd_ext.train.cli", "--config", TINY, "--seed", "0",
               "--set", f"models.teacher_model.src_ckpt={teacher}", "--output_dir", str(tmp_path / "out")]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": f"{SUPPORT}:{ROOT}"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert sum(line.startswith("epoch ") and " val " in line for line in done.stderr.splitlines()) == 5
    assert "torchdistill.core" not in done.stderr  # its chatter is in train.log
    assert "torchdistill.core" in (tmp_path / "out" / "train.log").read_text()
