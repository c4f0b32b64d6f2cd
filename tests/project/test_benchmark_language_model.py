"""The study of language models runs every loss and goes on where it was, on a random teacher."""

from __future__ import annotations

import json

import pytest
from places import ROOT


@pytest.fixture(autouse=True)
def _benchmarks_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.mark.integration
def test_every_loss_runs_once(tmp_path, monkeypatch, capsys):
    pytest.importorskip("transformers", reason="the study trains a decoder of transformers: pip install '.[test]'")
    from benchmarks import language_model

    arguments = ["--quick", "--out", str(tmp_path), "--cache", str(tmp_path / "cache")]
    assert language_model.main(arguments) == 0
    record = json.loads((tmp_path / "language-model-cpu.json").read_text())
    assert len(record["runs"]) == len(language_model.plan(2))
    by_steps = [run for run in record["runs"] if run["budget"] == language_model.STEPS]
    assert {run["curve"][-1]["steps"] for run in by_steps} == {record["setting"]["steps"]}
    start = record["start"]["kl"]
    assert all(run["curve"][-1]["kl"] != start for run in record["runs"])  # each of them trained something
    assert (tmp_path / "language-model-cpu.png").stat().st_size > 10_000
    monkeypatch.setattr(language_model, "train", None)  # nothing is run twice
    assert language_model.main(arguments) == 0
    assert "| KL, all logits |" in (tmp_path / "language-model-cpu.md").read_text()
    with pytest.raises(SystemExit, match="accepted: the same"):
        language_model.main([*arguments, "--learning_rate", "0.1"])


def test_equal_seconds_buy_steps_by_their_price():
    from benchmarks import language_model as study

    setting = study.Setting([0], seconds=12.0, steps=6, batch=2, learning_rate=1e-3)
    prices = {study.KL: 2.0, study.SQUARES: 0.5}
    assert len(study.steps_of(study.KL, study.SECONDS, setting, prices)) == 6
    assert len(study.steps_of(study.SQUARES, study.SECONDS, setting, prices)) == 24
    halves = study.steps_of(study.THEN, study.SECONDS, setting, prices)
    assert [price for _, price in halves] == [0.5] * 12 + [2.0] * 3
    assert [progress < 0.5 for progress, _ in halves] == [True] * 12 + [False] * 3
    assert sum(price for _, price in halves) == 12.0
    assert {len(study.steps_of(name, study.STEPS, setting, prices)) for name in (study.KL, study.THEN)} == {6}


def test_held_out_text_shares_no_paragraph_with_the_training_text():
    from benchmarks.language_model_material import split

    shared = "a paragraph that is long enough to be told from a heading or a rule"
    found = {
        f"document {i}": f"{shared}\n\nparagraph {i}, which stands nowhere else in all of the text" for i in range(20)
    }
    held_out, training = split(found)
    assert len(held_out) == 3
    assert sum(shared in text for text in held_out + training) == 1
    assert shared in held_out[0]
    assert not {p for text in held_out for p in text.split("\n\n")} & {p for t in training for p in t.split("\n\n")}
