"""akd-train on text, end to end, with tiny random encoders and files of a few lines."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("torchdistill", reason="akd-train runs torchdistill's boxes; pip install '.[experiments]'")
pytest.importorskip("torchvision.datasets", reason="torchdistill needs torchvision: pip install '.[test]'")

import text_fixture
from text_fixture import WORDS, make_model, write_cola, write_stsb

from akd_ext.train.cli import main

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A folder with models and data."""
    root = tmp_path_factory.mktemp("text")
    for labels in (1, 2):
        make_model(root / f"teacher{labels}", num_labels=labels, layers=3)
        make_model(root / f"student{labels}", num_labels=labels, seed=1)
    write_cola(root / "glue")
    write_stsb(root / "glue")
    return root


@pytest.fixture
def train(there, tmp_path, monkeypatch):
    """Runs akd-train on a generated YAML; gives the exit code and the output folder."""
    monkeypatch.setattr("akd_ext.train.trainer.draw_curves", lambda *args: None)

    def run(method, task, *more, teacher=None, student=None, out="out", stages=(3, 1)):
        labels = 1 if task == "stsb" else 2
        config = tmp_path / f"{task}.yaml"
        config.write_text(text_fixture.bert_small(method, task))
        epochs = (
            [f"train.stage{i}.num_epochs={n}" for i, n in enumerate(stages, start=1)]
            if method.startswith("annealing")
            else [f"train.num_epochs={stages[0]}"]
        )
        if method in ("kd", "annealing_kd"):
            stage = "train.stage1" if method == "annealing_kd" else "train"
            epochs.append(f"{stage}.train_data_loader.dataset_wrapper.kwargs.cache_dir={tmp_path / 'cache'}")
        arguments = ["--config", str(config), "--glue_dir", str(there / "glue"), "--device", "cpu", "--seed", "0",
                     "--student", student or str(there / f"student{labels}"),
                     *(["--teacher", teacher or str(there / f"teacher{labels}")] if method not in ("teacher", "scratch") else []),
                     *(f"--set={item}" for item in epochs), "--output_dir", str(tmp_path / out), "--quiet"]  # fmt: skip
        return main([*arguments, *more]), tmp_path / out

    return run


def read(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def weights(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# A student that says one class throughout has Matthews 0 in every epoch, so the first one is the best of stage I.
CONSTANT = ("--set=train.stage1.optimizer.kwargs.lr=1e-4", "--set=train.stage2.optimizer.kwargs.lr=0.0")


def test_stage_two_starts_from_the_best_of_stage_one_which_may_have_a_metric_of_zero(train):
    code, out = train("annealing_kd", "cola", *CONSTANT)
    assert code == 0
    results = read(out)
    assert [e["val_accuracy"] for e in results["epochs"]] == [0.0] * 4
    assert (results["best"]["epoch"], results["best"]["stage"]) == (1, 1)
    # Stage II stood still, so its weights are those it began with.
    assert same(weights(out / "best.safetensors"), weights(out / "last.safetensors"))
    assert same(weights(out / "checkpoint" / "model.safetensors"), weights(out / "best.safetensors"))

    code, other = train("annealing_kd", "cola", *CONSTANT, "--set=train.stage2.student.src_folder=null", out="other")
    assert code == 0
    assert not same(weights(other / "best.safetensors"), weights(other / "last.safetensors"))


def test_a_folder_is_written_that_hugging_face_reads(train, there):
    code, out = train("annealing_kd", "cola", stages=(1, 1))
    assert code == 0
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(out / "checkpoint")
    assert model.config.id2label == {0: "unacceptable", 1: "acceptable"}
    assert same(weights(out / "best.safetensors"), dict(model.state_dict()))
    assert len(AutoTokenizer.from_pretrained(out / "checkpoint")) == len(WORDS) + 5
    assert not list((out / "checkpoint").glob(".new.*"))


def test_results_name_the_metrics_the_schedule_and_the_terms(train):
    code, out = train("annealing_kd", "stsb", "--set=train.stage1.num_epochs=14", "--set=train.log_freq=1")
    assert code == 0
    results = read(out)
    assert [e["T"] for e in results["epochs"]] == [*range(14, 0, -1), None]
    assert list(results["epochs"][0]["val_metrics"]) == ["pearson", "spearmanr"]
    assert list(results["epochs"][0]["loss_terms"]) == ["annealing_kd"]
    assert list(results["epochs"][-1]["loss_terms"]) == ["model_term"]
    assert results["best"]["test_metrics"]["pearson"] == results["best"]["test_accuracy"]
    assert results["complete"]


@pytest.mark.parametrize("task, epochs, enough", [("cola", 10, 80), ("stsb", 10, 40)])
def test_a_student_learns_from_labels_and_from_a_teacher(train, there, task, epochs, enough):
    """'good' makes a sentence acceptable, or similar to 'good red': a tiny encoder finds that out."""
    fast = ("--set=train.optimizer.kwargs.lr=1e-2", "--set=train.train_data_loader.kwargs.batch_size=8")
    untrained = str(there / f"teacher{1 if task == 'stsb' else 2}")
    code, teacher = train("teacher", task, *fast, student=untrained, out="teacher", stages=(epochs,))
    assert code == 0
    taught = read(teacher)["best"]["val_accuracy"]
    assert taught > enough
    code, out = train("kd", task, *fast, teacher=str(teacher / "checkpoint"), stages=(epochs,))
    assert code == 0
    results = read(out)
    assert results["teacher"]["test_accuracy"] == pytest.approx(taught)
    assert results["best"]["val_accuracy"] > enough
    assert sorted(results["epochs"][0]["loss_terms"]) == ["kd", "model_term"]


def test_stage_one_is_the_formula(train, there):
    """The mean of (student - Phi teacher)^2, worked out here for a student that does not move and drops nothing."""
    still = ["--set=train.stage1.optimizer.kwargs.lr=0.0",
             "--set=train.stage1.criterion.kwargs.sub_terms.annealing_kd.criterion.kwargs.tau_max=2",
             "--set=models.student_model.config_kwargs.hidden_dropout_prob=0.0",
             "--set=models.student_model.config_kwargs.attention_probs_dropout_prob=0.0"]  # fmt: skip
    code, out = train("annealing_kd", "cola", *still, stages=(2, 1))
    assert code == 0
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    texts = [line.split("\t")[3] for line in (there / "glue" / "CoLA" / "train.tsv").read_text().splitlines()]
    batch = AutoTokenizer.from_pretrained(there / "student2")(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        student, teacher = (
            AutoModelForSequenceClassification.from_pretrained(there / name).eval()(**batch).logits
            for name in ("student2", "teacher2")
        )
    for epoch, phi in ((0, 0.5), (1, 1.0)):
        expected = ((student - phi * teacher) ** 2).mean().item()
        # float32, and logits near 0.05: 1e-7 / 0.05 in each, doubled by the square
        assert read(out)["epochs"][epoch]["train_loss"] == pytest.approx(expected, rel=1e-4)


def test_predictions_are_written_as_the_leaderboard_wants_them(train, tmp_path):
    code, out = train("scratch", "cola", "--private_output", str(tmp_path / "private"), stages=(1,))
    assert code == 0
    lines = (tmp_path / "private" / "CoLA.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction"
    assert [line.split("\t")[0] for line in lines[1:]] == ["0", "1", "2", "3", "4"]
    assert {line.split("\t")[1] for line in lines[1:]} <= {"0", "1"}
    again = tmp_path / "again"
    code, _ = train("scratch", "cola", "-test_only", "--private_output", str(again), stages=(1,))
    assert code == 0
    assert (again / "CoLA.tsv").read_text() == "\n".join(lines) + "\n"


def test_the_test_sets_are_read_for_predictions_only(train, tmp_path, capsys):
    glue = write_cola(tmp_path / "glue")
    (glue / "CoLA" / "test.tsv").unlink()
    private = ["--private_output", str(tmp_path / "private")]
    code, out = train("scratch", "cola", "--glue_dir", str(glue), *private, stages=(1,))
    assert code == 2 and not out.exists()
    assert "there is no file" in (said := capsys.readouterr().err) and "test.tsv" in said
    code, out = train("scratch", "cola", "--glue_dir", str(glue), stages=(1,))
    assert code == 0 and read(out)["complete"]


def test_a_finished_run_answers_without_being_trained_again(train, tmp_path):
    """It is known as the same run although its test sets were not read."""
    private = ["--private_output", str(tmp_path / "private")]
    assert train("scratch", "cola", stages=(1,))[0] == 0
    made = (tmp_path / "out" / "results.json").stat().st_mtime_ns
    assert train("scratch", "cola", *private, stages=(1,))[0] == 0
    answers = (tmp_path / "private" / "CoLA.tsv").read_bytes()
    assert (tmp_path / "out" / "results.json").stat().st_mtime_ns == made
    assert train("scratch", "cola", "-test_only", *private, stages=(1,))[0] == 0
    assert (tmp_path / "private" / "CoLA.tsv").read_bytes() == answers


def test_a_folder_for_predictions_that_cannot_be_is_said_before_the_training(train, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    code, out = train("scratch", "cola", "--private_output", str(tmp_path / "file"), stages=(1,))
    assert code == 2 and not (out / "results.json").exists()
    assert f"--private_output: '{tmp_path / 'file'}' cannot be written to" in capsys.readouterr().err


def test_without_test_sets_there_is_nothing_to_predict(train, tmp_path, capsys):
    code, out = train("scratch", "cola", "--set", "private=[]", "--private_output", str(tmp_path / "private"))
    assert code == 2 and not out.exists()
    assert "has no section 'private' that lists test sets" in capsys.readouterr().err


def test_a_stage_may_inherit_the_loader(train, monkeypatch):
    whole = text_fixture.bert_small("annealing_kd", "cola")
    head, second = whole.split("  stage2:\n")
    loaders = second[second.index("    train_data_loader:") : second.index("    teacher:")]
    monkeypatch.setattr(text_fixture, "bert_small", lambda *args: f"{head}  stage2:\n{second.replace(loaders, '')}")
    code, out = train("annealing_kd", "cola", stages=(1, 1))
    assert code == 0
    assert [epoch["stage"] for epoch in read(out)["epochs"]] == [1, 2]


def test_set_says_more_than_student(train, there, tmp_path, capsys):
    """Weights from one folder, the tokenizer from another."""
    code, _ = train("scratch", "cola", "--set", "models.model.tokenizer_kwargs.pretrained_model_name_or_path=./nowhere")
    assert code == 2
    said = "models.model.tokenizer_kwargs.pretrained_model_name_or_path: there is no folder './nowhere'; train it first, or"
    assert said in capsys.readouterr().err


def test_a_checkpoint_whose_classes_are_in_another_order_is_not_compared_with_the_teacher(
    train, there, tmp_path, capsys
):
    assert train("annealing_kd", "cola", stages=(1, 1))[0] == 0
    other = tmp_path / "other"
    shutil.copytree(there / "teacher2", other)
    config = json.loads((other / "config.json").read_text())
    config["id2label"] = {"0": "acceptable", "1": "unacceptable"}
    config["label2id"] = {"acceptable": 0, "unacceptable": 1}
    (other / "config.json").write_text(json.dumps(config))
    code, _ = train("annealing_kd", "cola", "-test_only", teacher=str(other), stages=(1, 1))
    assert code == 2
    assert "the teacher's labels are in the order acceptable, unacceptable" in capsys.readouterr().err


def test_the_cached_teacher_teaches_the_same_and_runs_once(train, tmp_path):
    """Sentences of other lengths stand beside each other in the teacher's pass, so the padding differs in it."""
    _, cached = train("annealing_kd", "cola", out="cached")
    (file,) = (tmp_path / "cache").iterdir()
    made = file.stat().st_mtime_ns
    _, again = train("annealing_kd", "cola", out="again")
    assert file.stat().st_mtime_ns == made and len(list((tmp_path / "cache").iterdir())) == 1
    _, run = train("annealing_kd", "cola", "--set=train.stage1.teacher.forward_proc=forward_logits", out="run")
    losses = [[e["train_loss"] for e in read(out)["epochs"]] for out in (cached, again, run)]
    assert losses[0] == losses[1]
    assert losses[0] == pytest.approx(losses[2], rel=1e-4)  # float32 logits near 0.05, doubled by the square
    assert {"task", "tokenizer", "max_length"} <= set(run_fingerprint(file)["extra"])


def run_fingerprint(path):
    from akd_ext.logit_cache import LogitCache

    return LogitCache.open(path).identity


def test_a_teacher_that_no_stage_runs_is_not_loaded(train):
    code, out = train("kd", "cola", "--set=train.teacher.forward_proc=skip_forward",
                      "--set=train.criterion.kwargs.sub_terms={}", teacher="./nowhere", stages=(1,))  # fmt: skip
    assert code == 0
    assert "the teacher is not loaded: no stage runs it" in (out / "train.log").read_text()


def test_buckets_train_too_and_config_yaml_says_so(train):
    code, out = train("annealing_kd", "cola", "--length_buckets", stages=(1, 1))
    assert code == 0
    assert (out / "config.yaml").read_text().count("LengthBucketSampler") == 2


def test_a_student_takes_layers_of_its_teacher(train, there):
    code, out = train("scratch", "cola", "--set=models.model.student_init={layers: [0, 2]}",
                      "--set=train.optimizer.kwargs.lr=0.0", student=str(there / "teacher2"), stages=(1,))  # fmt: skip
    assert code == 0
    own, theirs = weights(out / "last.safetensors"), weights(there / "teacher2" / "model.safetensors")
    for name, value in own.items():
        assert torch.equal(value, theirs[name.replace("layer.1.", "layer.2.")])
    assert json.loads((out / "checkpoint" / "config.json").read_text())["num_hidden_layers"] == 2


@pytest.mark.parametrize(
    "method, more, said",
    [
        ("annealing_kd", {"teacher": "{there}/headless"},
         "models.teacher_model: '{there}/headless' has no trained classification head (classifier.bias, "
         "classifier.weight would be random)"),
        ("annealing_kd", {"teacher": "{there}/other_words"}, "the teacher's tokenizer (BertTokenizer"),
        ("annealing_kd", {"teacher": "./nowhere"},
         "models.teacher_model.config_kwargs.pretrained_model_name_or_path: there is no folder './nowhere'"),
        ("annealing_kd", {"student": "{there}/few_words"},
         "models.student_model: the tokenizer knows 25 tokens, the model 20: they do not belong together"),
        ("scratch", {"student": "{there}/empty"}, "models.model.tokenizer_kwargs: AutoTokenizer could not be made from"),
        ("scratch", {"set": "models.model.config_kwargs.num_labels=3"},
         "models.model: '{there}/student2' has classifier.weight [2, 16], with num_labels 3 it is [3, 16]"),
        ("scratch", {"student": "{there}/student1", "set": "models.model.config_kwargs.num_labels=1"},
         "the model has 1 labels (without names), the task has 2 (unacceptable, acceptable); set models.model."),
        ("annealing_kd", {"teacher": "{there}/three"},
         "the teacher has 3 labels (yes, no, maybe), the task has 2 (unacceptable, acceptable)"),
        ("scratch", {"student": "{there}/wordless"},
         "models.model.tokenizer_kwargs: '{there}/wordless' holds no tokenizer; tokenizer.save_pretrained() puts it"),
        ("scratch", {"set": "models.model.student_init={layer: [0]}"},
         "models.model.student_init: it is {'layer': [0]}; write it as {layers: [0, 1]}"),
        ("annealing_kd", {"set": "train.stage2.train_data_loader=null"},
         "train.stage2.train_data_loader: it is empty; leave it out, and the stage before lends its own"),
        ("scratch", {"set": "datasets.glue.max_length=1000"},
         "models.model: max_length is 1000, the model takes at most 160 tokens"),
        ("scratch", {"set": "datasets.glue.name=colla"}, "there is no task 'colla'; the nearest valid choice is 'cola'"),
        ("scratch", {"set": "datasets.glue.dataset_id_map.dev=cola/dev"}, "dataset_id_map has no 'dev'"),
        ("scratch", {"set": "datasets.glue.dataset_id_map={train: cola/train}"},
         "'cola/validation' is not defined in datasets"),
        ("scratch", {"set": "models.model.student_init={layers: [9]}"}, "accepted are ints from 0 to 1"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_one_sentence(train, there, capsys, method, more, said):
    if not (there / "headless").exists():
        make_model(there / "headless", kind="encoder")
        make_model(there / "other_words", words=[*WORDS[1:], "else"])
        few = make_model(there / "few_words", words=WORDS[:15])
        (Path(few) / "tokenizer.json").write_bytes((there / "student2" / "tokenizer.json").read_bytes())
        (there / "empty").mkdir()
        names = dict(enumerate(("yes", "no", "maybe")))
        make_model(there / "three", num_labels=3, id2label=names, label2id={name: i for i, name in names.items()})
        (there / "wordless").mkdir()
        for name in ("config.json", "model.safetensors"):
            shutil.copy(there / "student2" / name, there / "wordless" / name)
    models = {k: v.replace("{there}", str(there)) for k, v in more.items() if k != "set"}
    code, out = train(method, "cola", *([f"--set={more['set']}"] if "set" in more else []), **models)
    assert code == 2
    error = capsys.readouterr().err
    assert said.replace("{there}", str(there)) in error
    assert error.strip().count("\n") == 0
    assert not out.exists()


def test_flags_of_the_other_kind_are_refused(capsys, tmp_path):
    from akd_ext.reproduce.recipes import config_dir

    digits = str(config_dir() / "digits" / "scratch.yaml")
    assert main(["--config", digits, "--glue_dir", str(tmp_path)]) == 2
    assert "--glue_dir: it is for text" in capsys.readouterr().err
    glue = str(config_dir() / "glue" / "bert_small" / "scratch.yaml")
    assert main(["--config", glue, "--channels_last"]) == 2
    assert "--channels_last: it is for images" in capsys.readouterr().err
