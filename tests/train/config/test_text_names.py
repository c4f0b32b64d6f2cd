"""Names of text models on the command line: which flag, which folder, what a folder is taken for."""

from __future__ import annotations

import pytest

for package in ("torchdistill", "torchvision.datasets"):
    pytest.importorskip(package, reason="akd_ext.experiments needs it: pip install '.[experiments]'")

from akd_ext.reproduce.recipes import config_dir  # noqa: E402
from akd_ext.train.config.load import TextChoices, load_config  # noqa: E402
from akd_ext.train.system.errors import ConfigError  # noqa: E402

OWN = config_dir() / "glue" / "own_data"


def refused(file, **choices) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(str(OWN / file), text=TextChoices(**choices))
    return str(caught.value)


def test_a_teacher_for_a_file_of_one_model_is_told_of_the_other_flag():
    said = refused("teacher.yaml", teacher="roberta-large")
    assert said.endswith("has one model, models.model, and nobody teaches it; --student names that model, whatever it is "
                         "trained for")  # fmt: skip
    config = load_config(str(OWN / "teacher.yaml"), text=TextChoices(student="roberta-base"))
    named = config.tree.plain()["models"]["model"]
    assert {named[part]["pretrained_model_name_or_path"] for part in ("config_kwargs", "model_kwargs")} == {
        "roberta-base"
    }


def test_a_mistyped_path_is_no_name_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "there is no folder 'runs/ct/chekpoint'; " in refused("annealing_kd.yaml", teacher="runs/ct/chekpoint")
    load_config(str(OWN / "teacher.yaml"), text=TextChoices(student="google/bert_uncased_L-4_H-512_A-8"))
    assert "there is no folder './runs/ct'; " in refused("annealing_kd.yaml", teacher="./runs/ct")
    (tmp_path / "google").mkdir()  # a clone, perhaps: transformers takes the whole path alone for a folder
    load_config(str(OWN / "teacher.yaml"), text=TextChoices(student="google/bert_uncased_L-4_H-512_A-8"))


def test_the_folder_of_a_run_is_told_where_its_model_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "ct" / "checkpoint").mkdir(parents=True)
    said = refused("annealing_kd.yaml", teacher="runs/ct")
    assert (
        "'runs/ct' is the folder of a run; its model is in 'runs/ct/checkpoint': name that, as by --teacher runs/ct/"
        in said
    )
    load_config(str(OWN / "annealing_kd.yaml"), text=TextChoices(teacher="runs/ct/checkpoint"))


def test_a_folder_is_said_to_be_one(tmp_path):
    from places import TINY

    (tmp_path / "a.yaml").touch()
    with pytest.raises(ConfigError, match=r"--config: '.*' is a folder; accepted: a YAML file, such as '.*a.yaml'"):
        load_config(str(tmp_path))
    (tmp_path / "x.pt").touch()
    wanted = r"models.teacher_model.src_ckpt: '.*' is a folder; accepted: a checkpoint file, such as '.*x.pt'"
    with pytest.raises(ConfigError, match=wanted):
        load_config(TINY, [f"models.teacher_model.src_ckpt={tmp_path}"])
