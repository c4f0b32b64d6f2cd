"""The official GLUE files with each task's quirks, and what is said about a file that is not like them."""

import pytest

pytest.importorskip("torchdistill", reason="akd_ext.experiments needs it: pip install '.[experiments]'")

from akd_ext.train.system.errors import ConfigError
from akd_ext.train.tasks.text.examples import Example
from akd_ext.train.tasks.text.glue import PAPER_TASKS, TASKS
from akd_ext.train.tasks.text.glue_files import read_split

MNLI = "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse sentence1 sentence2"
STSB = "index genre filename year old_index source1 source2 sentence1 sentence2"
# (file, its lines with " | " for a tab, the first example and the last)
LAYOUTS = {
    "cola": ("CoLA/train.tsv", ["gj04 | 1 |  | Bill's \"here.", "gj04 | 0 | * | Bill here's"],
             Example(("Bill's \"here.",), 1, "0"), Example(("Bill here's",), 0, "1")),
    "rte": ("RTE/train.tsv", ["index | sentence1 | sentence2 | label", '7 | "A. | B. | not_entailment',
                              "9 | C. | D. | entailment"],
            Example(('"A.', "B."), 1, "7"), Example(("C.", "D."), 0, "9")),
    "mrpc": ("MRPC/train.tsv", ["\ufeffQuality | #1 ID | #2 ID | #1 String | #2 String", '1 | 11 | 12 | He " said | She',
                                "0 | 13 | 14 | x | y"],
             Example(('He " said', "She"), 1, "0"), Example(("x", "y"), 0, "1")),
    "stsb": ("STS-B/train.tsv", [STSB.replace(" ", " | ") + " | score",
                                 "0 | g | f | 2012 | 1 | none | none | a | b | 5.000",
                                 "1 | g | f | 2012 | 1 | none | none | c | d | 3.800"],
             Example(("a", "b"), 5.0, "0"), Example(("c", "d"), 3.8, "1")),
    "sst2": ("SST-2/train.tsv", ["sentence | label", "fine  | 1", "dull  | 0"],
             Example(("fine ",), 1, "0"), Example(("dull ",), 0, "1")),
    "qnli": ("QNLI/train.tsv", ["index | question | sentence | label", "0 | q? | s | entailment",
                                "1 | r? | t\u2028u | not_entailment"],
             Example(("q?", "s"), 0, "0"), Example(("r?", "t\u2028u"), 1, "1")),
    "qqp": ("QQP/train.tsv", ["id | qid1 | qid2 | question1 | question2 | is_duplicate", "5 | 1 | 2 | a | b | 0",
                              "6 | 3 | 4 | only one", "7 | 3 | 4 | c |  | 0", "8 | 3 | 4 | c | d | 1"],
            Example(("a", "b"), 0, "5"), Example(("c", "d"), 1, "8")),
    "mnli": ("MNLI/train.tsv", [MNLI.replace(" ", " | ") + " | label1 | gold_label",
                                "0 | 1 | 1n | fiction | ( a ) | ( b ) | (R a) | (R b) | a | b | neutral | neutral",
                                "1 | 1 | 1c | fiction | ( a ) | ( b ) | (R a) | (R b) | c | d | neutral | contradiction"],
             Example(("a", "b"), 1, "0"), Example(("c", "d"), 2, "1")),
    "wnli": ("WNLI/train.tsv", ["index | sentence1 | sentence2 | label", "0 | a | b | 1", "1 | c | d | 0"],
             Example(("a", "b"), 1, "0"), Example(("c", "d"), 0, "1")),
}  # fmt: skip


def write(root, name, lines, end="\n"):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(end.join(line.replace(" | ", "\t") for line in lines).encode())
    return path


@pytest.mark.parametrize("name", PAPER_TASKS)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_every_tasks_training_file_is_read(tmp_path, name, end):
    file, lines, first, last = LAYOUTS[name]
    write(tmp_path, file, lines, end)
    examples = read_split(tmp_path, TASKS[name], "train")
    assert (examples[0], examples[-1], len(examples)) == (first, last, 2)


@pytest.mark.parametrize(
    "name, split, file, header, cells",
    [
        ("cola", "test", "CoLA/test.tsv", "index | sentence", "0 | a"),
        ("mnli", "validation_matched", "MNLI/dev_matched.tsv", MNLI + " label1 label2 label3 label4 label5 gold_label",
         "0 | 1 | 1 | g | p | p | p | p | a | b | neutral | neutral | neutral | neutral | neutral | entailment"),
        ("mnli", "validation_mismatched", "MNLI/dev_mismatched.tsv", "index sentence1 sentence2 gold_label",
         "0 | a | b | contradiction"),
        ("mnli", "test_mismatched", "MNLI/test_mismatched.tsv", "index sentence1 sentence2", "0 | a | b"),
        ("stsb", "test", "STS-B/test.tsv", STSB, "0 | g | f | 2012 | 1 | none | none | a | b"),
        ("qqp", "test", "QQP/test.tsv", "id question1 question2", "0 | a | b"),
        ("ax", "test", "diagnostic/diagnostic.tsv", "index sentence1 sentence2", "0 | a | b"),
        ("ax", "test", "AX.tsv", "index sentence1 sentence2", "0 | a | b"),
    ],
)  # fmt: skip
def test_the_other_splits(tmp_path, name, split, file, header, cells):
    header = header if " | " in header else header.replace(" ", " | ")
    write(tmp_path, file, [header, cells])
    (example,) = read_split(tmp_path, TASKS[name], split)
    assert example.texts == (("a",) if name == "cola" else ("a", "b"))
    assert example.label == (
        None if split.startswith("test") else {"entailment": 0, "contradiction": 2}[cells.split(" | ")[-1]]
    )


RTE = "index | sentence1 | sentence2 | label"


@pytest.mark.parametrize(
    "name, file, lines, said",
    [
        ("rte", "RTE/train.tsv", [RTE, "0 | a | b | entailment", "1 | a | entailment"],
         "train.tsv, line 3: 3 columns, expected 4 ('index', 'sentence1', 'sentence2', 'label'), parted by tabs"),
        ("rte", "RTE/train.tsv", [RTE, "0 | a | b | yes"],
         "line 2: the label is 'yes', expected one of entailment, not_entailment"),
        ("rte", "RTE/train.tsv", [RTE, "0 | a |   | entailment"],
         "line 2: the column 'sentence2' is empty, expected a sentence"),
        ("rte", "RTE/train.tsv", ["index | premise | label", "0 | a | entailment"],
         "line 1: there is no column 'sentence1', the header is 'index', 'premise', 'label'"),
        ("rte", "RTE/train.tsv", [RTE], "train.tsv holds no examples"),
        ("cola", "CoLA/train.tsv", ["index | sentence", "0 | a"], "line 1: 2 columns, expected 4"),
        ("cola", "CoLA/train.tsv", ["gj | 2 |  | a"], "line 1: the label is '2', expected one of 0, 1"),
        ("stsb", "STS-B/train.tsv", ["sentence1 | sentence2 | score", "a | b | 5.1"],
         "line 2: the score is '5.1', expected a number from 0 to 5"),
        ("stsb", "STS-B/train.tsv", ["sentence1 | sentence2 | score", "a | b | nan"],
         "line 2: the score is 'nan', expected a number from 0 to 5"),
        ("qqp", "QQP/train.tsv", ["id | question1 | question2 | is_duplicate", "0 | a"], "train.tsv holds no examples"),
        ("rte", "RTE/dev.tsv", [RTE], "there is no file '{root}/RTE/train.tsv' for the train split of RTE; "
                                      "{root}/RTE holds dev.tsv"),
        ("rte", "QNLI/dev.tsv", [RTE], "{root} holds QNLI"),
    ],
)  # fmt: skip
def test_a_bad_file_is_one_sentence_that_says_where(tmp_path, name, file, lines, said):
    write(tmp_path, file, lines)
    with pytest.raises(ConfigError) as caught:
        read_split(tmp_path, TASKS[name], "train")
    assert said.replace("{root}", str(tmp_path)) in str(caught.value)


def test_a_wrong_folder_and_a_wrong_encoding_are_said(tmp_path):
    with pytest.raises(ConfigError, match=r"--glue_dir: '.*nowhere' is no folder; expected one with RTE/"):
        read_split(tmp_path / "nowhere", TASKS["rte"], "train")
    write(tmp_path, "RTE/train.tsv", [RTE]).write_bytes(b"index\xff\n")
    with pytest.raises(ConfigError, match=r"train.tsv is not UTF-8 \(byte 5\)"):
        read_split(tmp_path, TASKS["rte"], "train")
    with pytest.raises(ConfigError, match="rte has no split 'dev'; its splits are train, validation, test"):
        read_split(tmp_path, TASKS["rte"], "dev")


def test_the_left_out_lines_of_qqp_are_counted(tmp_path, caplog):
    file, lines, *_ = LAYOUTS["qqp"]
    write(tmp_path, file, lines)
    with caplog.at_level("INFO"):
        read_split(tmp_path, TASKS["qqp"], "train")
    assert "2 lines without a question are left out, the first is line 3" in caplog.text


def test_the_hubs_data_set_is_read_by_its_own_names(monkeypatch):
    """What `datasets.load_dataset` gives stands in here: the tests have no hub."""
    import sys
    from types import SimpleNamespace

    from akd_ext.train.tasks.text.data import load_examples, source_of

    asked = []

    def load_dataset(*names):
        asked.append(names)
        rows = {"premise": ["a", "b"], "hypothesis": ["c", "d"], "label": [2, 0], "idx": [5, 6]}
        return {"train": rows, "test_matched": {**rows, "label": [-1, -1]}}

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    entry = {"name": "mnli", "dataset_id_map": {"train": "mnli/train", "test_matched": "mnli/test_matched"}}
    task, found = load_examples(source_of(entry, "datasets.glue"), None)
    assert asked == [("nyu-mll/glue", "mnli")] and task is TASKS["mnli"]
    assert found["train"] == [Example(("a", "c"), 2, "5"), Example(("b", "d"), 0, "6")]
    assert [example.label for example in found["test_matched"]] == [None, None]

    def unreachable(*names):
        raise ConnectionError("no network")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=unreachable))
    with pytest.raises(
        ConfigError, match=r"'mnli' could not be loaded from the Hugging Face hub \(ConnectionError: no"
    ):
        load_examples(source_of(entry, "datasets.glue"), None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"the package datasets is not installed; pip install '.\[glue\]', or give"):
        load_examples(source_of(entry, "datasets.glue"), None)


def test_a_lone_carriage_return_ends_no_line(tmp_path):
    (tmp_path / "CoLA").mkdir()
    (tmp_path / "CoLA" / "train.tsv").write_bytes(b"gj04\t1\t\ta\rb\r\ngj04\t0\t*\tc\r\n")
    assert [e.texts for e in read_split(tmp_path, TASKS["cola"], "train")] == [("a\rb",), ("c",)]
