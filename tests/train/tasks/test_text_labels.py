"""Which logit means which class: by the names in the checkpoints, never by their place."""

from types import SimpleNamespace

import pytest

for package in ("torchdistill", "torchvision.datasets"):
    pytest.importorskip(package, reason="akd_ext.experiments needs it: pip install '.[experiments]'")

import torch  # noqa: E402
from text_fixture import make_model  # noqa: E402

from akd_ext.train.system.errors import ConfigError  # noqa: E402
from akd_ext.train.tasks.text.evaluate import answers, score  # noqa: E402
from akd_ext.train.tasks.text.models import (  # noqa: E402
    agree_on_labels,
    check_same_tokenizer,
    check_tokenizer,
    load_model,
)

NLI = ("entailment", "neutral", "contradiction")
ROBERTA = ("CONTRADICTION", "NEUTRAL", "ENTAILMENT")  # the order of roberta-large-mnli


def model(names):
    names = names if isinstance(names, tuple) else tuple(f"LABEL_{i}" for i in range(names))
    return SimpleNamespace(config=SimpleNamespace(num_labels=len(names), id2label=dict(enumerate(names))))


def test_a_student_without_names_takes_the_teachers_order():
    teacher, student = model(ROBERTA), model(3)
    assert agree_on_labels(NLI, teacher, student) == [2, 1, 0]
    assert student.config.id2label == {0: "contradiction", 1: "neutral", 2: "entailment"}
    assert student.config.label2id["entailment"] == 2


def test_without_names_it_is_the_tasks_order():
    assert agree_on_labels(NLI, None, model(3)) == [0, 1, 2]
    assert agree_on_labels(NLI, model(3), model(3)) == [0, 1, 2]
    assert agree_on_labels(NLI, None, model(ROBERTA)) == [2, 1, 0]
    assert agree_on_labels((), model(1), model(1)) is None


@pytest.mark.parametrize(
    "teacher, student, said",
    [
        (ROBERTA, NLI, "teacher's labels are in the order contradiction, neutral, entailment, the student's in the order "
                       "entailment, neutral, contradiction"),
        (3, ROBERTA, "teacher's labels are in the order entailment, neutral, contradiction, the student's in the order "
                     "contradiction, neutral, entailment"),
        (2, 3, r"the teacher has 2 labels \(without names\), the task has 3 \(entailment, neutral, contradiction\)"),
        (3, ("yes", "no", "maybe"), "the student's labels are yes, no, maybe, the task's are entailment, neutral"),
    ],
)  # fmt: skip
def test_disagreement_is_refused_with_both_lists(teacher, student, said):
    with pytest.raises(ConfigError, match=said):
        agree_on_labels(NLI, model(teacher), model(student))


def test_a_wrong_number_of_labels_names_the_key_of_the_model_that_learns():
    two = ("x", "y")
    with pytest.raises(ConfigError, match=r"^the model has 3 labels .*; set models.model.config_kwargs.num_labels: 2$"):
        agree_on_labels(two, None, model(3), "model")
    with pytest.raises(
        ConfigError, match=r"^the student has 3 .*; set models.student_model.config_kwargs.num_labels: 2$"
    ):
        agree_on_labels(two, model(2), model(3))
    with pytest.raises(ConfigError, match=r"^the teacher has 3 .*; accepted: a teacher that was trained on the task$"):
        agree_on_labels(two, model(3), model(2))


def test_the_number_of_labels_is_the_datas_where_the_file_says_none(tmp_path):
    encoder = make_model(tmp_path / "encoder", kind="encoder")
    trained = make_model(tmp_path / "trained", num_labels=3)
    names = {0: "no", 1: "yes"}
    named = make_model(tmp_path / "named", id2label=names, label2id={name: i for i, name in names.items()})

    def load(folder, more=None, **kwargs):
        name = {"pretrained_model_name_or_path": folder}
        return load_model({"config_kwargs": name | (more or {}), "model_kwargs": name}, "models.model", **kwargs).config

    assert load(encoder, num_labels=4).num_labels == 4
    assert load(encoder, {"num_labels": 3}, num_labels=4).num_labels == 3  # agree_on_labels refuses it
    assert load(named, num_labels=2).id2label == names
    assert load(trained, taught=("a", "b", "c")).num_labels == 3  # a teacher's are its own
    with pytest.raises(ConfigError, match=r"has classifier.weight \[3, 16\], with num_labels 2 it is \[2, 16\]"):
        load(trained, num_labels=2)
    with pytest.raises(
        ConfigError, match=r"has 3 labels, as the task has, .*; set models.model.config_kwargs.num_labels: 3, or"
    ):
        load(trained, {"num_labels": 4}, taught=("a", "b", "c"))


def test_a_users_classes_may_differ_by_case_alone():
    assert agree_on_labels(("US", "us"), None, model(("us", "US"))) == [1, 0]
    with pytest.raises(ConfigError, match="the student's labels are US, Us"):
        agree_on_labels(("US", "us"), None, model(("US", "Us")))


def test_answers_and_metrics_are_in_the_tasks_order():
    logits = torch.tensor([[5.0, 0.0, 1.0], [0.0, 1.0, 5.0]])  # contradiction, entailment in RoBERTa's order
    assert answers(logits, [2, 1, 0]) == [2, 0]
    assert score(logits, [2, 0], [2, 1, 0], ("accuracy",)).metrics == {"accuracy": 100.0}
    assert answers(torch.tensor([[1.5], [2.0]]), None) == [1.5, 2.0]


class _Tokenizer:
    pad_token, pad_token_id = "[PAD]", 0

    def __init__(self, *words):
        self.words = words

    def get_vocab(self):
        return {word: index for index, word in enumerate(self.words)}

    def __len__(self):
        return len(self.words)


def test_a_teacher_may_know_more_words_than_the_student():
    check_same_tokenizer(_Tokenizer("[PAD]", "a", "b", "<new>"), _Tokenizer("[PAD]", "a", "b"))
    for teacher in (_Tokenizer("[PAD]", "b", "a"), _Tokenizer("[PAD]", "a")):
        with pytest.raises(ConfigError, match="the teacher's tokenizer"):
            check_same_tokenizer(teacher, _Tokenizer("[PAD]", "a", "b"))


def test_a_model_that_needs_a_padding_token_names_its_key():
    pytest.importorskip("transformers", reason="the models are Hugging Face's: pip install 'akd_ext[glue]'")
    from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2ForSequenceClassification

    tokenizer, small = _Tokenizer("[PAD]", "a"), {"n_embd": 4, "n_layer": 1, "n_head": 1, "vocab_size": 2}
    with pytest.raises(ConfigError, match=r"models.x.config_kwargs.pad_token_id: .* write 0, its tokenizer's padding"):
        check_tokenizer(tokenizer, GPT2ForSequenceClassification(GPT2Config(**small)), 8, "models.x")
    check_tokenizer(tokenizer, GPT2ForSequenceClassification(GPT2Config(**small, pad_token_id=0)), 8, "models.x")
    bert = BertConfig(vocab_size=2, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4,
                      pad_token_id=None)  # fmt: skip
    check_tokenizer(tokenizer, BertForSequenceClassification(bert), 8, "models.x")
