"""The digits configuration in torchdistill's boxes and in its own script: two stages, the best of stage I between."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torchdistill", reason="the plug-in needs torchdistill: pip install '.[test]'")
pytest.importorskip("torchvision.datasets", reason="torchdistill needs torchvision: pip install '.[test]'")
pytest.importorskip("sklearn", reason="the digits come with scikit-learn: pip install '.[test]'")

import torch
from torchdistill.common import main_util, yaml_util
from torchdistill.core.distillation import get_distillation_box
from torchdistill.models.registry import get_model

from akd_ext.reproduce import cli as reproduce
from akd_ext.reproduce.experiments import EXPERIMENTS
from akd_ext.reproduce.recipes import config_dir, edited, whole_file

CPU = torch.device("cpu")
RECIPE = edited(config_dir() / "digits" / "annealing_kd.yaml", ()).plain()
# Validation accuracies as if measured: the best of stage I is its third epoch, stage II never beats it.
ACCURACIES = [10.0, 20.0, 60.0, 30.0, 40.0, 50.0]
STAGE1, STAGE2 = 4, 2


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in b)


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    """Runs annealing_kd.yaml, shortened, through the steps of torchdistill's image_classification.py."""
    config = yaml_util.load_yaml_file(str(config_dir() / "digits" / "annealing_kd.yaml"))
    main_util.import_dependencies(config["dependencies"])
    checkpoint = str(tmp_path_factory.mktemp("checkpoints") / "student.pt")
    train = config["train"]
    assert train["stage2"]["student"]["src_ckpt"] == config["models"]["student_model"]["dst_ckpt"]
    train["stage2"]["student"]["src_ckpt"] = checkpoint
    train["stage1"]["num_epochs"], train["stage2"]["num_epochs"] = STAGE1, STAGE2
    train["stage1"]["criterion"]["kwargs"]["sub_terms"]["annealing_kd"]["criterion"]["kwargs"]["tau_max"] = STAGE1

    torch.manual_seed(0)
    teacher, student = (get_model(m["key"], **m["kwargs"]) for m in config["models"].values())
    teacher_calls = []
    teacher.register_forward_hook(lambda *_: teacher_calls.append(1))
    box = get_distillation_box(teacher, student, config["datasets"], train, CPU, None, False, 1)
    before, history, best = weights(teacher), [], 0.0
    for epoch in range(box.num_epochs):
        entry = {"stage": box.stage_number, "start": weights(box.student_model), "optimizer": box.optimizer}
        calls = len(teacher_calls)
        box.pre_epoch_process(epoch=epoch)
        for samples, targets, supp_dict in box.train_data_loader:
            loss = box.forward_process(samples, targets, supp_dict)
            box.post_forward_process(loss=loss)
        term = next(iter(box.criterion.term_dict.values()))[0]
        entry |= {
            "T": getattr(term, "temperature", None),
            "teacher_calls": len(teacher_calls) - calls,
            "lr": box.optimizer.param_groups[0]["lr"],
            "end": weights(box.student_model),
        }
        history.append(entry)
        if ACCURACIES[epoch] > best:
            best = ACCURACIES[epoch]
            main_util.save_ckpt(box.student_model, box.optimizer, box.lr_scheduler, best, None, checkpoint)
        box.post_epoch_process()
    assert same(before, weights(teacher)), "the frozen teacher changed"
    return history


@pytest.mark.integration
def test_stage_one_anneals_and_stage_two_does_not(history):
    assert [entry["stage"] for entry in history] == [1, 1, 1, 1, 2, 2]
    assert [entry["T"] for entry in history] == [4, 3, 2, 1, None, None]


def test_stage_two_starts_from_the_best_of_stage_one(history):
    assert same(history[STAGE1]["start"], history[2]["end"])
    assert not same(history[STAGE1]["start"], history[STAGE1 - 1]["end"])


def test_stage_two_has_a_fresh_optimizer_with_its_own_learning_rate(history):
    assert history[STAGE1]["optimizer"] is not history[STAGE1 - 1]["optimizer"]
    assert history[0]["lr"] == RECIPE["train"]["stage1"]["optimizer"]["kwargs"]["lr"]
    assert history[STAGE1]["lr"] == RECIPE["train"]["stage2"]["optimizer"]["kwargs"]["lr"]


def test_the_teacher_runs_in_stage_one_only(history):
    size = RECIPE["datasets"]["digits/train"].value["init"]["kwargs"]["train_size"]
    batches = -(-size // RECIPE["train"]["stage1"]["train_data_loader"]["kwargs"]["batch_size"])
    assert [entry["teacher_calls"] for entry in history] == [batches] * STAGE1 + [0] * STAGE2


@pytest.fixture(scope="module")
def script():
    root = os.environ.get("TORCHDISTILL_EXAMPLES")
    if not root:
        pytest.skip(
            "set TORCHDISTILL_EXAMPLES to the folder examples/ of a clone of torchdistill to run its own script"
        )
    path = Path(root) / "torchvision" / "image_classification.py"
    assert path.is_file(), f"TORCHDISTILL_EXAMPLES is {root}, but there is no {path}"
    return path


def run_script(script, config, folder):
    done = subprocess.run(
        [sys.executable, script, "--config", config, "--device", "cpu", "--seed", "0"],
        check=False, cwd=folder, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    log = done.stdout + done.stderr
    assert done.returncode == 0, log[-2000:]
    return log


def test_torchdistills_own_script_runs_the_files_unmodified(script, tmp_path):
    """Teacher first, then Annealing-KD, as a user of torchdistill alone would."""
    for name in ("teacher", "annealing_kd"):
        log = run_script(script, config_dir() / "digits" / f"{name}.yaml", tmp_path)
        assert (tmp_path / "runs" / "digits" / name / "checkpoint.pt").is_file()

    stage1 = RECIPE["train"]["stage1"]["num_epochs"]
    temperatures = [int(t) for t in re.findall(r"T = (\d+), Phi", log)]
    assert temperatures == sorted(temperatures, reverse=True)
    assert len(temperatures) == stage1
    assert set(temperatures) == set(range(1, 10 + 1))
    entry = log[log.index("T = 1, Phi") : log.index("Advanced to stage 2")]
    assert "Loading model parameters" in entry, "the best of stage I was not loaded"
    assert float(re.findall(r"Acc@1 ([\d.]+)", log)[-1]) > 85


@pytest.mark.integration
def test_a_written_row_trains_in_torchdistills_script_as_in_akd_reproduce(script, tmp_path, monkeypatch):
    """The same validation accuracies, epoch by epoch, whoever runs the loop."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert reproduce.main(["digits", "--write_configs", "written"]) == 0
    assert reproduce.main(["digits", "--only", "scratch", "--seeds", "1", "--output_dir", "out", "--jobs", "1"]) == 0
    results = json.loads((tmp_path / "out" / "scratch" / "seed0" / "results.json").read_text())
    log = run_script(script, tmp_path / "written" / "scratch.yaml", tmp_path)
    theirs = [float(value) for value in re.findall(r"\* Acc@1 ([\d.]+)", log)]
    ours = [epoch["val_accuracy"] for epoch in results["epochs"]]
    assert len(ours) == 360 and theirs[: len(ours)] == pytest.approx(ours, abs=5e-4)  # the log has 4 decimals


@pytest.mark.parametrize("experiment, name", [("cifar10-cnn", "kd"), ("cifar10-cnn_no_aug", "annealing_kd")])
def test_torchdistills_own_script_runs_cifar(script, tmp_path, experiment, name):
    """One epoch a stage on the real images; the teacher as small as the student, because a minute is enough."""
    data = os.environ.get("AKD_EXT_CIFAR")
    if not data:
        pytest.skip("set AKD_EXT_CIFAR to a folder with torchvision's CIFAR-10")
    text = whole_file(EXPERIMENTS[experiment], name)
    for old, new in (("'./data'", repr(data)), ("num_epochs: 160", "num_epochs: 1"), ("plain_cnn10", "plain_cnn2")):
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "config.yaml").write_text(text)
    log = run_script(script, tmp_path / "config.yaml", tmp_path)
    assert float(re.findall(r"Acc@1 ([\d.]+)", log)[-1]) > 12  # the last is the student's; guessing gives 10
