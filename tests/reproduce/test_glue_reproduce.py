"""akd-reproduce on GLUE: what is run, the table beside the paper's, and the files for the leaderboard."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

for package in ("torchdistill", "torchvision.datasets"):
    pytest.importorskip(package, reason="akd-reproduce needs it: pip install '.[test]'")

from text_fixture import make_model, write_cola, write_pairs  # noqa: E402

from akd_ext.reproduce import cli as reproduce  # noqa: E402
from akd_ext.reproduce import glue_table, jobs, leaderboard, report  # noqa: E402
from akd_ext.reproduce.experiments import EXPERIMENTS  # noqa: E402
from akd_ext.train.system.device import pick_device  # noqa: E402
from akd_ext.train.tasks.text import predictions as submission  # noqa: E402
from akd_ext.train.tasks.text.glue import TASKS  # noqa: E402


def arguments(*more, name="glue-distilroberta"):
    return reproduce.parser().parse_args([name, *more])


def plan(*more, name="glue-distilroberta", output_dir=Path("out")):
    return jobs.plan(EXPERIMENTS[name], output_dir, reproduce._options(arguments(*more, name=name)))


def test_a_teacher_comes_before_its_students_and_once():
    runs = plan("--tasks", "cola", "rte", "--seeds", "2", "--only", "kd", "takd")
    labels = [job.label for job in runs]
    assert len(labels) == len(set(labels)) == 2 * (2 + 2 * 2)  # teacher and TA once, KD and TAKD for each seed
    for job in runs:
        assert job.teacher is None or labels.index(job.teacher.label) < labels.index(job.label)
    (ta,) = [job for job in runs if job.run == "takd" and job.task == "rte" and job.seed == 1]
    assert (ta.teacher.run, ta.teacher.seed, ta.teacher.teacher.run) == ("ta", 0, "teacher")
    assert ["--teacher", "out/ta/rte/seed0/checkpoint"] == ta.arguments()[ta.arguments().index("--teacher") :][:2]


def test_without_only_it_is_the_papers_table_and_the_ablations_are_asked_for():
    assert {job.run for job in plan("--seeds", "1")} == {"teacher", "ta", "scratch", "kd", "takd", "annealing_kd"}
    assert len({job.task for job in plan("--seeds", "1")}) == 9
    assert {job.run for job in plan("--seeds", "1", "--ablations")} == set(EXPERIMENTS["glue-distilroberta"].rows)


def test_other_models_shorter_training_and_layers_reach_akd_train():
    runs = plan("--tasks", "mrpc", "--only", "annealing_kd", "--seeds", "1", "--teacher", "big", "--student", "small",
                "--student_layers", "0,3", "--epochs_scale", "0.5", "--glue_dir", "data", "--length_buckets")  # fmt: skip
    teacher, student = (job.arguments() for job in runs)
    assert teacher[teacher.index("--student") + 1] == "big" and "--teacher" not in teacher
    assert student[student.index("--student") + 1] == "small"
    assert {"train.stage1.num_epochs=7", "train.stage2.num_epochs=3"} <= set(student)
    assert "models.student_model.student_init={layers: [0, 3]}" in student
    assert "train.num_epochs=5" in teacher and not any("student_init" in item for item in teacher)
    assert {"--glue_dir", "--length_buckets"} <= set(teacher) & set(student)


def test_another_learning_rate_reaches_every_stage_and_the_table(capsys):
    runs = plan("--tasks", "mrpc", "--only", "annealing_kd", "--seeds", "1", "--lr", "1e-4")
    teacher, student = (job.arguments() for job in runs)
    assert "train.optimizer.kwargs.lr=0.0001" in teacher
    assert {f"train.stage{n}.optimizer.kwargs.lr=0.0001" for n in (1, 2)} <= set(student)
    assert "learning rate 0.0001, not the paper's" in glue_table.footnote("2 seeds", 1, {}, lr=1e-4)
    for wrong in ("0", "nan", "inf", "fast"):
        with pytest.raises(SystemExit):
            arguments("--lr", wrong)
        assert "argument --lr" in capsys.readouterr().err


def test_for_the_leaderboard_three_tasks_start_from_mnli():
    runs = plan("--only", "kd", "--seeds", "1", "--student_layers", "0,1")
    more = leaderboard.plan_submission(runs)
    assert [job.task for job in more] == ["rte", "mrpc", "stsb"]
    for job in more:
        asked = job.arguments()
        assert asked[asked.index("--student") + 1] == "out/kd/mnli/seed0/checkpoint"
        assert "models.student_model.model_kwargs.ignore_mismatched_sizes=true" in asked
        assert not any("student_init" in item for item in asked)
        assert job.output_dir not in [other.output_dir for other in runs]
    assert leaderboard.plan_submission(plan("--only", "kd", "--tasks", "rte", "--seeds", "1")) == []


@pytest.mark.parametrize("more, said", [(["--tasks", "cola", "sst"], "--tasks: there is no task 'sst'; the tasks are cola"),
                                        (["--only", "akd"], "--only: there is no run 'akd'; the runs are teacher")])  # fmt: skip
def test_a_wrong_name_is_said(more, said, capsys):
    assert reproduce.main(["glue-bert-small", *more]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "more, said",
    [
        (["--data_dir", "x"], "--data_dir: it is for the tables of images, and glue-bert-small is none"),
        (["--teacher_ckpt", "x"], "--teacher_ckpt: it is for the tables of images"),
        (["--student", "./nowhere"], "--student: there is no folder './nowhere'"),
        (
            ["--student", "{student}", "--student_layers", "0,2"],
            "--student_layers [0, 2]: '{student}' has layers 0 to 1",
        ),
        (
            ["--tasks", "rte", "--submission", "{sent}"],
            "--submission: rte start from the MNLI student, as in Table 4; add",
        ),
        (["--only", "teacher", "--submission", "{sent}"], "--submission: students answer, and --only names none"),
        (
            ["--tasks", "cola", "--submission", "{student}/config.json"],
            "--submission: '{student}/config.json' cannot be",
        ),
    ],
)
def test_what_cannot_work_is_said_before_hours_of_training(tmp_path, capsys, more, said):
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "config.json").write_text('{"num_hidden_layers": 2}')
    places = {"student": tmp_path / "student", "sent": tmp_path / "sent"}
    more = [item.format(**places) for item in more]
    assert reproduce.main(["glue-bert-small", "--output_dir", str(tmp_path / "out"), *more]) == 2
    assert said.format(**places) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_other_data_in_the_same_place_is_another_run(tmp_path):
    def fingerprint():
        jobs.data_sha256.cache_clear()  # as in another process
        command = ("--tasks", "cola", "--only", "scratch", "--seeds", "1", "--glue_dir", str(tmp_path / "glue"))
        (job,) = plan(*command)
        return job.fingerprint()

    write_cola(tmp_path / "glue", train=32)
    before = fingerprint()
    assert fingerprint() == before
    write_cola(tmp_path / "glue", train=31)
    assert fingerprint() != before
    assert before["device"] == pick_device("auto").type


def result(**metrics):
    return {"best": {"test_metrics": metrics}, "versions": {"torch": "1"}, "epochs": [{"seconds": 2.0}]}


def test_the_table_stands_beside_the_papers(tmp_path):
    command = ("--tasks", "mrpc", "mnli", "stsb", "--seeds", "2", "--only", "kd")
    runs = {(job.run, job.task, job.seed): job for job in plan(*command, name="glue-bert-small", output_dir=tmp_path)}
    found = {
        runs["kd", "mrpc", 0]: result(f1=80.0, accuracy=70.0),
        runs["kd", "mrpc", 1]: result(f1=82.0, accuracy=72.0),
        runs["kd", "mnli", 0]: result(accuracy=60.0, accuracy_mismatched=62.0),
        runs["kd", "stsb", 0]: result(pearson=None, spearmanr=None),
    }
    options = reproduce._options(arguments("--student", "mine"))
    table = glue_table.build(EXPERIMENTS["glue-bert-small"], found, options)
    report.write_table("glue-bert-small", table, found, tmp_path)
    text = table.text
    ours, paper = (row.split("|")[1:-1] for row in text.splitlines()[2:4])
    assert [cell.strip() for cell in ours] == ["KD", "81.00 ± 1.41", "0.00", "60.00 / 62.00", "47.33", "45.67"]
    # score: (81 + 0 + 61) / 3; GLUE's: ((75 + 77) / 2 + 0 + 61) / 3
    assert [cell.strip() for cell in paper] == ["*paper*", "86.00", "72.30", "72.62 / 73.19", "77.07", ""]
    assert "Other models than the paper's: student mine." in text
    data = json.loads((tmp_path / "table.json").read_text())
    assert data["seconds_per_epoch"]["kd mrpc seed 0"] == 2.0
    written = (tmp_path / "table.md").read_text()
    assert written.startswith("# akd-reproduce glue-bert-small\n")
    (seconds,) = [line for line in written.splitlines() if line.startswith("| KD") and " 2.0 " in line]
    assert [cell.strip() for cell in seconds.split("|")[1:-1]] == ["KD", "2.0", "2.0", "2.0"]


def write_all(folder, **wrong):
    folder.mkdir(parents=True, exist_ok=True)
    for task in TASKS.values():
        for name in task.submission:
            answers = [5.2, -0.1, 2.5] if task.is_regression else [0, 1, 1]
            (folder / name).write_text(wrong.get(name) or submission.lines(task, ["0", "1", "2"], answers))


def test_scores_are_cut_to_their_range_and_labels_are_the_leaderboards(tmp_path):
    write_all(tmp_path)
    assert submission.problems(tmp_path) == []
    assert (tmp_path / "STS-B.tsv").read_text() == "index\tprediction\n0\t5.000\n1\t0.000\n2\t2.500\n"
    assert (tmp_path / "CoLA.tsv").read_text() == "index\tprediction\n0\t0\n1\t1\n2\t1\n"
    assert (tmp_path / "AX.tsv").read_text() == "index\tprediction\n0\tentailment\n1\tneutral\n2\tneutral\n"
    assert (
        tmp_path / "QNLI.tsv"
    ).read_text() == "index\tprediction\n0\tentailment\n1\tnot_entailment\n2\tnot_entailment\n"


@pytest.mark.parametrize(
    "name, text, said",
    [
        (
            "RTE.tsv",
            "index\tprediction\n0\t1\n",
            "RTE.tsv, line 2: '0\t1' is no answer, expected an index and one of entail",
        ),
        (
            "STS-B.tsv",
            "index\tprediction\n0\t5.1\n",
            "STS-B.tsv, line 2: '0\t5.1' is no answer, expected an index and a score",
        ),
        ("STS-B.tsv", "index\tprediction\n0\tnan\n", "STS-B.tsv, line 2"),
        (
            "CoLA.tsv",
            "id\tlabel\n0\t1\n",
            "CoLA.tsv, line 1: the header is 'id\tlabel', expected 'index<TAB>prediction'",
        ),
        ("QQP.tsv", "index\tprediction\n0\t1\n0\t1\n", "QQP.tsv has an index twice"),
        ("WNLI.tsv", "index\tprediction\n0\t1", "WNLI.tsv is cut off or empty"),
    ],
)
def test_what_the_leaderboard_would_not_take_is_said(tmp_path, name, text, said):
    write_all(tmp_path, **{name: text})
    (problem,) = submission.problems(tmp_path)
    assert problem.startswith(said)


def test_only_a_complete_set_becomes_an_archive(tmp_path):
    def predict(job, folder):
        write_all(folder)
        if job == "half":
            (folder / "AX.tsv").unlink()

    said = submission.collect({"kd": {"cola": "whole"}, "takd": {"cola": "half"}}, tmp_path, predict)
    assert said[0] == f"{tmp_path}/kd.zip: 11 files for the leaderboard"
    assert said[1] == f"{tmp_path}/takd: the leaderboard takes complete sets only; AX.tsv is missing"
    assert sorted(zipfile.ZipFile(tmp_path / "kd.zip").namelist()) == sorted(submission.FILES)
    assert not (tmp_path / "takd.zip").exists()


@pytest.mark.integration
def test_from_the_command_to_the_table_and_the_predictions(tmp_path, capfd):
    glue, model = write_cola(tmp_path / "glue", train=32, dev=8), make_model(tmp_path / "model")
    command = ["glue-bert-small", "--tasks", "cola", "--only", "scratch", "--seeds", "1", "--epochs_scale", "0.03",
               "--glue_dir", str(glue), "--student", model, "--device", "cpu", "--output_dir", str(tmp_path / "out"),
               "--submission", str(tmp_path / "sent")]  # fmt: skip
    assert reproduce.main(command) == 0
    said = capfd.readouterr().out
    assert "the leaderboard takes complete sets only; RTE.tsv is missing" in said
    assert (tmp_path / "sent" / "scratch" / "CoLA.tsv").read_text().startswith("index\tprediction\n0\t")
    assert "| scratch |" in (tmp_path / "out" / "table.md").read_text()
    assert reproduce.main(command) == 0
    assert "was already done" in capfd.readouterr().out


@pytest.mark.integration
def test_students_of_rte_start_from_mnli_and_a_complete_answer_is_written(tmp_path, capfd):
    """A method with a teacher: that of RTE, which both of its students have, is trained once."""
    glue = tmp_path / "glue"
    write_pairs(glue / "RTE", ("train", "dev", "test"), ("entailment", "not_entailment"), "label")
    names = ("train", "dev_matched", "dev_mismatched", "test_matched", "test_mismatched")
    write_pairs(glue / "MNLI", names, ("entailment", "neutral", "contradiction"), "gold_label")
    model = make_model(tmp_path / "model", kind="encoder")
    command = ["glue-bert-small", "--tasks", "rte", "mnli", "--only", "kd", "--seeds", "1", "--epochs_scale", "0.03",
               "--glue_dir", str(glue), "--teacher", model, "--student", model, "--device", "cpu",
               "--output_dir", str(tmp_path / "out"), "--submission", str(tmp_path / "sent")]  # fmt: skip
    assert reproduce.main(command) == 2
    assert "AX.tsv" in capfd.readouterr().err and not (tmp_path / "out").exists()
    write_pairs(glue, ("AX",), (), "")
    assert reproduce.main(command) == 0
    assert "kd rte seed 0 from MNLI" in capfd.readouterr().out
    assert sorted(path.name for path in (tmp_path / "sent" / "kd").iterdir()) == [
        "AX.tsv", "MNLI-m.tsv", "MNLI-mm.tsv", "RTE.tsv"]  # fmt: skip
    began = json.loads((tmp_path / "out" / "kd" / "rte" / "from_mnli_seed0" / "fingerprint.json").read_text())
    assert began["start"] == jobs.sha256(
        tmp_path / "out" / "kd" / "mnli" / "seed0" / "checkpoint" / "model.safetensors"
    )


def test_a_missing_file_is_found_before_anything_is_trained(tmp_path, capsys):
    glue = write_cola(tmp_path / "glue")
    assert reproduce.main(["glue-bert-small", "--tasks", "cola", "rte", "--glue_dir", str(glue), "--output_dir",
                           str(tmp_path / "out")]) == 2  # fmt: skip
    assert "there is no file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_that_cannot_be_had_is_found_before_the_teacher_is_trained(tmp_path, capsys, monkeypatch):
    """The assistant of TAKD is the one that nobody named."""
    transformers = pytest.importorskip("transformers", reason="asks for models: pip install '.[glue]'")
    asked = []

    def from_pretrained(name):
        asked.append(name)
        if name == "bert-base-uncased":
            raise OSError("no network")

    for loader in (transformers.AutoConfig, transformers.AutoTokenizer):
        monkeypatch.setattr(loader, "from_pretrained", from_pretrained)
    monkeypatch.setattr("akd_ext.reproduce.pool.subprocess.Popen", lambda *args, **kwargs: pytest.fail("a run began"))
    glue = write_cola(tmp_path / "glue")
    (tmp_path / "model").mkdir()
    model = str(tmp_path / "model")
    code = reproduce.main(["glue-bert-small", "--tasks", "cola", "--teacher", model, "--student", model, "--glue_dir",
                           str(glue), "--output_dir", str(tmp_path / "out")])  # fmt: skip
    assert code == 2 and model in asked
    assert (
        "--ta: the model 'bert-base-uncased' cannot be had: no network; --ta names another" in capsys.readouterr().err
    )


def test_data_that_the_hub_does_not_give_is_found_before_the_first_run(tmp_path, capsys, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="asks the hub: pip install '.[glue]'")

    def no_network(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(datasets, "load_dataset", no_network)
    code = reproduce.main(["glue-bert-small", "--tasks", "cola", "--output_dir", str(tmp_path / "out")])
    assert code == 2
    assert "'cola' could not be loaded from the Hugging Face hub" in capsys.readouterr().err
