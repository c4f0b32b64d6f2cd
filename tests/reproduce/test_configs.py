"""The YAML files of the repository are what the table says, and PyYAML reads back what the writer meant."""

import pytest

from akd_ext.reproduce import configs
from akd_ext.reproduce import experiments as tables
from akd_ext.reproduce.configs_yaml import Note, Tagged, to_yaml
from akd_ext.reproduce.paths import config_dir


def test_the_files_and_the_table_do_not_differ():
    assert configs.drift(config_dir()) == []


def test_writing_then_checking_is_quiet(tmp_path, capsys):
    assert configs.main(["--write", "--root", str(tmp_path)]) == 0
    assert configs.main(["--check", "--root", str(tmp_path)]) == 0
    assert capsys.readouterr().err == ""


def test_check_names_what_drifted(tmp_path, capsys):
    configs.main(["--write", "--root", str(tmp_path)])
    (tmp_path / "digits" / "kd.yaml").unlink()
    (tmp_path / "digits" / "takd.yaml").write_text("train: {}\n")
    (tmp_path / "digits" / "mine.yaml").write_text("train: {}\n")
    assert configs.main(["--check", "--root", str(tmp_path)]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "digits/kd.yaml is missing",
        "digits/mine.yaml is in no table",
        "digits/takd.yaml differs from the table",
        "run: python -m akd_ext.reproduce.configs --write",
    ]


def test_the_writer_means_what_yaml_reads():
    yaml = pytest.importorskip("yaml", reason="reads back what was written: pip install '.[test]'")
    value = {
        "text": "it's: a #text",
        "numbers": [1, 2.5, 1e-05, 1e-4, 3e20],
        "truth": {"a": True, "b": False, "c": None},
        "empty": {},
        "items": [{"name": "a", "more": {"b": 1}}, {"name": "c"}],
    }
    assert yaml.safe_load(to_yaml(value)) == value
    assert yaml.safe_load(to_yaml({"x": Note(3, "why")})) == {"x": 3}
    assert to_yaml({"x": Tagged("!import_get", {"key": "a.b"})}) == "x: !import_get\n  key: 'a.b'\n"


def test_the_writer_refuses_what_it_cannot_write():
    with pytest.raises(TypeError, match="cannot write a set"):
        to_yaml({"x": {1}})


@pytest.mark.parametrize("name", tables.DIGITS.runs)
def test_every_student_of_the_digits_trains_equally_long(name):
    run = tables.DIGITS.runs[name]
    if run.network == "student":
        assert sum(stage.epochs for stage in run.stages) == 360


def test_annealing_has_the_same_number_of_epochs_for_every_temperature():
    assert tables.DIGITS.runs["annealing_kd"].stages[0].epochs % tables.DIGITS.tau_max == 0


def test_lambda_one_is_refused_where_torchdistill_gets_it_wrong():
    from dataclasses import replace

    with pytest.raises(ValueError, match=r"no T\^2 when lambda is 1"):
        configs.render(replace(tables.DIGITS, kd_lambda=1), "kd")


def plug_in():
    pytest.importorskip("torchdistill", reason="the models are in the plug-in: pip install '.[test]'")
    pytest.importorskip("torchvision.datasets", reason="torchdistill needs torchvision: pip install '.[test]'")
    import akd_ext.torchdistill  # noqa: F401


@pytest.mark.parametrize("name", tables.EXPERIMENTS)
def test_the_tables_parameter_counts_are_the_models(name):
    plug_in()
    from torchdistill.models.registry import get_model

    for network in tables.EXPERIMENTS[name].networks.values():
        assert sum(p.numel() for p in get_model(network.key, **network.kwargs).parameters()) == network.parameters


@pytest.mark.parametrize("name", tables.EXPERIMENTS)
def test_akd_train_finds_nothing_wrong_with_any_file(name, tmp_path):
    plug_in()
    from akd_ext.train.config.load import load_config

    teacher = tmp_path / "teacher.pt"
    teacher.touch()
    experiment = tables.EXPERIMENTS[name]
    for run, row in experiment.runs.items():
        sets = [f"models.teacher_model.src_ckpt={teacher}"] if row.teacher else []
        load_config(str(config_dir() / experiment.folder / f"{run}.yaml"), sets, str(tmp_path))


def test_every_row_of_the_papers_cifar_tables_is_there():
    for classes in (10, 100):
        for family in ("resnet", "cnn"):
            runs = tables.EXPERIMENTS[f"cifar{classes}-{family}"].runs
            assert [name for name, run in runs.items() if not run.ablation] == [
                "teacher", "ta", "scratch", "kd", "takd", "annealing_kd",
            ]  # fmt: skip
            for run in runs.values():  # Table 6
                assert {stage.epochs for stage in run.stages} == {160}
            assert len(runs["annealing_kd"].stages) == 2


def test_every_student_on_the_cpu_trains_for_40_epochs():
    for name, run in tables.EXPERIMENTS["cifar10-cpu"].runs.items():
        assert sum(stage.epochs for stage in run.stages) == (160 if name == "teacher" else 40)
