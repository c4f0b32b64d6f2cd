"""akd-reproduce: which runs, in which order, which are done, what a failure does; once with the real akd-train."""

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest

pytest.importorskip("scipy", reason="the table needs scipy: pip install '.[test]'")
pytest.importorskip("matplotlib", reason="the plot needs matplotlib: pip install '.[test]'")

from akd_ext.reproduce import cli as reproduce
from akd_ext.reproduce import configs
from akd_ext.reproduce import experiments as tables
from akd_ext.reproduce.experiments import Run, Stage

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
    results["epochs"] = [{"val_accuracy": 80.0 + epoch} for epoch in range(360)]
    (folder / "results.json").write_text(json.dumps(results))
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Runs the digits' table in a folder of its own with the stand-in, and returns the new calls."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(textwrap.dedent(FAKE_TRAIN))
    # Its own copy of the configurations, so that a test may change one.
    (tmp_path / "configs").mkdir()
    configs.main(["--write", "--root", str(tmp_path / "configs")])
    monkeypatch.setattr(reproduce, "config_dir", lambda: tmp_path / "configs")
    monkeypatch.setattr(reproduce, "fetch", lambda experiment, options: None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(reproduce.Workers.__init__, "__defaults__", ((sys.executable, str(tmp_path / "train.py")),))

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


def test_every_command_is_printed_as_it_would_be_typed(fake, capsys):
    fake("--only", "scratch", "--seeds", "1")
    printed = [line for line in capsys.readouterr().out.splitlines() if "akd-train" in line]
    config = reproduce.config_dir() / "digits" / "scratch.yaml"
    assert printed == [
        f"OMP_NUM_THREADS=1 akd-train --config {config} --seed 0 --device cpu -student_only"
        " --output_dir out/scratch/seed0"
    ]


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
    assert fake("--only", "kdd", code=1) == []
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
        (lambda out: (reproduce.config_dir() / "digits/kd.yaml").write_text("x: 1"), ["kd seed0 teacher"]),
        (lambda out: None, []),
    ],
    ids=["incomplete", "torn", "no checkpoint", "no fingerprint", "another teacher", "another config", "untouched"],
)
def test_a_run_is_repeated_when_it_does_not_answer_the_question(fake, tmp_path, spoil, again):
    fake("--only", "kd", "--seeds", "1")
    spoil(tmp_path / "out")
    assert fake("--only", "kd", "--seeds", "1") == again


def test_another_device_is_another_question(fake):
    fake("--only", "scratch", "--seeds", "1")
    assert fake("--only", "scratch", "--seeds", "1", "--device", "cuda") == ["scratch seed0 "]


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
    options = reproduce.Options(seeds=1, only=("scratch", "teacher"))
    jobs = reproduce.plan(tables.DIGITS, tmp_path / "out", options)
    with pytest.raises(reproduce.ReproduceError, match="broken"):
        reproduce.Workers(jobs, 2, [sys.executable, "train.py"]).run()
    assert is_gone(int((tmp_path / "pid").read_text()))


@pytest.mark.integration
def test_the_real_akd_train_fills_a_table(tmp_path, monkeypatch, capsys):
    """A tiny table through the real processes: a teacher, then Annealing-KD."""
    for module in ("torchdistill", "torchvision.datasets", "sklearn"):
        pytest.importorskip(module, reason=f"akd-train on the digits needs {module}: pip install '.[test]'")
    runs = {
        "teacher": Run("teacher", "t", "teacher", (Stage("ce", 2, 0.05),)),
        "annealing_kd": Run(
            "Annealing-KD", "a", "student", (Stage("annealing", 2, 0.1), Stage("ce", 1, 0.01)), "teacher"
        ),
    }
    monkeypatch.setattr(
        configs, "EXPERIMENTS", {"digits": replace(tables.DIGITS, tau_max=2, runs=runs, baseline="teacher")}
    )
    monkeypatch.setattr(reproduce, "config_dir", lambda: tmp_path / "configs")
    configs.main(["--write", "--root", str(tmp_path / "configs")])
    out = tmp_path / "out"
    assert reproduce.main(["digits", "--output_dir", str(out), "--seeds", "1"]) == 0, capsys.readouterr().err
    results = json.loads((out / "annealing_kd" / "seed0" / "results.json").read_text())
    assert [(e["stage"], e["T"], e["phi"]) for e in results["epochs"]] == [(1, 2, 0.5), (1, 1, 1.0), (2, None, None)]
    rows = json.loads((out / "table.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["teacher", "annealing_kd"]
    assert rows[1]["best"]["mean"] == pytest.approx(results["best"]["test_accuracy"])


CNN = {"table": "cifar10-cnn_no_aug"}


def given(tmp_path):
    import torch

    path = tmp_path / "resnet.th"
    torch.save({"state_dict": {"module.fc.weight": torch.ones(2)}, "best_prec1": 93.0}, path)
    return path


def arguments_of(tmp_path, run):
    return json.loads((tmp_path / "out" / run / "seed0" / "arguments.json").read_text())


def test_all_methods_of_a_seed_come_before_the_next_seed():
    jobs = reproduce.plan(tables.DIGITS, reproduce.Path("out"), reproduce.Options(seeds=2))
    assert [job.label for job in jobs] == [
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
    ],
)
def test_an_option_that_means_nothing_is_refused(tmp_path, capsys, more, said):
    try:
        code = reproduce.main(["digits", "--output_dir", str(tmp_path / "out"), *more])
    except SystemExit as error:  # argparse
        code = error.code
    assert code != 0 and said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_users_number_of_threads_is_kept_and_printed(fake, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    fake("--only", "scratch", "--seeds", "1")
    assert "OMP_NUM_THREADS=3 akd-train " in capsys.readouterr().out


@pytest.mark.integration
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
    assert list(adopted["model"]) == ["fc.weight"]
    assert "| teacher (given) |" in (tmp_path / "out" / "table.md").read_text()
    again = fake("--only", "kd", "--seeds", "1", "--teacher_ckpt", str(checkpoint), **CNN)
    assert again == []
    torch.save({"fc.weight": torch.zeros(2)}, checkpoint)
    again = fake("--only", "kd", "--seeds", "1", "--teacher_ckpt", str(checkpoint), **CNN)
    assert again == ["kd seed0 teacher", "teacher seed0 "]


def test_a_teacher_that_would_run_code_is_refused(fake, tmp_path, capsys):
    import pickle

    class Code:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"state_dict": Code()}))
    fake("--only", "kd", "--teacher_ckpt", str(tmp_path / "evil.pt"), code=1, **CNN)
    assert "is no checkpoint of weights" in capsys.readouterr().err
    assert not (tmp_path / "executed").exists()
    fake("--only", "kd", "--teacher_ckpt", str(tmp_path / "none.pt"), code=1, **CNN)
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


def test_the_data_folder_and_the_cache_go_to_every_run(fake, tmp_path):
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
    reproduce.fetch(tables.EXPERIMENTS["cifar100-cnn"], reproduce.Options(data_dir=tmp_path))
    reproduce.fetch(tables.DIGITS, reproduce.Options())
    assert calls == [((str(tmp_path),), {"download": True})]

    def no_network(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets, "CIFAR100", no_network)
    with pytest.raises(reproduce.ReproduceError, match="--data_dir: torchvision gets no cifar100 into .*no network"):
        reproduce.fetch(tables.EXPERIMENTS["cifar100-cnn"], reproduce.Options(data_dir=tmp_path))


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
    done = subprocess.run([*reproduce.TRAIN, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "--config" in done.stdout, done.stderr
