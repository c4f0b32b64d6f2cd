"""Tiny encoders with a vocabulary of their own, and GLUE files of a few lines."""

from __future__ import annotations

import random

import pytest

WORDS = [*"abcdefghijklmnop", "good", "bad", "red", "blue"]


def make_model(folder, *, num_labels=2, layers=2, hidden=16, seed=0, words=WORDS, kind="bert", **config):
    """Write a random BERT classifier and its tokenizer into ``folder``; return ``folder`` as text.

    The test is skipped where there is no transformers, which is imported here, not while pytest collects.
    """
    pytest.importorskip("transformers", reason="trains its models: pip install '.[glue]'")
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizerFast

    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizerFast(vocab={w: i for i, w in enumerate(vocabulary)}, do_lower_case=True).save_pretrained(folder)
    made = BertConfig(
        vocab_size=len(vocabulary), hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=2,
        intermediate_size=2 * hidden, max_position_embeddings=160, num_labels=num_labels, **config,
    )  # fmt: skip
    (BertForSequenceClassification if kind == "bert" else BertModel)(made).save_pretrained(folder)
    return str(folder)


def sentences(n, seed=0, length=(2, 7)):
    """n sentences, and for each whether 'good' is in it."""
    chance = random.Random(seed)
    made = []
    for i in range(n):
        words = [chance.choice(WORDS[:16]) for _ in range(chance.randint(*length))]
        words.insert(chance.randrange(len(words)), "good" if i % 2 else "bad")
        made.append((" ".join(words), i % 2))
    return made


def write_cola(root, train=48, dev=16, test=5):
    """CoLA's layout: four columns without a header; the test file has one."""
    (root / "CoLA").mkdir(parents=True, exist_ok=True)
    for name, size, seed in (("train", train, 1), ("dev", dev, 2)):
        lines = [f"gj04\t{label}\t{'' if label else '*'}\t{text}" for text, label in sentences(size, seed)]
        (root / "CoLA" / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    lines = [f"{i}\t{text}" for i, (text, _) in enumerate(sentences(test, 3))]
    (root / "CoLA" / "test.tsv").write_text("\n".join(["index\tsentence", *lines]) + "\n")
    return root


def write_stsb(root, train=48, dev=16, test=5):
    """STS-B's layout: ten columns, the last two sentences and a score from 0 to 5."""
    (root / "STS-B").mkdir(parents=True, exist_ok=True)
    head = "index genre filename year old_index source1 source2 sentence1 sentence2".split()
    for name, size, seed in (("train", train, 1), ("dev", dev, 2), ("test", test, 3)):
        rows = [[*head, *(["score"] if name != "test" else [])]]
        for i, (text, label) in enumerate(sentences(size, seed)):
            score = f"{(i % 6) if label else (i % 3) / 2:.3f}"
            row = [str(i), "news", "f", "2012", "1", "none", "none", text, "good red"]
            rows.append([*row, *([score] if name != "test" else [])])
        (root / "STS-B" / f"{name}.tsv").write_text("\n".join("\t".join(row) for row in rows) + "\n")
    return root


def write_pairs(folder, names, labels, column, rows=12):
    """RTE's or MNLI's layout with the columns that matter; files named test or AX have no labels."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        labelled = labels and not name.startswith("test")
        lines = [["index", "sentence1", "sentence2", *([column] if labelled else [])]]
        for i, (text, _) in enumerate(sentences(rows, seed)):
            lines.append([str(i), text, "good red", *([labels[i % len(labels)]] if labelled else [])])
        (folder / f"{name}.tsv").write_text("\n".join("\t".join(line) for line in lines) + "\n")
    return folder


def bert_small(method: str, task: str) -> str:
    """The YAML of one method and one GLUE task with the paper's smaller pair of models."""
    from akd_ext.reproduce.experiments import EXPERIMENTS
    from akd_ext.reproduce.recipes import whole_file

    return whole_file(EXPERIMENTS["glue-bert-small"], method, task)
