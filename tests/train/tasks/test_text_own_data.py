"""A user's own CSV and JSON: read, refused where they are wrong, and distilled on with the example files."""

from __future__ import annotations

import json

import pytest

for package in ("torchdistill", "torchvision.datasets"):
    pytest.importorskip(package, reason="akd_ext.experiments needs it: pip install '.[experiments]'")

from text_fixture import make_model, sentences  # noqa: E402

from akd_ext.reproduce.recipes import config_dir  # noqa: E402
from akd_ext.train.system.errors import ConfigError  # noqa: E402
from akd_ext.train.tasks.text.user_files import read_table  # noqa: E402


def read(tmp_path, text, name="train.csv"):
    (tmp_path / name).write_text(text)
    return read_table({"train": str(tmp_path / name)})


def test_csv_with_quotes_and_words_as_labels(tmp_path):
    task, found = read(tmp_path, 'label,sentence2,sentence1\nyes,"b ""b"", c",a\nno,d,e\n')
    assert (task.labels, task.metrics, task.is_regression) == (("no", "yes"), ("accuracy",), False)
    assert [(e.texts, e.label) for e in found["train"]] == [(("a", 'b "b", c'), 1), (("e", "d"), 0)]


def test_json_in_both_forms_and_one_sentence(tmp_path):
    rows = [{"text": "a", "label": 10}, {"text": "b", "label": 2}]
    for name, text in (("x.json", json.dumps(rows)), ("x.jsonl", "\n".join(map(json.dumps, rows)) + "\n")):
        task, found = read(tmp_path, text, name)
        assert task.labels == ("2", "10")
        assert [(e.texts, e.label) for e in found["train"]] == [(("a",), 1), (("b",), 0)]


def test_decimals_are_a_regression(tmp_path):
    task, found = read(tmp_path, "a,b,label\nx,y,1.5\nz,w,2.0\n")
    assert task.is_regression and task.metrics == ("pearson", "spearmanr")
    assert [(e.texts, e.label) for e in found["train"]] == [(("x", "y"), 1.5), (("z", "w"), 2.0)]
    assert read(tmp_path, "a,b,label\nx,y,1.5\nz,w,2\n")[0].labels == ("2", "1.5")  # not all of them: classes


def test_other_columns_are_left_alone(tmp_path):
    _, found = read(tmp_path, "id,sentence1,label,comment\n7,a,yes,x\n8,b,no,\n")
    assert [e.texts for e in found["train"]] == [("a",), ("b",)]
    assert [e.texts for e in read(tmp_path, "a,b,label\nx,y,1\nz,w,0\n")[1]["train"]] == [("x", "y"), ("z", "w")]


@pytest.mark.parametrize(
    "name, text, said",
    [
        ("train.csv", "sentence1,y\na,1\n", "train.csv, line 2: there is no column 'label' among sentence1, y"),
        ("train.csv", "sentence1,label\na,1\n ,0\n", "line 3: the column 'sentence1' is empty, expected a sentence"),
        ("train.csv", "sentence1,label\na,1\nb\n", "line 3: it lacks 'label'; expected sentence1, label"),
        ("train.csv", "sentence1,label\na,1\nb,c,0\n", "line 3: more than 2 columns, the header has sentence1, label"),
        ("train.csv", "sentence1,label\na,1\nb,1\n", "every label is '1', expected two classes or more"),
        ("train.csv", "sentence1,label\n", "train.csv holds no examples"),
        ("train.csv", "sentence1,label\na,1\nb,\n", "line 3: the label is empty"),
        ("train.csv", 'label,sentence1\n1,a\n0,"b\n1,c\n0,d\n', "line 3: the row that begins here is no CSV"),
        ("train.csv", 'label,sentence1\n1,"a "b" c"\n0,d\n', "line 2: the row that begins here is no CSV"),
        ("train.csv", "id,title,text,label\n1,a,b,1\n", "which of the columns id, title, text are the text? Name"),
        (
            "train.csv",
            "id,text,label\n1,a,b\n2,c,d\n",
            "which of the columns id and text are the text? 'id' holds only numbers",
        ),
        (
            "train.csv",
            "text,score,label\na,1.5,b\nc,2,d\n",
            "'score' holds only numbers: name the text sentence1 (and, in",
        ),
        (
            "train.csv",
            "idx,text,label\nq1,a,b\nq2,c,d\n",
            "'idx' is called like the number of a row: name the text sentence1",
        ),
        ("x.json", '[{"id": 1, "a": "b", "label": 1}, {"id": 2, "a": "c", "label": 2}]', "or drop 'id'"),
        ("x.json", '[{"a": "b", "label": 1}, {"a": "", "label": 2}]', "x.json, item 2: the column 'a' is empty"),
        ("train.csv", "label\n1\n", "line 2: there is no column beside 'label', expected a sentence"),
        ("x.jsonl", '{"a": "b", "label": 1}\n{"a"\n', "x.jsonl, line 2: it is no JSON"),
        ("x.jsonl", '{"a": "b", "label": 1}\n[1]\n', "x.jsonl, line 2: it is [1], expected an object with a label"),
        ("x.json", "[{]", "x.json is no JSON"),
        ("x.txt", "a", "x.txt' is no .csv, .json or .jsonl"),
    ],
)
def test_a_bad_file_is_one_sentence_that_says_where(tmp_path, name, text, said):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text, name)
    assert said in str(caught.value)


def test_the_dev_file_must_know_the_same_labels(tmp_path):
    for name, label in (("train.csv", "1\nb,0"), ("dev.csv", "2")):
        (tmp_path / name).write_text(f"sentence1,label\na,{label}\n")
    with pytest.raises(ConfigError, match="dev.csv, line 2: the label is '2', expected one of 0, 1"):
        read_table({"train": str(tmp_path / "train.csv"), "validation": str(tmp_path / "dev.csv")})
    with pytest.raises(ConfigError, match="there is no file '.*nowhere.csv'"):
        read_table({"train": str(tmp_path / "nowhere.csv")})
    with pytest.raises(ConfigError, match="' is a folder; accepted: a .csv, .json or .jsonl file"):
        read_table({"train": str(tmp_path)})


@pytest.mark.integration
def test_the_two_example_files_distil_on_them(tmp_path, monkeypatch):
    from akd_ext.train.cli import main

    monkeypatch.chdir(tmp_path)  # the examples name ./train.csv and ./runs
    monkeypatch.setattr("akd_ext.train.trainer.draw_curves", lambda *args: None)
    for name, size in (("train", 24), ("dev", 9)):
        rows = [f"{text},good red,{('no', 'yes', 'perhaps')[i % 3]}" for i, (text, _) in enumerate(sentences(size))]
        (tmp_path / f"{name}.csv").write_text("\n".join(["sentence1,sentence2,label", *rows]) + "\n")
    model = make_model(tmp_path / "model", num_labels=3)
    examples, quick = config_dir() / "glue" / "own_data", ["--device", "cpu", "--quiet", "--student", model]
    assert main(["--config", str(examples / "teacher.yaml"), *quick, "--set", "train.num_epochs=1"]) == 0
    epochs = ["--set", "train.stage1.num_epochs=2", "--set", "train.stage2.num_epochs=1"]
    assert main(["--config", str(examples / "annealing_kd.yaml"), *quick, *epochs]) == 0
    saved = json.loads((tmp_path / "runs" / "own_data" / "annealing_kd" / "checkpoint" / "config.json").read_text())
    assert saved["id2label"] == {"0": "no", "1": "perhaps", "2": "yes"}
