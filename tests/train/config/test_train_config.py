"""What can be wrong in a YAML file or on the command line: one sentence, exit code 2."""

# ruff: noqa: E501 - the tables of faults are read line by line

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from places import ROOT, TINY

pytest.importorskip("torchdistill", reason="akd-train runs torchdistill's boxes; pip install '.[experiments]'")

from akd_ext.train.cli import main

TEXT = Path(TINY).read_text()


@pytest.fixture
def refused(tmp_path, capfd, monkeypatch):
    """Runs akd-train on a changed toy YAML that must be refused; gives the sentence on stderr."""

    def run(*changes: tuple[str, str], args: tuple[str, ...] = (), teacher: bool = True) -> str:
        import train_fixture

        monkeypatch.chdir(tmp_path)
        if teacher:
            torch.save(train_fixture.tiny_net(width=8).state_dict(), tmp_path / "teacher.pt")
        text = TEXT
        for old, new in changes:
            assert old in text
            text = text.replace(old, new, 1)
        (tmp_path / "tiny.yaml").write_text(text)

        def no_training(*args, **kwargs):
            raise AssertionError("a bad configuration reached the training loop")

        monkeypatch.setattr("akd_ext.train.trainer.Trainer.fit", no_training)
        code = main(["--config", "tiny.yaml", "--output_dir", "out", "--device", "cpu", "--seed", "0", *args])
        assert not (tmp_path / "out").exists()  # an earlier run's folder would have been left alone
        out, err = capfd.readouterr()
        lines = err.strip().splitlines()
        assert out == "" and len(lines) == 1, err
        assert lines[0].startswith("akd-train: error: ")
        assert code == 2
        return lines[0].removeprefix("akd-train: error: ")

    return run


KEYS = [
    # what is wrong, by what, at which place, what is the nearest valid choice
    ("key: 'WeightedSumLoss'", "key: 'WeightedSumLos'", "train.stage1.criterion.key", "WeightedSumLoss"),
    ("key: 'TinyAnnealing'", "key: 'TinyAnealing'", "train.stage1.criterion.kwargs.sub_terms.akd.criterion.key", "TinyAnnealing"),
    ("key: 'CrossEntropyLoss'", "key: 'CrossEntropy'", "train.stage2.criterion.kwargs.sub_terms.ce.criterion.key", "CrossEntropyLoss"),
    ("key: 'SimpleLossWrapper'", "key: 'SimpleLossWraper'", "train.stage2.criterion.kwargs.sub_terms.ce.criterion_wrapper.key", "SimpleLossWrapper"),
    ("key: 'tiny_net'", "key: 'tiny_nett'", "models.teacher_model.key", "tiny_net"),
    ("key: 'SGD'", "key: 'SDG'", "train.stage1.optimizer.key", "SGD"),
    ("key: 'MultiStepLR'", "key: 'MultistepsLR'", "train.stage1.scheduler.key", "MultiStepLR"),
    ("'tiny_annealing_pre_epoch'", "'tiny_anealing_pre_epoch'", "train.stage1.pre_epoch_process", "tiny_annealing_pre_epoch"),
    ("forward_proc: 'forward_batch_only'", "forward_proc: 'foward_batch_only'", "train.stage1.teacher.forward_proc", "forward_batch_only"),
    ("requires_grad: False", "wrapper: 'DataParalel'", "train.stage1.teacher.wrapper", "DataParallel"),
    ("dataset_id: *train", "dataset_id: 'tiny/trian'", "train.stage1.train_data_loader.dataset_id", "tiny/train"),
    ("dataset_id: *test", "dataset_id: 'tiny/tests'", "test.test_data_loader.dataset_id", "tiny/test"),
    ("'torch.utils.data.RandomSampler'", "'torch.utils.data.RandomSampeler'", "train.stage1.train_data_loader.sampler.class_or_func.key", "torch.utils.data.RandomSampler"),
    ("'train_fixture.TinyImages'", "'train_fixture.TinyImage'", "datasets.tiny/train.key", "train_fixture.TinyImages"),
    ("size: 48", "sise: 48", "datasets.tiny/train.init.kwargs.sise", "size"),
    ("name: train_fixture", "name: train_fixtur", "dependencies.0.name", "train_fixture"),
    ("      width: 8", "      widht: 8", "models.teacher_model.kwargs.widht", "width"),
    ("        lr: 0.1", "        learning_rate: 0.1", "train.stage1.optimizer.kwargs.learning_rate", "lr, momentum"),
    ("tau_max: 3", "taumax: 3", "train.stage1.criterion.kwargs.sub_terms.akd.criterion.kwargs.taumax", "tau_max"),
    ("src_ckpt: 'teacher.pt'", "src_ckpt: 'techer.pt'", "models.teacher_model.src_ckpt", "teacher.pt"),
    ("pre_epoch_process: 'tiny", "pre_epoch_proces: 'tiny", "train.stage1.pre_epoch_proces", "pre_epoch_process"),
    ("  student_model:", "  student:", "models.student", "student_model"),
    ("!import_call", "!import_cal", "datasets.tiny/train", "!import_call"),
    ("      requires_grad: False", "      auxiliary_model_wrapper:\n        key: 'EmptyModul'", "train.stage1.teacher.auxiliary_model_wrapper.key", "EmptyModule"),
    ("    val_data_loader: &val_loader", "    val_data_loader: &val_loader\n      collate_fn: 'x'", "train.stage1.val_data_loader.collate_fn", ""),
    ("    val_data_loader: &val_loader", "    val_data_loader: &val_loader\n      dataset_wrapper:\n        key: 'SSKDDataset'", "train.stage1.val_data_loader.dataset_wrapper.key", "SSKDDatasetWrapper"),
    ("    val_data_loader: &val_loader", "    val_data_loader: &val_loader\n      batch_sampler:\n        key: 'BatchSamplr'", "train.stage1.val_data_loader.batch_sampler.key", "BatchSampler"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "place", "near"), KEYS, ids=[f"{n:02d}-{k[2]}" for n, k in enumerate(KEYS)])
def test_a_wrong_key_is_named_with_its_place_and_the_nearest_choice(refused, old, new, place, near):
    sentence = refused((old, new))
    assert sentence.startswith(place + ": ")
    wrong = place.rsplit(".", 1)[-1] if "'" not in new else new.split("'")[-2]
    assert wrong.rsplit(".", 1)[-1] in sentence
    if near:
        assert f"the nearest valid choice is '{near}'" in sentence or near in sentence.split("; the ")[-1]


def test_the_sentence_names_the_line(refused):
    sentence = refused(("key: 'TinyAnnealing'", "key: 'TinyAnealing'"))
    line = next(n for n, text in enumerate(TEXT.splitlines(), start=1) if "TinyAnnealing" in text)
    assert sentence.endswith(f"(tiny.yaml, line {line})")


STAGES = [
    ([("    num_epochs: 3\n", "")], "train.stage1.num_epochs", "is missing"),
    ([("num_epochs: 3", "num_epochs: 0")], "train.stage1.num_epochs", "from 1, not 0"),
    ([("num_epochs: 3", "num_epochs: '3'")], "train.stage1.num_epochs", "from 1, not '3'"),
    ([("  stage2:", "  stage3:")], "train.stage3", "without a gap"),
    ([("  stage1:", "  stage2:"), ("  stage2:\n    num_epochs: 2", "  stage3:\n    num_epochs: 2")], "train.stage2", "'stage1'"),
    ([("  stage2:", "  stageII:")], "train.stageII", "'stage2'"),
    ([("  stage2:", "  stage1:")], "train.stage1", "given twice"),
    ([("    criterion:\n", "    criterium:\n")], "train.stage1.criterium", "the nearest valid choice is 'criterion'"),
    ([("        sub_terms:\n          akd:", "        subterms:\n          akd:")], "train.stage1.criterion.kwargs.subterms", "'sub_terms'"),
    ([("            weight: 1.0\n", "")], "train.stage1.criterion.kwargs.sub_terms.akd.weight", "is missing"),
    ([("    val_data_loader: &val_loader", "    _unused: &val_loader")], "train.stage1.val_data_loader", "is missing"),
    ([("    optimizer: &sgd", "    _unused: &sgd")], "train.stage1.optimizer", "is missing"),
    ([("    student:\n      forward_proc: 'forward_batch_only'\n    opt", "    opt")], "train.stage1.student", "forward_proc"),
    ([("lr: 0.1", "lr: 1e-1")], "train.stage1.optimizer.kwargs.lr", "write 0.1"),
    ([("weight: 0.5", "weight: 5e-1")], "train.stage2.criterion.kwargs.sub_terms.kd.weight", "write 0.5"),
    ([("log_freq: 2", "log_freq: 0")], "train.log_freq", "from 1, not 0"),
    ([("lr: 0.1", "lr: -0.1")], "train.stage1.optimizer", "Invalid learning rate: -0.1"),
    ([("alpha: 0.1", "alpha:")], "train.stage2.criterion", "cannot be built"),
    ([("milestones: [2]", "milestone: [2]")], "train.stage1.scheduler.kwargs.milestone", "'milestones'"),
    ([("class_or_func: !import_get\n          key: 'torch.utils.data.RandomSampler'", "class_or_func: RandomSampler")],
     "train.stage1.train_data_loader.sampler.class_or_func", "'torch.utils.data.RandomSampler'"),
    ([("src_ckpt: *student_ckpt", "src_ckpt: 'elsewhere.pt'")], "train.stage2.student.src_ckpt", "checkpoint.pt'"),
    ([("test_data_loader:", "test_loader:")], "test.test_loader", "'test_data_loader'"),
    ([("\ntest:", "\ntests:")], "tests", "'test'"),
    ([("    optimizer: &sgd\n      key: 'SGD'\n      kwargs:\n        lr: 0.1\n        momentum: 0.9", "    optimizer: &sgd 'SGD'")],
     "train.stage1.optimizer", "must be a mapping, not 'SGD'"),
    ([("      kwargs:\n        milestones: [2]", "      kwargs: [2]")], "train.stage1.scheduler.kwargs", "must be a mapping, not [2]"),
    ([("                tau_max: 3\n", "")], "train.stage1.criterion.kwargs.sub_terms.akd.criterion.kwargs", "needs 'tau_max'"),
    ([("weight: 0.5", "weight: [0.5]")], "train.stage2.criterion.kwargs.sub_terms.kd.weight", "must be a number, not [0.5]"),
    ([("          akd:\n", "          more: 1\n          akd:\n")], "train.stage1.criterion.kwargs.sub_terms.more", "must be a mapping with criterion and weight"),
    ([("      dataset_id: *train\n", "")], "train.stage1.train_data_loader.dataset_id", "is missing"),
    ([("        class_or_func: !import_get\n          key: 'torch.utils.data.RandomSampler'\n", "")],
     "train.stage1.train_data_loader.sampler.class_or_func", "is missing"),
    ([("  stage1:", "  stge1:"), ("  stage2:", "  stge2:")], "train.stge1", "is not a stage"),
    ([("    key: 'train_fixture.TinyImages'\n", "")], "datasets.tiny/train", "!import_call needs a 'key'"),
    ([("'train_fixture.TinyImages'", "'TinyImages'")], "datasets.tiny/train.key", "is not a dotted name"),
    ([("\ntest:\n", "\ntest: !join ['a', 'b']\n_test:\n")], "test", "must be a mapping"),
    ([("  - name: train_fixture", "  - nam: train_fixture")], "dependencies.0", "needs a 'name'"),
    ([("  - name: train_fixture", "  - 3")], "dependencies.0", "not 3"),
    ([("  - name: train_fixture", "  - name: torch.utils.dataa")], "dependencies.0.name", "'torch.utils.data'"),
    ([("train_fixture.TinyImages", "train_fixture.broken")], "datasets.tiny/train", "failed with RuntimeError: the disk is on fire"),
]  # fmt: skip


def test_a_plug_in_that_fails_is_named_with_its_reason(refused, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, line, words in (
        ("akd_test_raises", "1 / 0", "failed with ZeroDivisionError: division by zero"),
        ("akd_test_lacks", "import akd_test_nothing", "failed: No module named 'akd_test_nothing'"),
    ):
        (tmp_path / f"{name}.py").write_text(line)
        assert words in refused(("  - name: train_fixture", f"  - name: {name}"))


@pytest.mark.parametrize(("changes", "place", "words"), STAGES, ids=[f"{n:02d}-{k[1]}" for n, k in enumerate(STAGES)])
def test_a_malformed_section_is_named_with_its_place(refused, changes, place, words):
    sentence = refused(*changes)
    assert sentence.startswith(place + ": ")
    assert words in sentence


def test_a_plain_torch_loss_needs_a_wrapper(refused):
    start = TEXT.index("            criterion_wrapper:")
    wrapper = TEXT[start : TEXT.index("            weight: 1.0", start)]
    sentence = refused((wrapper, ""))
    assert sentence.startswith("train.stage2.criterion.kwargs.sub_terms.ce.criterion_wrapper: ")
    assert "'SimpleLossWrapper'" in sentence


def test_a_teacher_checkpoint_of_another_network_is_refused(refused):
    sentence = refused(("      width: 8", "      width: 5"))
    assert sentence.startswith("models.teacher_model.src_ckpt: 'teacher.pt' does not fit a Sequential: ")
    assert "of another shape" in sentence


def test_a_file_that_is_no_checkpoint_is_refused(refused, tmp_path):
    torch.manual_seed(0)
    (tmp_path / "teacher.pt").write_text("hello")
    sentence = refused(teacher=False)
    assert sentence.startswith("models.teacher_model.src_ckpt: 'teacher.pt' cannot be read as a checkpoint: ")


def test_without_a_teacher_the_stage_needs_a_model_section(refused):
    start = TEXT.index("  teacher_model:")
    sentence = refused((TEXT[start : TEXT.index("  student_model:")], ""))
    assert sentence.startswith(
        "train.stage1.model: the section 'model' is missing, because without models.teacher_model"
    )


def test_yaml_that_cannot_be_parsed_names_line_and_column(refused):
    sentence = refused(("train:\n", "train: [\n"))
    assert sentence.startswith("--config: 'tiny.yaml', line ") and "column" in sentence


def test_a_config_that_is_no_mapping(refused):
    assert "holds no YAML mapping" in refused((TEXT, "just text\n"))


def test_a_config_that_does_not_exist(refused):
    assert refused(args=("--config", "tiney.yaml")) == (
        "--config: there is no file 'tiney.yaml'; the nearest file there is 'tiny.yaml'"
    )


FLAGS = [
    (("--set", "train.stage1.num_epoch=3"), "--set train.stage1.num_epoch: train.stage1 has no 'num_epoch'", "'train.stage1.num_epochs'"),
    (("--set", "train.stge1.num_epochs=3"), "--set train.stge1.num_epochs: train has no 'stge1'", "'train.stage1'"),
    (("--set", "train.stage1.num_epochs"), "--set train.stage1.num_epochs: write it as a.b.c=value", ""),
    (("--set", "train.log_freq.x=1"), "--set train.log_freq.x: train.log_freq is a single value", ""),
    (("--set", "train.log_freq=[1"), "--set train.log_freq: '[1' is not YAML", ""),
    (("--device", "tpu9"), "--device: 'tpu9' is no device", "auto"),
    (("--seed", "-1"), "--seed -1: it must be between 0 and 4294967295", ""),
    (("--start_epoch", "5"), "--start_epoch 5: a run begins with its first epoch; the same command with --resume goes on", ""),
    (("-test_only",), "-test_only: there is no checkpoint", "models.student_model.dst_ckpt"),
]  # fmt: skip


@pytest.mark.parametrize(("args", "start", "words"), FLAGS, ids=[" ".join(k[0]) for k in FLAGS])
def test_a_bad_flag_is_one_sentence(refused, args, start, words):
    sentence = refused(args=args)
    assert sentence.startswith(start) and words in sentence


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="SKIPPED LOUDLY: this checks the refusal of a missing CUDA device"
)
def test_cuda_without_cuda_is_refused(refused):
    assert "sees no CUDA device here; use auto or cpu" in refused(args=("--device", "cuda"))


def test_tensorboard_needs_a_folder(capfd):
    assert main(["--config", TINY, "--tensorboard"]) == 2
    assert (
        capfd.readouterr().err == "akd-train: error: --tensorboard: it writes below --output_dir, so give that, too\n"
    )


def test_argparse_errors_and_help_become_exit_codes(capfd):
    assert main(["--no_such_flag"]) == 2
    assert main(["--help"]) == 0
    assert "-test_only" in capfd.readouterr().out


def test_debug_shows_the_traceback(capfd, tmp_path):
    assert main(["--config", str(tmp_path / "none.yaml"), "--debug"]) == 2
    assert "Traceback" in capfd.readouterr().err


def test_the_examples_of_the_help_are_files_that_exist():
    from akd_ext.train import cli as train

    named = re.findall(r"torchdistill_configs/\S+?\.yaml", Path(train.__file__).read_text())
    assert named
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_a_configuration_from_before_torchdistill_1_is_recognised(refused):
    said = refused(("    key: 'tiny_net'", "    name: 'tiny_net'"))
    assert "'key' is missing" in said
    assert "before version 1 torchdistill called it 'name'" in said


@pytest.mark.parametrize(
    ("args", "start", "words"),
    [
        (["--output_dir", ""], "--output_dir: '' cannot be written to", ""),
        (["--output_dir", "teacher.pt/x"], "--output_dir: 'teacher.pt/x' cannot be written to", "Not a directory"),
        (["--output_dir", "a_file"], "--output_dir: 'a_file' cannot be written to", "File exists"),
        (["--run_log", "."], "--output_dir or --run_log: ", "Is a directory"),
    ],
    ids=str,
)
def test_a_place_that_cannot_be_written_to_is_one_sentence(tmp_path, monkeypatch, capfd, args, start, words):
    import train_fixture

    monkeypatch.chdir(tmp_path)
    torch.save(train_fixture.tiny_net(width=8).state_dict(), "teacher.pt")
    Path("a_file").touch()
    assert main(["--config", TINY, "--device", "cpu", "--quiet", *args]) == 2
    said = capfd.readouterr().err
    assert said.startswith(f"akd-train: error: {start}") and words in said
    assert said.count("\n") == 1
