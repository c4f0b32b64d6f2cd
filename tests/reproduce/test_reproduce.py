"""akd-reproduce: which runs, in which order, which are done, what a failure does; once with the real akd-train."""

import io
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

pytest.importorskip("scipy", reason="the table needs scipy: pip install '.[test]'")
pytest.importorskip("matplotlib", reason="the plot needs matplotlib: pip install '.[test]'")

from akd_ext.reproduce import cli as reproduce
from akd_ext.reproduce import jobs, pool, preflight, status, time_left
from akd_ext.reproduce.experiments import EXPERIMENTS
from akd_ext.reproduce.jobs import Options
from akd_ext.reproduce.recipes import config_dir
from akd_ext.train.system.errors import RunError

# Stands in for akd-train: takes its arguments, writes what akd-reproduce reads, keeps a diary of its calls.
FAKE_TRAIN = """
    import argparse, json, pathlib, sys
    parser = argparse.ArgumentParser()
    for name in ("--config", "--output_dir", "--device"):
        parser.add_argument(name)
    for name in ("-student_only", "-test_only", "--quiet", "--channels_last"):
        parser.add_argument(name, action="store_true")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--set", action="append", default=[])
    arguments = parser.parse_args()
    folder = pathlib.Path(arguments.output_dir)
    sets = dict(item.split("=", 1) for item in arguments.set)
    teacher = sets.get("models.teacher_model.src_ckpt", "")
    with open("diary.txt", "a") as diary:
        diary.write(f"{folder.parent.name} {folder.name} {pathlib.Path(teacher).parent.parent.name}\\n")
    if pathlib.Path("fail").exists() and folder.parent.name == "kd":
        sys.exit("akd-train: error: the moon is wrong")
    assert not teacher or pathlib.Path(teacher).is_file(), "the teacher is not there yet"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "arguments.json").write_text(json.dumps(sys.argv[1:]))
    if arguments.test_only:
        assert (folder / "checkpoint.pt").is_file(), "there is nothing to test"
        (folder / "test.json").write_text(json.dumps({"student": 93.5, "teacher": None}))
        sys.exit()
    (folder / "checkpoint.pt").write_text(folder.parent.name)
    value = {"test_accuracy": 90.0 + arguments.seed}
    results = {"seed": arguments.seed, "complete": True, "best": value, "last": value, "versions": {"x": "1"}}
    results["epochs"] = [{"epoch": n, "stage": 1 + n // 300, "val_accuracy": 80.0 + n} for n in range(360)]
    (folder / "results.json").write_text(json.dumps(results))
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Runs the digits' table in a folder of its own with the stand-in, and returns the new calls."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(textwrap.dedent(FAKE_TRAIN))
    # Its own copy of the configurations, so that a test may change one.
    shutil.copytree(config_dir(), tmp_path / "configs")
    monkeypatch.setattr(jobs, "config_dir", lambda: tmp_path / "configs")
    monkeypatch.setattr(preflight, "fetch_images", lambda experiment, options: None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(pool, "TRAIN", (sys.executable, str(tmp_path / "train.py")))

    def run(*arguments, code=0, table="digits"):
        diary = tmp_path / "diary.txt"
        diary.unlink(missing_ok=True)
        assert reproduce.main([table, "--output_dir", "out", "--jobs", "4", *arguments]) == code
        return sorted(diary.read_text().splitlines()) if diary.exists() else []

    return run


def is_gone(pid):
    try:
        os.kill(pid, 0)  # signal 0 only asks
    except ProcessLookupError:
        return True
    return False


ALL = [
    *(f"annealing_kd seed{seed} teacher" for seed in range(3)),
    *(f"kd seed{seed} teacher" for seed in range(3)),
    *(f"scratch seed{seed} " for seed in range(3)),
    "ta seed0 teacher",
    *(f"takd seed{seed} ta" for seed in range(3)),
    "teacher seed0 ",
]


@pytest.mark.integration
def test_every_run_once_then_none_again(fake, capsys, tmp_path):
    assert fake() == ALL
    table = (tmp_path / "out" / "table.md").read_text()
    assert fake() == []
    assert capsys.readouterr().out.count("was already done") == len(ALL)
    assert (tmp_path / "out" / "table.md").read_text() == table
    assert "| KD           |      2,410 |    360 | 3 | 91.00 ± 1.00 |" in table
    assert json.loads((tmp_path / "out" / "table.json").read_text())["rows"][3]["seeds"]["2"]["best"] == 92.0
    assert (tmp_path / "out" / "table.png").stat().st_size > 10_000


def command_of_scratch(threads=1):
    config = jobs.config_dir() / "digits" / "scratch.yaml"
    return (
        f"OMP_NUM_THREADS={threads} akd-train --config {config} --seed 0 --device cpu -student_only"
        " --output_dir out/scratch/seed0"
    )


def test_every_command_is_kept_as_it_would_be_typed_and_shown_when_asked_for(fake, capsys, tmp_path):
    fake("--only", "scratch", "--seeds", "1")
    assert "akd-train" not in capsys.readouterr().out
    fake("--only", "scratch", "kd", "--seeds", "1", "--verbose")
    log = (tmp_path / "out" / "commands.log").read_text().splitlines()
    assert log[0] == command_of_scratch() and len(log) == 3
    assert [line for line in capsys.readouterr().out.splitlines() if "akd-train" in line] == log[1:]


def test_the_file_of_the_commands_is_named_when_the_checks_have_passed(fake, tmp_path, capsys, monkeypatch):
    def no_network(experiment, options):
        raise RunError("no network")

    with monkeypatch.context() as patch:
        patch.setattr(preflight, "fetch_images", no_network)
        fake("--only", "scratch", "--seeds", "1", code=1)
    assert "commands.log" not in capsys.readouterr().out and not (tmp_path / "out").exists()
    fake("--only", "scratch", "--seeds", "1")
    assert f"the commands of the runs go to {Path('out', 'commands.log')}\n" in capsys.readouterr().out


def test_a_teacher_that_a_cpu_would_train_for_days_is_told_first(fake, tmp_path, capsys, cuda_is_there):
    def said(*arguments, table="cifar10-cpu"):
        fake("--seeds", "1", *arguments, table=table)
        return [line for line in capsys.readouterr().out.splitlines() if "--teacher_ckpt" in line]

    assert said("--only", "kd", "--device", "cpu") == [
        "the teacher, a cifar_resnet of depth 56, is trained first, for 160 epochs on the CPU, which may take days; "
        "--teacher_ckpt FILE spares it"
    ]
    assert said("--only", "kd", "--device", "cpu") == []  # it is there now
    shutil.rmtree(tmp_path / "out")
    assert said("--only", "scratch", "--device", "cpu") == said("--only", "kd", "--device", "cuda") == []
    assert said("--only", "kd", table="digits") == []


def test_only_brings_the_teachers_along(fake):
    assert fake("--only", "takd", "--seeds", "1") == ["ta seed0 teacher", "takd seed0 ta", "teacher seed0 "]


def test_only_adds_to_the_table(fake, tmp_path):
    fake("--only", "kd", "--seeds", "1")
    fake("--only", "scratch", "--seeds", "1")
    rows = json.loads((tmp_path / "out" / "table.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["teacher", "scratch", "kd"]


def test_more_seeds_add_only_the_missing_ones(fake):
    fake("--only", "kd", "--seeds", "1")
    assert fake("--only", "kd", "--seeds", "2") == ["kd seed1 teacher"]


def test_an_unknown_run_is_named(fake, capsys):
    assert fake("--only", "kdd", code=2) == []
    assert "--only: there is no run 'kdd'; the runs are teacher, ta, scratch, kd" in capsys.readouterr().err


@pytest.mark.integration
@pytest.mark.parametrize(
    ("spoil", "again"),
    [
        (lambda out: (out / "kd/seed0/results.json").write_text('{"complete": false}'), ["kd seed0 teacher"]),
        (lambda out: (out / "kd/seed0/results.json").write_text('{"compl'), ["kd seed0 teacher"]),
        (lambda out: (out / "kd/seed0/checkpoint.pt").unlink(), ["kd seed0 teacher"]),
        (lambda out: (out / "kd/seed0/fingerprint.json").unlink(), ["kd seed0 teacher"]),
        (lambda out: (out / "teacher/seed0/checkpoint.pt").write_text("another"), ["kd seed0 teacher"]),
        (lambda out: (jobs.config_dir() / "digits/kd.yaml").open("a").write("more: 1\n"), ["kd seed0 teacher"]),
        (lambda out: (jobs.config_dir() / "digits/kd.yaml").open("a").write("# a remark\n"), []),
        (lambda out: None, []),
    ],
    ids=[
        "incomplete",
        "torn",
        "no checkpoint",
        "no fingerprint",
        "another teacher",
        "another config",
        "a comment",
        "untouched",
    ],
)
def test_a_run_is_repeated_when_it_does_not_answer_the_question(fake, tmp_path, spoil, again):
    fake("--only", "kd", "--seeds", "1")
    spoil(tmp_path / "out")
    assert fake("--only", "kd", "--seeds", "1") == again


@pytest.fixture
def cuda_is_there(monkeypatch):
    monkeypatch.setattr(reproduce, "pick_device", torch.device)


def test_another_device_is_another_question(fake, cuda_is_there):
    fake("--only", "scratch", "--seeds", "1")
    assert fake("--only", "scratch", "--seeds", "1", "--device", "cuda") == ["scratch seed0 "]


def test_a_device_that_is_not_there_is_refused_before_the_first_run(fake, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert fake("--only", "scratch", "--device", "cuda", code=2) == []
    assert "akd-reproduce: error: --device cuda: torch" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_failed_run_ends_the_command_and_the_next_one_goes_on(fake, tmp_path, capsys):
    (tmp_path / "fail").touch()
    fake("--only", "kd", "scratch", "--seeds", "1", "--jobs", "1", code=1)
    error = capsys.readouterr().err
    assert "kd seed 0 failed with exit code 1" in error
    assert "akd-train: error: the moon is wrong" in error
    assert not (tmp_path / "out" / "table.md").exists()
    (tmp_path / "fail").unlink()
    assert fake("--only", "kd", "scratch", "--seeds", "1") == ["kd seed0 teacher"]


@pytest.mark.skipif(os.name != "posix", reason="sends SIGTERM")
def test_a_polite_kill_ends_the_runs_and_says_how_to_go_on(fake, tmp_path, capsys):
    (tmp_path / "train.py").write_text(
        textwrap.dedent("""
            import os, pathlib, signal, time
            pathlib.Path("pid").write_text(str(os.getpid()))
            os.kill(os.getppid(), signal.SIGTERM)
            time.sleep(600)
            pathlib.Path("woke").touch()
        """)
    )
    fake("--only", "scratch", "--seeds", "1", code=130)
    assert is_gone(int((tmp_path / "pid").read_text()))
    assert not (tmp_path / "woke").exists(), "the run was waited for instead of ended"
    assert "start it again to go on" in capsys.readouterr().err


def stopped_once(tmp_path):
    """akd-train that is stopped when it runs for the first time: a state stays, and the exit code says so."""
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent("""
            import json, pathlib, sys
            state = pathlib.Path(sys.argv[sys.argv.index("--output_dir") + 1]) / "resume" / "state.json"
            if not state.exists() and "scratch" in str(state):
                state.parent.mkdir(parents=True, exist_ok=True)
                state.write_text(json.dumps({"complete": False}))
                sys.exit(3)
        """)
        + script.read_text()
    )


def test_a_stopped_run_goes_on_with_its_state(fake, tmp_path, capsys):
    stopped_once(tmp_path)
    fake("--only", "scratch", "--seeds", "1", code=130)
    assert "scratch seed 0 was stopped; start the same command again" in capsys.readouterr().err
    assert fake("--only", "scratch", "--seeds", "1") == ["scratch seed0 "]
    assert (tmp_path / "out/scratch/seed0/resume/state.json").is_file()


def test_a_state_that_answers_another_question_is_not_gone_on_with(fake, tmp_path):
    stopped_once(tmp_path)
    fake("--only", "scratch", "--seeds", "1", code=130)
    # Its state is gone, so that the stand-in stops once more.
    fake("--only", "scratch", "--seeds", "1", "--epochs_scale", "0.1", code=130)
    assert fake("--only", "scratch", "--seeds", "1", "--epochs_scale", "0.1") == ["scratch seed0 "]


@pytest.mark.skipif(os.name != "posix", reason="asks the kernel for the processes by signal 0")
def test_processes_under_way_are_ended_when_a_run_fails(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(
        textwrap.dedent("""
            import os, pathlib, sys, time
            if "scratch.yaml" in " ".join(sys.argv):
                pathlib.Path("pid").write_text(str(os.getpid()))
                time.sleep(600)
            while not pathlib.Path("pid").exists() or not pathlib.Path("pid").read_text():
                time.sleep(0.02)
            sys.exit("broken")
        """)
    )
    runs = jobs.plan(EXPERIMENTS["digits"], tmp_path / "out", Options(seeds=1, only=("scratch", "teacher")))
    with pytest.raises(RunError, match="broken"):
        pool.JobPool(runs, 2, tmp_path / "commands.log", train=[sys.executable, "train.py"]).run()
    assert is_gone(int((tmp_path / "pid").read_text()))


@pytest.mark.integration
def test_the_real_akd_train_fills_a_table(tmp_path, monkeypatch, capsys):
    """A tiny table through the real processes: a teacher, then Annealing-KD."""
    for module in ("torchdistill", "torchvision.datasets", "sklearn"):
        pytest.importorskip(module, reason=f"akd-train on the digits needs {module}: pip install '.[test]'")
    shutil.copytree(config_dir(), tmp_path / "configs")
    monkeypatch.setattr(jobs, "config_dir", lambda: tmp_path / "configs")
    for name, changes in {
        "teacher": {"num_epochs: 40": "num_epochs: 2"},
        "annealing_kd": {
            "num_epochs: 300": "num_epochs: 2",
            "num_epochs: 60": "num_epochs: 1",
            "tau_max: 10": "tau_max: 2",
        },
    }.items():
        path = tmp_path / "configs" / "digits" / f"{name}.yaml"
        for old, new in changes.items():
            assert old in path.read_text()
            path.write_text(path.read_text().replace(old, new))
    out = tmp_path / "out"
    command = ["digits", "--output_dir", str(out), "--seeds", "1", "--only", "annealing_kd"]
    assert reproduce.main(command) == 0, capsys.readouterr().err
    results = json.loads((out / "annealing_kd" / "seed0" / "results.json").read_text())
    assert [(e["stage"], e["T"], e["phi"]) for e in results["epochs"]] == [(1, 2, 0.5), (1, 1, 1.0), (2, None, None)]
    rows = json.loads((out / "table.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["teacher", "annealing_kd"]
    assert rows[1]["best"]["mean"] == pytest.approx(results["best"]["test_accuracy"])


CNN = {"table": "cifar10-cnn_no_aug"}


def network(key, **kwargs):
    pytest.importorskip("torchvision.datasets", reason="the models are in the plug-in: pip install '.[test]'")
    from torchdistill.models.registry import get_model

    import akd_ext.torchdistill  # noqa: F401

    return get_model(key, **kwargs)


def given(tmp_path, key="plain_cnn10", **kwargs):
    """A checkpoint as torchvision's reference scripts write it, of the table's teacher or another network."""
    import torch

    path = tmp_path / "teacher.th"
    state = {f"module.{name}": value for name, value in network(key, **kwargs).state_dict().items()}
    torch.save({"state_dict": state, "best_prec1": 93.0}, path)
    return path


def arguments_of(tmp_path, run):
    return json.loads((tmp_path / "out" / run / "seed0" / "arguments.json").read_text())


def test_all_methods_of_a_seed_come_before_the_next_seed():
    runs = jobs.plan(EXPERIMENTS["digits"], Path("out"), Options(seeds=2))
    assert [job.label for job in runs] == [
        "teacher seed 0", "ta seed 0", "scratch seed 0", "kd seed 0", "takd seed 0", "annealing_kd seed 0",
        "scratch seed 1", "kd seed 1", "takd seed 1", "annealing_kd seed 1",
    ]  # fmt: skip


def test_one_run_at_a_time_follows_the_plan(fake, tmp_path):
    fake("--jobs", "1", "--seeds", "2", "--only", "scratch", "kd")
    began = [line.split()[:2] for line in (tmp_path / "diary.txt").read_text().splitlines()]
    runs = ["scratch seed0", "teacher seed0", "kd seed0", "scratch seed1", "kd seed1"]
    assert [" ".join(run) for run in began] == runs


@pytest.mark.parametrize(
    "more, said",
    [
        (["--tasks", "cola"], "--tasks: it is for the tables of GLUE, and digits is none"),
        (["--lr", "0.1"], "--lr: it is for the tables of GLUE"),
        (["--epochs_scale", "x"], "argument --epochs_scale: 'x' is no number above 0 and at most 1"),
        (["--student_layers", "a"], "argument --student_layers: 'a' is no list of layers such as 0,1"),
        (["--seeds", "0"], "argument --seeds: '0' is no whole number from 1"),
        (["--seeds", "two"], "argument --seeds: 'two' is no whole number from 1"),
        (["--seed", "5"], "unrecognized arguments: --seed 5"),
    ],
)
def test_an_option_that_means_nothing_is_refused(tmp_path, capsys, more, said):
    try:
        code = reproduce.main(["digits", "--output_dir", str(tmp_path / "out"), *more])
    except SystemExit as error:  # argparse
        code = error.code
    assert code == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_users_number_of_threads_is_kept(fake, monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    fake("--only", "scratch", "--seeds", "1")
    assert (tmp_path / "out" / "commands.log").read_text() == command_of_scratch(threads=3) + "\n"


def test_ablations_run_when_asked_for(fake):
    paper = fake("--seeds", "1", **CNN)
    assert len(paper) == 6
    ablations = fake("--seeds", "1", "--ablations", **CNN)
    assert len(ablations) == 6 and not set(ablations) & set(paper)


@pytest.mark.integration
def test_a_given_teacher_is_tested_not_trained(fake, tmp_path):
    import torch

    checkpoint = given(tmp_path)
    calls = fake("--only", "kd", "--seeds", "1", "--teacher_ckpt", str(checkpoint), **CNN)
    assert calls == ["kd seed0 teacher", "teacher seed0 "]
    assert "-test_only" in arguments_of(tmp_path, "teacher")
    adopted = torch.load(tmp_path / "out" / "teacher" / "seed0" / "checkpoint.pt", weights_only=True)
    assert list(adopted["model"]) == list(network("plain_cnn10").state_dict())
    assert "| teacher (given) |" in (tmp_path / "out" / "table.md").read_text()
    again = fake("--only", "kd", "--seeds", "1", "--teacher_ckpt", str(checkpoint), **CNN)
    assert again == []
    given(tmp_path)
    again = fake("--only", "kd", "--seeds", "1", "--teacher_ckpt", str(checkpoint), **CNN)
    assert again == ["kd seed0 teacher", "teacher seed0 "]


def test_a_teacher_that_would_run_code_is_refused(fake, tmp_path, capsys):
    import pickle

    class Code:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"state_dict": Code()}))
    fake("--only", "kd", "--teacher_ckpt", str(tmp_path / "evil.pt"), code=2, **CNN)
    assert "is no checkpoint of weights" in capsys.readouterr().err
    assert not (tmp_path / "executed").exists()
    fake("--only", "kd", "--teacher_ckpt", str(tmp_path / "none.pt"), code=2, **CNN)
    assert "there is no file" in capsys.readouterr().err


@pytest.mark.integration
def test_a_shortened_protocol_is_passed_on_and_said(fake, tmp_path):
    fake("--only", "annealing_kd", "--seeds", "1", "--epochs_scale", "0.1", table="cifar10-resnet")
    sets = [item for item in arguments_of(tmp_path, "annealing_kd") if item.startswith("train.")]
    assert sets == [
        "train.stage1.num_epochs=16", "train.stage1.scheduler.kwargs.milestones=[8, 12]",
        "train.stage2.num_epochs=16", "train.stage2.scheduler.kwargs.milestones=[8, 12]",
    ]  # fmt: skip
    assert "train.num_epochs=16" in arguments_of(tmp_path, "teacher")
    assert "Shortened protocol: every stage has 0.1 of its epochs" in (tmp_path / "out" / "table.md").read_text()
    whole = fake("--only", "scratch", "--seeds", "1", table="cifar10-resnet")
    assert whole == ["scratch seed0 "]
    assert "Shortened" not in (tmp_path / "out" / "table.md").read_text()


def test_the_data_folder_and_the_cache_go_to_every_run(fake, tmp_path, cuda_is_there):
    fake("--only", "annealing_kd", "--seeds", "1", "--data_dir", "mine", "--device", "cuda", **CNN)
    for run in ("teacher", "annealing_kd"):
        sets = arguments_of(tmp_path, run)
        for split in ("train", "val"):
            assert f"datasets.cifar10/{split}.init.kwargs.root=mine" in sets
            assert f"datasets.cifar10/{split}.init.kwargs.device=cuda" in sets
    assert "train.stage1.train_data_loader.dataset_wrapper.kwargs.cache_dir=out/cache" in sets


def test_the_table_stands_beside_the_papers(fake, tmp_path):
    fake("--seeds", "1", table="cifar100-cnn")
    lines = (tmp_path / "out" / "table.md").read_text().splitlines()
    paper = {line.split("|")[1].strip(): line.split("|")[-2].strip() for line in lines if line.startswith("|")}
    assert paper["method"] == "paper"
    assert [paper[name] for name in ("teacher", "TA", "scratch", "KD", "TAKD", "Annealing-KD")] == [
        "64.89", "60.73", "51.35", "51.62", "51.85", "53.35",
    ]  # fmt: skip
    assert (tmp_path / "out" / "curves.png").stat().st_size > 10_000


@pytest.mark.integration
def test_finished_runs_are_kept_when_the_question_changes(fake, tmp_path, capsys):
    fake("--only", "scratch", "--seeds", "1", table="cifar10-resnet")
    whole = (tmp_path / "out" / "scratch" / "seed0" / "results.json").read_bytes()
    (tmp_path / "fail").touch()
    fake("--only", "scratch", "--seeds", "1", "--epochs_scale", "0.1", table="cifar10-resnet")
    fake("--only", "scratch", "--seeds", "1", "--epochs_scale", "0.2", table="cifar10-resnet")
    assert (tmp_path / "out" / "scratch" / "seed0.1" / "results.json").read_bytes() == whole
    assert (tmp_path / "out" / "scratch" / "seed0.2" / "checkpoint.pt").is_file()
    assert "it is kept as out/scratch/seed0.1" in capsys.readouterr().out


def test_a_shortened_protocol_has_a_folder_of_its_own(fake, tmp_path, monkeypatch):
    assert reproduce.main(["cifar10-resnet", "--only", "scratch", "--seeds", "1", "--epochs_scale", "0.1"]) == 0
    assert (tmp_path / "runs" / "cifar10-resnet-x0.1" / "table.md").is_file()


def test_no_milestone_lies_before_the_first_step(fake, tmp_path):
    fake("--only", "scratch", "--seeds", "1", "--epochs_scale", "0.005", table="cifar10-resnet")
    assert "train.scheduler.kwargs.milestones=[1, 1]" in arguments_of(tmp_path, "scratch")


def test_the_data_is_fetched_once_before_the_runs(tmp_path, monkeypatch):
    import torchvision

    calls = []
    monkeypatch.setattr(torchvision.datasets, "CIFAR100", lambda *args, **kwargs: calls.append((args, kwargs)))
    preflight.fetch_images(EXPERIMENTS["cifar100-cnn"], Options(data_dir=tmp_path))
    preflight.fetch_images(EXPERIMENTS["digits"], Options())
    assert calls == [((str(tmp_path),), {"download": True})]

    def no_network(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets, "CIFAR100", no_network)
    with pytest.raises(RunError, match="--data_dir: torchvision gets no cifar100 into .*no network"):
        preflight.fetch_images(EXPERIMENTS["cifar100-cnn"], Options(data_dir=tmp_path))


@pytest.mark.parametrize("scale", ["0", "1.5", "-1", "x"])
def test_a_share_of_the_epochs_is_above_0_and_at_most_1(scale, capsys):
    with pytest.raises(SystemExit):
        reproduce.main(["digits", "--epochs_scale", scale])
    assert "--epochs_scale" in capsys.readouterr().err


@pytest.mark.integration
def test_the_runs_use_the_akd_ext_that_runs_here(tmp_path):
    """Started in a clone, `python -m` would take the source tree, which has no kernels, for the installed package."""
    (tmp_path / "akd_ext").mkdir()
    (tmp_path / "akd_ext" / "__init__.py").write_text("raise ImportError('the wrong akd_ext')\n")
    done = subprocess.run([*pool.TRAIN, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "--config" in done.stdout, done.stderr


# ---------------------------------------------------------------- somebody else's teacher


def test_a_teacher_of_another_network_is_named(fake, tmp_path):
    kwargs = {"depth": 8, "num_classes": 10, "shortcut": "A"}
    checkpoint = given(tmp_path, "cifar_resnet", **kwargs)
    more = ["--teacher_ckpt", str(checkpoint), "--teacher_model", "cifar_resnet", "--teacher_kwargs", json.dumps(kwargs),
            "--mean", "0.5", "0.4", "0.3", "--std", "0.2", "0.2", "0.1"]  # fmt: skip
    assert fake("--only", "kd", "takd", "--seeds", "1", *more, **CNN) == [
        "kd seed0 teacher", "ta seed0 teacher", "takd seed0 ta", "teacher seed0 ",
    ]  # fmt: skip
    network_of = {"teacher": "model", "ta": "teacher_model", "kd": "teacher_model"}
    for run in ("teacher", "ta", "kd", "takd"):
        sets = arguments_of(tmp_path, run)
        named = [item for item in sets if "cifar_resnet" in item or "shortcut" in item]
        role = network_of.get(run)
        assert named == ([f"models.{role}.key=cifar_resnet", f'models.{role}.kwargs.shortcut="A"'] if role else [])
        assert {f"datasets.cifar10/{split}.init.kwargs.mean=[0.5, 0.4, 0.3]" for split in ("train", "val")} <= set(sets)
    size = sum(parameter.numel() for parameter in network("cifar_resnet", **kwargs).parameters())
    assert f"| teacher (given) | {size:>10,} |" in (tmp_path / "out" / "table.md").read_text()


@pytest.mark.parametrize(
    "more, said",
    [
        (["--teacher_ckpt", "teacher.th"], "--teacher_ckpt: "),
        (
            ["--teacher_ckpt", "teacher.th", "--teacher_model", "cifar_resnett"],
            "there is no model 'cifar_resnett'; the nearest",
        ),
        (["--teacher_model", "cifar_resnet"], "--teacher_model: it says of which network --teacher_ckpt is"),
    ],
    ids=["another network", "no such network", "no checkpoint"],
)
def test_a_teacher_that_does_not_fit_is_found_before_the_first_run(fake, tmp_path, capsys, more, said):
    given(tmp_path, "plain_cnn4", num_classes=10)
    assert fake("--only", "kd", "--seeds", "1", *more, code=2, **CNN) == []
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_tables_own_teacher_as_teacher_ckpt_stays_as_it_is(fake, tmp_path):
    fake("--only", "teacher")
    before = content(tmp_path / "out" / "teacher")
    (tmp_path / "link.pt").symlink_to(tmp_path / "out/teacher/seed0/checkpoint.pt")
    for path in ("out/teacher/seed0/checkpoint.pt", "out/../link.pt"):
        fake("--only", "kd", "--seeds", "1", "--teacher_ckpt", path)
        assert content(tmp_path / "out" / "teacher") == before
    assert "(given)" not in (tmp_path / "out" / "table.md").read_text()
    assert fake("--only", "kd", "--seeds", "1") == []


@pytest.mark.parametrize(
    "path, more", [("teacher", ["--epochs_scale", "0.1"]), ("kd", [])], ids=["shorter", "a student"]
)
def test_a_checkpoint_that_a_run_would_be_made_over_is_refused(fake, tmp_path, capsys, path, more):
    fake("--only", "kd", "--seeds", "1")
    before = content(tmp_path / "out")
    assert fake("--only", "kd", "--teacher_ckpt", f"out/{path}/seed0/checkpoint.pt", *more, code=2) == []
    assert "name a copy of the file that lies elsewhere" in capsys.readouterr().err
    assert content(tmp_path / "out") == before


# ---------------------------------------------------------------- what is shown meanwhile


class Terminal(io.StringIO):
    def isatty(self):
        return True


def half_way(tmp_path):
    """Three runs of which the teacher is done, KD at its third of 360 epochs and scratch at its beginning."""
    runs = jobs.plan(EXPERIMENTS["digits"], tmp_path, Options(seeds=1, only=("teacher", "scratch", "kd")))
    teacher, scratch, kd = runs
    epochs = [{"val_accuracy": value, "seconds": 2.0} for value in (50.0, 60.0, 71.25)]
    for job, found in ((teacher, epochs * 10), (kd, epochs)):
        job.output_dir.mkdir(parents=True)
        (job.output_dir / "results.json").write_text(json.dumps({"epochs": found}))
    return runs, [kd, scratch]


def test_the_status_says_how_far_the_runs_are(tmp_path):
    (teacher, *_), running = half_way(tmp_path)
    line = status.StatusLine([teacher, *running], 2, Terminal())
    line.finished(teacher, None)
    # 357 and 360 epochs of two seconds each, two at a time: the longer of them is what counts
    assert line.text(running) == (
        "1/3 runs done, about 0:12:00 left | kd seed 0: epoch 3/360, val 71.25 % | scratch seed 0: starts"
    )


def write_epochs(job, seconds, **more):
    job.output_dir.mkdir(parents=True, exist_ok=True)
    epochs = [{"val_accuracy": 50.0, "seconds": each, **more} for each in seconds]
    job.folder.results.write_text(json.dumps({"epochs": epochs}))


def test_when_all_is_done_no_time_is_left_to_tell(tmp_path):
    runs, _ = half_way(tmp_path)
    line = status.StatusLine(runs, 2, Terminal())
    for job in runs:
        line.finished(job, 1.0)
    assert line.text([]) == line.text([], 80) == "3/3 runs done"


def test_a_run_starts_until_its_first_epoch_and_metrics_of_text_are_named(tmp_path):
    (job,) = jobs.plan(EXPERIMENTS["digits"], tmp_path, Options(seeds=1, only=("scratch",)))
    line = status.StatusLine([job], 1, Terminal())
    assert line.text([job]).endswith("seed 0: starts")
    write_epochs(job, [])
    assert line.text([job]).endswith("seed 0: in epoch 1/360")
    write_epochs(job, [2.0], val_metrics={"f1": 50.0, "accuracy": 60.0})
    assert line.text([job]).endswith("seed 0: epoch 1/360, val f1 50.00")


@pytest.mark.parametrize(
    "columns, line",
    [
        (120, "1/5 runs done, about 0:23:57 left | kd seed 0: epoch 3/360, val 71.25 % | scratch seed 0: starts"),
        (90, "1/5 runs done, about 0:23:57 left | kd seed 0 3/360 71.25 % | scratch seed 0 starts"),
        (80, "1/5 runs done, about 0:23:57 left | kd seed 0 3/360 | scratch seed 0 starts"),
        (60, "1/5 runs done, about 0:23:57 left | kd seed 0 3/360 | 1 more"),
        (50, "1/5 runs done, about 0:23:57 left | 2 more"),
        (20, "1/5 runs done, about"),
    ],
)
def test_where_there_is_little_room_the_time_left_stays(tmp_path, columns, line):
    (teacher, *_), running = half_way(tmp_path)
    more = jobs.plan(EXPERIMENTS["digits"], tmp_path, Options(seeds=2, only=("scratch", "kd")))[-2:]
    shown = status.StatusLine([teacher, *running, *more], 2, Terminal())
    shown.finished(teacher, None)
    assert shown.text(running, columns) == line


# ---------------------------------------------------------------- the time left


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time_left.time, "monotonic", lambda: now[0])
    return now


def three_runs(tmp_path):
    return jobs.plan(EXPERIMENTS["digits"], tmp_path, Options(seeds=3, only=("scratch",)))


def test_what_a_run_spends_outside_its_epochs_counts(tmp_path, clock):
    first, second, third = three_runs(tmp_path)
    estimate = time_left.TimeLeft(at_once=1)
    estimate.note(first, [])
    assert estimate.seconds({first: 18, second: 18, third: 18}) is None  # nothing is known
    clock[0] = 14.2  # twelve seconds of imports, two epochs
    estimate.note(first, [1.1, 1.1])
    assert estimate.seconds({first: 18, second: 18, third: 18}) == pytest.approx(3 * (12 + 18 * 1.1) - 14.2)
    clock[0] = 35.0
    estimate.finish(first, [1.1] * 18, 35.0)  # three more seconds: tests, curves
    estimate.note(second, [])
    clock[0] = 45.0  # it imports
    assert estimate.seconds({second: 18, third: 18}) == pytest.approx(2 * 35 - 10)


def test_a_first_epoch_that_fills_the_cache_is_not_the_pace_of_the_others(tmp_path, clock):
    first, second, third = three_runs(tmp_path)
    estimate = time_left.TimeLeft(at_once=1)
    estimate.note(first, [])
    clock[0] = 610.0
    estimate.note(first, [600.0])
    assert estimate.seconds({first: 100, second: 100, third: 100}) is None
    clock[0] = 612.0
    estimate.note(first, [600.0, 2.0])
    assert estimate.seconds({first: 100, second: 100, third: 100}) == pytest.approx(98 * 2 + 2 * (10 + 100 * 2))


def test_a_run_that_goes_on_is_measured_from_where_it_went_on(tmp_path, clock):
    first, second, _ = three_runs(tmp_path)
    estimate = time_left.TimeLeft(at_once=2)
    estimate.note(first, [5.0] * 10)  # by another process
    clock[0] = 15.0
    estimate.note(first, [5.0] * 11)
    # ten seconds to start, five an epoch; both at once, the other from its beginning
    assert estimate.seconds({first: 20, second: 20}) == pytest.approx(10 + 20 * 5)


def test_a_student_waits_for_its_teacher(tmp_path, clock):
    teacher, kd = jobs.plan(EXPERIMENTS["digits"], tmp_path, Options(seeds=1, only=("kd",)))
    estimate = time_left.TimeLeft(at_once=4)
    estimate.note(teacher, [2.0, 2.0])
    assert estimate.seconds({teacher: 10, kd: 10}) == pytest.approx(8 * 2 + 10 * 2)


def test_on_a_terminal_one_line_is_drawn_anew_and_others_are_not_mixed_with_it(tmp_path, monkeypatch):
    runs, running = half_way(tmp_path)
    monkeypatch.setenv("COLUMNS", "40")
    out = Terminal()
    line = status.StatusLine(runs, 2, out)
    line.update(running)
    line.update(running)
    line.print_line("done")
    line.close()
    cut = "0/3 runs done, about 0:13:14 left"  # 40 epochs of the teacher, then 357 of KD
    assert out.getvalue() == f"{cut}\r\x1b[K{cut}\r\x1b[Kdone\n"


def test_without_a_terminal_there_is_a_line_a_minute(tmp_path, monkeypatch):
    runs, running = half_way(tmp_path)
    out, now = io.StringIO(), [0.0]
    monkeypatch.setattr(status.time, "monotonic", lambda: now[0])
    line = status.StatusLine(runs, 2, out)
    for now[0] in (1.0, 59.0, 61.0, 90.0, 122.0):
        line.update(running)
    assert [text.partition(",")[0] for text in out.getvalue().splitlines()] == ["0/3 runs done"] * 2
    assert "\r" not in out.getvalue()
