"""A run that would overwrite what it reads is refused before anything is written."""

from __future__ import annotations

import os

import pytest
import torch
from places import TINY

pytest.importorskip("torchdistill", reason="akd-train runs torchdistill's boxes; pip install 'akd_ext[experiments]'")

from akd_ext.train.cli import main

TEACHER, STUDENT = "models.teacher_model.src_ckpt", "models.student_model.src_ckpt"


@pytest.fixture
def refused(tmp_path, monkeypatch, capfd):
    """Runs akd-train with a teacher in ``mine/checkpoint.pt``; the sentence, if every file is as it was."""
    import train_fixture

    monkeypatch.chdir(tmp_path)
    os.makedirs("mine")
    torch.save(train_fixture.tiny_net(width=8).state_dict(), "mine/checkpoint.pt")
    os.symlink("mine", "linked")

    def run(*args: str) -> str:
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        code = main(["--config", TINY, "--device", "cpu", "--quiet", "--set", f"{TEACHER}=mine/checkpoint.pt", *args])
        assert code == 2 and {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
        return capfd.readouterr().err.removeprefix("akd-train: error: ")

    return run


@pytest.mark.parametrize(
    "args",
    [
        ["--output_dir", "mine"],
        ["--output_dir", "linked"],
        ["--output_dir", "linked/../mine/"],
        ["--set", "models.student_model.dst_ckpt=./linked/checkpoint.pt"],
        ["--output_dir", "new", "--set", "train.teacher={dst_ckpt: mine/checkpoint.pt}"],
    ],
    ids=lambda args: args[-1],
)
def test_the_teachers_file_is_not_overwritten(refused, args):
    said = refused(*args)
    assert f"which the run reads as {TEACHER}, and would overwrite it" in said


def test_a_hard_link_to_the_teacher_is_the_teacher(refused):
    os.link("mine/checkpoint.pt", "same.pt")
    assert f"reads as {TEACHER}" in refused("--set", "models.student_model.dst_ckpt=same.pt")


def test_a_checkpoint_to_start_from_is_not_overwritten(refused):
    os.makedirs("earlier")
    os.link("mine/checkpoint.pt", "earlier/best.safetensors")
    said = refused("--output_dir", "earlier", "--set", f"{STUDENT}=earlier/best.safetensors")
    assert said.startswith("--output_dir: it leads to 'earlier/best.safetensors'")


def test_the_folder_of_the_data_is_no_place_for_a_run(refused):
    os.makedirs("data")
    data = "datasets.tiny/train=!import_call {key: torchvision.datasets.CIFAR10, init: {kwargs: {root: data}}}"
    assert "reads as datasets.tiny/train.init.kwargs.root" in refused("--output_dir", "./data/", "--set", data)


def test_the_folder_of_a_hugging_face_model_is_no_place_for_a_student(tmp_path, capfd, monkeypatch):
    from akd_ext.reproduce.recipes import config_dir

    monkeypatch.chdir(tmp_path)
    os.makedirs("runs/teacher/checkpoint")
    config = config_dir() / "glue" / "distilroberta" / "annealing_kd.yaml"
    assert main(["--config", str(config), "--output_dir", "runs/teacher", "--teacher", "runs/teacher/checkpoint"]) == 2
    said = capfd.readouterr().err
    assert "which the run reads as models.teacher_model.config_kwargs.pretrained_model_name_or_path" in said
    assert os.listdir("runs/teacher") == ["checkpoint"]


@pytest.mark.parametrize("place", ["glue", "linked/RTE"])
def test_the_folder_of_glue_is_no_place_for_a_run(tmp_path, capfd, monkeypatch, place):
    from akd_ext.reproduce.recipes import config_dir

    monkeypatch.chdir(tmp_path)
    os.makedirs("glue/RTE")
    os.makedirs("teacher")
    os.symlink("glue", "linked")
    config = config_dir() / "glue" / "distilroberta" / "annealing_kd.yaml"
    assert main(["--config", str(config), "--output_dir", place, "--glue_dir", "glue", "--teacher", "teacher"]) == 2
    said = capfd.readouterr().err
    assert said.startswith(f"akd-train: error: --output_dir: it leads to '{place}', which the run reads as --glue_dir")
    assert os.listdir("glue") == ["RTE"] and os.listdir("glue/RTE") == []
