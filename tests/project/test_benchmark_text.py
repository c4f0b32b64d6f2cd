"""benchmarks.text runs every contender on both pairs of models, and only those without a cache run the teacher."""

import json
import logging

import pytest
from places import ROOT
from text_fixture import make_model, write_cola


@pytest.fixture(autouse=True)
def _benchmarks_can_be_imported(monkeypatch):
    for package in ("torchdistill", "torchvision.datasets", "transformers", "accelerate", "datasets"):
        pytest.importorskip(package, reason="it runs torchdistill's GLUE loop: pip install '.[test]'")
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(logging, "disable", lambda level: None)


@pytest.mark.integration
def test_every_contender_runs_and_the_report_holds_them(tmp_path, capsys):
    from benchmarks import text

    write_cola(tmp_path / "glue")
    shapes = json.dumps({"teacher": [2, 16, 2], "student": [1, 16, 2]})
    model = make_model(tmp_path / "model", layers=3)
    assert text.main(["--glue_dir", str(tmp_path / "glue"), "--model", model, "--rounds", "1", "--steps", "2",
                      "--shapes", shapes, "--out", str(tmp_path)]) == 0  # fmt: skip
    found = json.loads((tmp_path / "text-cpu.json").read_text())["seconds_per_step"]
    assert {pair: list(row) for pair, row in found.items()} == dict.fromkeys(
        (text.SMALL, text.PAPER), list(text.CONTENDERS)
    )
    assert all(len(values) == 1 and values[0] > 0 for row in found.values() for values in row.values())
    assert (tmp_path / "text-cpu.md").read_text() == capsys.readouterr().out


@pytest.mark.integration
@pytest.mark.parametrize("contender, runs", [("torchdistill", True), ("without the cache", True), ("cached", False),
                                             ("cached, length buckets", False)])  # fmt: skip
def test_only_without_the_cache_the_teacher_runs_in_a_step(tmp_path, contender, runs):
    from benchmarks import text

    write_cola(tmp_path / "glue")
    model = make_model(tmp_path / "model", layers=3)
    teacher, student, changes = text.small_pair(model, str(tmp_path))
    box, side = text.make_box(contender, teacher, student, changes, str(tmp_path / "glue"), str(tmp_path))
    calls = []
    box.teacher_model.register_forward_hook(lambda *_: calls.append(1))
    assert len(box.student_model.bert.encoder.layer) == 2
    text.torchdistill_epoch(box) if contender == text.THEIRS else text.our_epoch(box, side)
    assert bool(calls) is runs
