"""Mistakes in a YAML that torchdistill passes over without a word: each is refused, or said in one warning."""

# ruff: noqa: E501 - the tables of faults are read line by line

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from places import TINY

pytest.importorskip("torchdistill", reason="akd-train runs torchdistill's boxes; pip install 'akd_ext[experiments]'")

from akd_ext.reproduce.recipes import config_dir
from akd_ext.train.cli import main
from akd_ext.train.config.load import load_config
from akd_ext.train.system.errors import ConfigError

TEXT = Path(TINY).read_text()
HOOK = "      forward_hook:\n        output: ['4']\n"
STUDENT2 = "      src_ckpt: *student_ckpt\n"
LOSS = "train.stage2.criterion.kwargs.sub_terms"


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Loads the toy YAML with changes (old, new) and ``--set`` overrides."""
    import train_fixture

    monkeypatch.chdir(tmp_path)
    train_fixture.save_teacher(tmp_path)

    def run(*changes, overrides=()):
        text = TEXT
        for old, new in changes:
            assert old in text
            text = text.replace(old, new, 1)
        (tmp_path / "tiny.yaml").write_text(text)
        return load_config("tiny.yaml", list(overrides), "out")

    return run


@pytest.fixture
def refused(load):
    def run(*changes, overrides=()):
        with pytest.raises(ConfigError) as error:
            load(*changes, overrides=overrides)
        return str(error.value)

    return run


DROPPED = [
    # a typing error beside what it was meant to be, or where nothing is required
    (("  stage2:", "  stge2:"), "train.stge2", "'stage2'"),
    (("  stage2:", "  Stage_2:"), "train.Stage_2", "'stage2'"),
    (("  stage2:", "  2:"), "train.2", "'stage2'"),
    (("      dataset_id: *train\n", "      dataset_id: *train\n      datasetid: x\n"), "train.stage1.train_data_loader.datasetid", "'dataset_id'"),
    ((STUDENT2, STUDENT2 + HOOK.replace("output", "outputs")), "train.stage2.student.forward_hook.outputs", "'output'"),
    ((STUDENT2, STUDENT2 + "      freeze_modules: ['0']\n"), "train.stage2.student.freeze_modules", "'frozen_modules'"),
    (("                  uses_label: True", "                  use_label: True"), f"{LOSS}.ce.criterion_wrapper.kwargs.target.use_label", "'uses_label'"),
    (("              kwargs:\n                input:\n", "              kwargs:\n                targets:\n                input:\n"), f"{LOSS}.ce.criterion_wrapper.kwargs.targets", "'target'"),
    (("    init:\n      kwargs:\n        size: 30\n", "    inits:\n      kwargs:\n        size: 30\n"), "datasets.tiny/val.inits", "'init'"),
    (("  test_data_loader:", "  test_dataloader: {}\n  test_data_loader:"), "test.test_dataloader", "'test_data_loader'"),
    (("  - name: train_fixture", "  - name: train_fixture\n    packages: x"), "dependencies.0.packages", "'package'"),
    (("        sub_terms:\n          ce:", "        model_terms: {}\n        sub_terms:\n          ce:"), "train.stage2.criterion.kwargs.model_terms", "'model_term'"),
    # names of torchdistill before version 1
    (("            weight: 0.5", "            factor: 0.5"), f"{LOSS}.kd.weight", "called it 'factor'"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "key_path", "words"), DROPPED, ids=[row[1] for row in DROPPED])
def test_a_key_that_torchdistill_would_drop_is_refused(refused, change, key_path, words):
    sentence = refused(change)
    assert sentence.startswith(f"{key_path}: ") and words in sentence and "(tiny.yaml, line " in sentence


def test_an_argument_that_a_loss_takes_and_never_looks_at_is_refused(refused):
    sentence = refused(overrides=[f"{LOSS}.kd.criterion={{key: ATLoss, kwargs: {{at_pairs: {{}}, modes: paper}}}}"])
    assert (
        sentence.startswith(f"{LOSS}.kd.criterion.kwargs.modes: ATLoss reads no 'modes' here") and "'mode'" in sentence
    )


def test_the_old_name_of_an_optional_key_is_refused(refused):
    sentence = refused(("      kwargs:\n        milestones: [2]", "      params:\n        milestones: [2]"))
    assert sentence.startswith("train.stage1.scheduler.params: before version 1 torchdistill called it 'params'")


def test_other_keys_that_nothing_reads_are_listed_in_one_warning(load, caplog):
    with caplog.at_level(logging.WARNING):
        load(
            ("\ntest:", "\ntracker: {engine: x}\ntest:"),
            ("    num_epochs: 2", "    num_epochs: 2\n    log_freq: 5"),
            (STUDENT2, STUDENT2 + "      dst_chkpoint_of_mine: 'x.pt'\n      _unused: 3\n"),
        )
    (record,) = caplog.records
    for key in ("tracker", "train.stage2.log_freq", "train.stage2.student.dst_chkpoint_of_mine"):
        assert f"{key} (tiny.yaml, line " in record.getMessage()
    assert "_unused" not in record.getMessage()


VALUES = [
    ("train.stage1.scheduler.kwargs.milestones=1,2", "milestones", "a list of whole numbers"),
    ("train.stage1.scheduler.kwargs.milestones=[0.5, 0.75]", "milestones", "a list of whole numbers"),
    ("train.stage1.scheduler.kwargs.milestones=2", "milestones", "a list of whole numbers"),
    ("train.stage1.scheduler.kwargs.gamma='0.1'", "gamma", "must be a number, not '0.1'"),
    ("train.stage1.scheduler={key: StepLR, kwargs: {step_size: 1.5}}", "step_size", "a whole number, not 1.5"),
    ("train.stage1.scheduler.scheduling_step='1'", "scheduling_step", "a whole number, not '1'"),
    ("train.stage1.optimizer.kwargs.momentum='high'", "momentum", "must be a number, not 'high'"),
    ("train.stage1.optimizer.kwargs.nesterov='no'", "nesterov", "True or False, not 'no'"),
    ("train.stage1.optimizer.max_grad_norm=0", "max_grad_norm", "a number above 0, not 0"),
    ("train.stage1.optimizer.max_grad_norm=-1.5", "max_grad_norm", "a number above 0, not -1.5"),
    ("train.stage1.optimizer.grad_accum_step=0", "grad_accum_step", "a whole number from 1, not 0"),
    ("train.stage1.teacher.requires_grad='False'", "requires_grad", "True or False, not 'False'"),
    ("train.stage1.student.frozen_modules='0'", "frozen_modules", "a list, not '0'"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "key", "words"), VALUES, ids=[row[0] for row in VALUES])
def test_a_value_that_would_go_wrong_later_is_refused(refused, override, key, words):
    sentence = refused(overrides=[override])
    assert sentence.split(":")[0].endswith(f".{key}") and words in sentence


def test_a_number_that_yaml_reads_as_text_is_refused_in_a_scheduler(refused):
    sentence = refused(("        milestones: [2]", "        milestones: [2]\n        gamma: 1e-1"))
    assert (
        sentence.startswith("train.stage1.scheduler.kwargs.gamma: YAML reads '1e-1' as text")
        and "write 0.1" in sentence
    )


def test_a_loss_that_stays_one_number_per_sample_is_refused(refused):
    sentence = refused(overrides=[f"{LOSS}.kd.criterion.kwargs.reduction=none"])
    assert sentence.startswith(f"{LOSS}.kd.criterion.kwargs.reduction: 'none' leaves one number per sample")


def test_a_wrapper_around_a_loss_that_needs_none_is_refused(refused):
    wrapper = "{key: SimpleLossWrapper, kwargs: {input: {is_from_teacher: False, module_path: ., io: output}}}"
    sentence = refused(overrides=[f"{LOSS}.kd.criterion_wrapper={wrapper}"])
    assert sentence.startswith(f"{LOSS}.kd.criterion_wrapper: leave it out: KDLoss finds both models' outputs itself")


EMPTY = [
    ("train.stage2=", "train.stage2: the section 'stage2' is empty"),
    ("train.stage1.criterion.kwargs.sub_terms=", "train.stage1.criterion.kwargs.sub_terms: the section 'sub_terms' is empty"),
    ("test.test_data_loader=", "test.test_data_loader: the section 'test_data_loader' is empty"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "sentence"), EMPTY, ids=[row[0] for row in EMPTY])
def test_an_empty_section_is_called_empty(refused, override, sentence):
    assert refused(overrides=[override]).startswith(sentence)


# -- a teacher that learns unasked -------------------------------------------------------------------------------------


def test_a_teacher_that_would_be_trained_for_want_of_a_line_is_refused(refused):
    sentence = refused(("      requires_grad: False\n", ""))
    assert sentence.startswith("train.stage1.teacher.requires_grad: 'requires_grad' is missing")
    assert "True to train it on purpose" in sentence


def test_frozen_modules_do_not_stand_in_for_the_line(refused):
    sentence = refused(("      requires_grad: False\n", "      frozen_modules: ['0', '1']\n"))
    assert sentence.startswith("train.stage1.teacher.requires_grad: ")


@pytest.mark.parametrize(
    ("more", "part"),
    [("", "the whole teacher"), ("\n      frozen_modules: ['0']", "what frozen_modules leaves of the teacher")],
)
def test_a_teacher_that_is_trained_on_purpose_is_said(load, caplog, more, part):
    with caplog.at_level(logging.WARNING):
        load(("requires_grad: False", f"requires_grad: True{more}"))
    assert f"train.stage1.teacher.requires_grad is True: {part} is trained in this stage" in caplog.text


def test_a_stage_that_follows_labels_alone_may_leave_the_line_out(load):
    start = TEXT.index("          kd:\n")
    kd = TEXT[start : TEXT.index("\ntest:", start)]
    load(("    teacher: *frozen\n", "    teacher: {forward_proc: 'forward_batch_only'}\n"), (kd, ""))


# -- what is unclear ---------------------------------------------------------------------------------------------------


def test_a_module_beside_the_yaml_is_said_to_be_off_the_path(refused, tmp_path):
    (tmp_path / "akd_test_my_models.py").write_text("")
    sentence = refused(("  - name: train_fixture", "  - name: train_fixture\n  - name: akd_test_my_models"))
    assert (
        "there is no module 'akd_test_my_models'; put the folder that holds it on PYTHONPATH: PYTHONPATH=. akd-train"
        in sentence
    )
    assert "nearest" not in sentence


def test_text_data_made_by_a_tag_is_refused(tmp_path):
    text = (config_dir() / "glue" / "distilroberta" / "scratch.yaml").read_text().replace("*task", "'cola'")
    start, end = text.index("datasets:"), text.index("\nmodels:")
    made = "datasets: !import_call\n  key: 'datasets.load_dataset'\n_map:\n  !join ['a', '/b']: c\n"
    (tmp_path / "x.yaml").write_text(text[:start] + made + text[end:])
    with pytest.raises(ConfigError, match="datasets: it must be a mapping of GLUE tasks, or of files of your own"):
        load_config(str(tmp_path / "x.yaml"))


@pytest.mark.parametrize("command", ["akd_ext.train.cli", "akd_ext.reproduce.cli"])
@pytest.mark.parametrize("args", [[], ["--no_such_flag"], ["--seed", "x"]], ids=str)
def test_usage_errors_exit_with_2(command, args, capfd):
    from importlib import import_module

    entry = main if command.startswith("akd_ext.train") else import_module(command).main
    try:
        code = entry(args)
    except SystemExit as end:
        code = end.code
    assert code == 2 and "error" in capfd.readouterr().err


def test_the_examples_of_this_project_say_nothing(caplog, tmp_path):
    (tmp_path / "teacher.pt").touch()
    path = config_dir() / "digits" / "annealing_kd.yaml"
    with caplog.at_level(logging.WARNING):
        load_config(str(path), [f"models.teacher_model.src_ckpt={tmp_path / 'teacher.pt'}"])
    assert caplog.records == []


def test_a_checkpoint_that_is_not_there_comes_with_the_command_that_makes_it(tmp_path, load, refused):
    message = refused(overrides=["models.teacher_model.src_ckpt=./runs/first/checkpoint.pt"])
    assert "train it first, or name another" in message
    (tmp_path / "first.yaml").write_text("models:\n  model:\n    dst_ckpt: './runs/first/checkpoint.pt'  # here\n")
    (tmp_path / "compose.yaml").write_text("models: [a]\n")  # of somebody else's
    (tmp_path / "other.yaml").write_text("models:\n  model:\n    dst_ckpt: './runs/first/checkpoint.pth'\n")
    message = refused(overrides=["models.teacher_model.src_ckpt=./runs/first/checkpoint.pt"])
    assert "train it first, with akd-train --config first.yaml, or name another" in message


def test_a_teacher_folder_that_is_not_there_comes_with_the_command_for_the_same_task(capfd):
    folder = config_dir() / "glue" / "bert_small"
    arguments = ["--config", str(folder / "annealing_kd.yaml"), "--device", "cpu"]
    assert main(arguments) == 2
    place = "models.teacher_model.config_kwargs.pretrained_model_name_or_path: there is no folder"
    here = f"{place} './runs/glue/bert_small/teacher/cola/checkpoint'; train it first, with akd-train --config "
    assert f"{here}{folder / 'teacher.yaml'}, or name another with --teacher FOLDER" in capfd.readouterr().err
    assert main([*arguments, "--set", "datasets.glue.name=rte"]) == 2
    assert f"akd-train --config {folder / 'teacher.yaml'} --set datasets.glue.name=rte, or" in capfd.readouterr().err


def test_a_stage_that_starts_from_another_runs_student_is_said(tmp_path, load, caplog):
    """A copied file whose dst_ckpt was changed and whose stage 2 was not: stage 1 would be for nothing, in silence."""
    (tmp_path / "other.pt").touch()
    load((STUDENT2, "      src_ckpt: ./other.pt\n"))
    said = (
        "train.stage2.student.src_ckpt: it is './other.pt', which this run does not write, so the student of the stages"
    )
    assert said in caplog.text
    caplog.clear()
    load()
    load((STUDENT2, ""))  # without one the stage goes on with the last weights
    assert "does not write" not in caplog.text
