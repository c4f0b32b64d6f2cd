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

from akd_ext.experiments import configs, reproduce
from akd_ext.experiments.configs import Run, Stage

# Stands in for akd-train: takes its arguments, writes what akd-reproduce reads, keeps a diary of its calls.
FAKE_TRAIN = """
    import json, pathlib, sys
    arguments = dict(zip(sys.argv[1:-1:2], sys.argv[2::2]))
    folder = pathlib.Path(arguments["--output_dir"])
    teacher = arguments.get("--set", "=").split("=", 1)[1]
    with open("diary.txt", "a") as diary:
        diary.write(f"{folder.parent.name} {folder.name} {pathlib.Path(teacher).parent.parent.name}\\n")
    if pathlib.Path("fail").exists() and folder.parent.name == "kd":
        sys.exit("akd-train: error: the moon is wrong")
    assert not teacher or pathlib.Path(teacher).is_file(), "the teacher is not there yet"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "checkpoint.pt").write_text(folder.parent.name)
    value = {"test_accuracy": 90.0 + int(arguments["--seed"])}
    results = {"seed": int(arguments["--seed"]), "complete": True, "best": value, "last": value, "versions": {"x": "1"}}
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
    monkeypatch.setattr(reproduce.Workers.__init__, "__defaults__", ((sys.executable, str(tmp_path / "train.py")),))

    def run(*arguments, code=0):
        diary = tmp_path / "diary.txt"
        diary.unlink(missing_ok=True)
        assert reproduce.main(["digits", "--output_dir", "out", "--jobs", "4", *arguments]) == code
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
        f"OMP_NUM_THREADS=1 akd-train --config {config} --seed 0 --device cpu --output_dir out/scratch/seed0"
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
    jobs = reproduce.plan(configs.DIGITS, tmp_path / "out", 1, ["scratch", "teacher"], "cpu")
    with pytest.raises(reproduce.ReproduceError, match="broken"):
        reproduce.Workers(jobs, 2, [sys.executable, "train.py"]).run()
    assert is_gone(int((tmp_path / "pid").read_text()))


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
        configs, "EXPERIMENTS", {"digits": replace(configs.DIGITS, tau_max=2, runs=runs, baseline="teacher")}
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
    assert results["teacher"]["test_accuracy"] == pytest.approx(rows[0]["best"]["mean"])


def test_the_runs_use_the_akd_ext_that_runs_here(tmp_path):
    """Started in a clone, `python -m` would take the source tree, which has no kernels, for the installed package."""
    (tmp_path / "akd_ext").mkdir()
    (tmp_path / "akd_ext" / "__init__.py").write_text("raise ImportError('the wrong akd_ext')\n")
    done = subprocess.run([*reproduce.TRAIN, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "--config" in done.stdout, done.stderr
