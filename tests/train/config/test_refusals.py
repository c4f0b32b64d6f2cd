"""Refusals that need a certain machine, package or file, which these tests stand in for."""

import json
import sys

import pytest
import torch
from subject_process import run

pytest.importorskip("torchdistill", reason="akd_ext.train needs torchdistill: pip install '.[test]'")

from akd_ext import info
from akd_ext.reproduce import recipes
from akd_ext.reproduce.pretrained_teacher import import_checkpoint
from akd_ext.train import cli as train
from akd_ext.train.checkpoint.reading import read_checkpoint
from akd_ext.train.config.load import load_config
from akd_ext.train.reporting.tensorboard import TensorBoardLogger
from akd_ext.train.system.device import pick_device
from akd_ext.train.system.errors import ConfigError
from akd_ext.train.system.versions import versions


@pytest.mark.parametrize(
    ("name", "words"),
    [("cuda:2", "there are only 2 CUDA devices"), ("mps", "has no MPS here"), ("meta", "'meta' is not supported")],
)
def test_a_device_that_is_not_there_is_refused(name, words, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=words):
        pick_device(name)


def test_a_given_teacher_may_be_a_safetensors_file(tmp_path):
    from safetensors.torch import save_file

    weight = torch.arange(4.0)
    save_file({"fc.weight": weight}, tmp_path / "teacher.safetensors")
    import_checkpoint(tmp_path / "teacher.safetensors", tmp_path / "made" / "checkpoint.pt")
    assert torch.equal(read_checkpoint(str(tmp_path / "made" / "checkpoint.pt"))["model"]["fc.weight"], weight)


def test_a_given_teacher_without_weights_is_refused(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "teacher.pt")
    with pytest.raises(ConfigError, match=r"teacher\.pt' is no checkpoint of weights: it holds no state dict"):
        import_checkpoint(tmp_path / "teacher.pt", tmp_path / "checkpoint.pt")


def test_configs_that_were_not_installed_are_looked_for_in_two_places(tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "__file__", str(tmp_path / "akd_ext" / "reproduce" / "recipes.py"))
    with pytest.raises(FileNotFoundError, match="torchdistill_configs is neither"):
        recipes.config_dir()


def test_a_package_that_is_not_installed_is_said_so():
    found = versions(torch.device("cpu"), ("akd_test_nothing",))
    assert found["akd_test_nothing"] == "not installed" and found["torch"] == torch.__version__.partition("+")[0]
    assert versions(torch.device("cuda"))["cuda"] == str(torch.version.cuda)


def test_info_lists_the_gpus(monkeypatch):
    class Properties:
        name, major, minor, total_memory = "Some GPU", 9, 0, 80 * 2**30

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    assert json.loads(json.dumps(info.info()))["machine"]["gpu 0"] == "Some GPU, sm_90, 80 GiB"


@pytest.mark.integration
@pytest.mark.parametrize("missing", ["torchdistill", "torchvision"])
def test_the_plug_in_says_what_it_needs(missing):
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] == {missing!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "try:\n"
        "    import akd_ext.torchdistill\n"
        "except ModuleNotFoundError as error:\n"
        "    print(error.name, error)\n"
    )
    assert run(["-c", code]).startswith(
        f"{missing} akd_ext.torchdistill is a plug-in for torchdistill and torchvision; "
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("private=3", "private: it must be a list of test sets to answer"),
        ("private=[{pred_output: 3}]", "private.0: it needs a private_data_loader and pred_output"),
        ("datasets.glue=3", "datasets.glue: it must be a mapping with name and dataset_id_map"),
        ("datasets.glue.dataset_id_map=", "dataset_id_map: it is missing"),
        ("datasets.glue.max_length=1", "max_length: it must be a whole number from 2, not 1"),
        ("models.model.dst_ckpt=", "'dst_ckpt' is missing: it names the folder"),
    ],
)
def test_a_text_yaml_that_cannot_work_is_refused(change, words):
    path = recipes.config_dir() / "glue" / "distilroberta" / "scratch.yaml"
    with pytest.raises(ConfigError) as refused:
        load_config(str(path), [change])
    assert words in str(refused.value)


def test_a_package_that_a_flag_needs_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        TensorBoardLogger(str(tmp_path))
    monkeypatch.setitem(sys.modules, "torchdistill", None)
    assert train.main(["--config", "any.yaml"]) == 2
    assert "torchdistill is not installed; pip install '.[experiments]'" in capsys.readouterr().err
