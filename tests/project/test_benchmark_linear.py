"""The benchmarks of the linear losses run and write what they say, on tiny shapes."""

from __future__ import annotations

import json

import pytest
from places import ROOT


@pytest.fixture(autouse=True)
def _benchmarks_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.mark.integration
def test_timing_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    from benchmarks import linear

    monkeypatch.setattr(linear, "CONTENDERS", tuple(name for name in linear.CONTENDERS if name != linear.COMPILED))
    arguments = ["--quick", "--rounds", "1", "--threads", "1", "--out", str(tmp_path)]
    assert linear.main(arguments) == 0
    rows = json.loads((tmp_path / "linear-cpu.json").read_text())["rows"]
    assert len(rows) == len(linear.QUICK)
    assert all(found["gradient_error"] < 1e-5 for row in rows for found in row["contenders"].values())
    monkeypatch.setattr(linear, "measure", None)  # nothing is measured twice
    assert linear.main(arguments) == 0
    assert "| ours, auto |" in (tmp_path / "linear-cpu.md").read_text()


@pytest.mark.integration
def test_accuracy(tmp_path, capsys):
    from benchmarks import linear_accuracy

    arguments = ["--tokens", "8", "--width", "16", "--classes", "200", "--out", str(tmp_path)]
    assert linear_accuracy.main(arguments) == 0
    (table,) = json.loads((tmp_path / "linear-accuracy.json").read_text())["errors"].values()
    near = table["0.001"]
    for way in ("ours, chunked", "ours, Gram, equal widths", "ours, Gram, a wider teacher"):
        assert near[way][1] < near["logits in bfloat16"][1] / 10
