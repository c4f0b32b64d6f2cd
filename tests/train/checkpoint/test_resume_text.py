"""Text that was stopped goes on exactly where it was: Hugging Face folders, cached logits, sentences of similar length."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

pytest.importorskip("torchdistill", reason="akd-train runs torchdistill's boxes; pip install '.[experiments]'")
pytest.importorskip("torchvision.datasets", reason="torchdistill needs torchvision: pip install '.[test]'")

import text_fixture
from text_fixture import make_model, write_cola

from akd_ext.train.checkpoint import checkpointer as resume
from akd_ext.train.cli import STOPPED, main


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Two stages of two epochs with 3 steps each, and a signal in step ``stop_at``."""
    monkeypatch.setattr("akd_ext.train.trainer.draw_curves", lambda *args: None)
    teacher, student = make_model(tmp_path / "teacher"), make_model(tmp_path / "student", layers=1, seed=1)
    write_cola(tmp_path / "glue", train=24)
    config = tmp_path / "cola.yaml"
    config.write_text(text_fixture.bert_small("annealing_kd", "cola"))
    sets = ["train.stage1.num_epochs=2", "train.stage2.num_epochs=2",
            "train.stage1.train_data_loader.kwargs.batch_size=8", "train.stage2.train_data_loader.kwargs.batch_size=8",
            f"train.stage1.train_data_loader.dataset_wrapper.kwargs.cache_dir={tmp_path / 'cache'}"]  # fmt: skip
    after_step = resume.Checkpointer.after_step

    def run(out: str, stop_at: int = 0) -> int:
        steps = 0

        def interrupted(*args):
            nonlocal steps
            steps += 1
            if steps == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            after_step(*args)

        monkeypatch.setattr(resume.Checkpointer, "after_step", interrupted)
        return main(["--config", str(config), "--glue_dir", str(tmp_path / "glue"), "--device", "cpu", "--seed", "0",
                     "--student", student, "--teacher", teacher, *(f"--set={item}" for item in sets),
                     "--length_buckets", "--output_dir", str(tmp_path / out), "--quiet"])  # fmt: skip

    return run


def outcome(folder: Path) -> dict:
    results = json.loads((folder / "results.json").read_text())
    for epoch in results["epochs"]:
        del epoch["seconds"]
    files = {name: (folder / name).read_bytes() for name in ("best.safetensors", "last.safetensors")}
    return {"results": results, "folder": (folder / "checkpoint" / "model.safetensors").read_bytes(), **files}


@pytest.mark.integration
def test_text_goes_on_in_both_stages(train, tmp_path):
    """In stage I, then in the first epoch of stage II, whose pre-epoch process loads the best of stage I."""
    assert train("whole") == 0
    assert train("out", stop_at=5) == STOPPED
    assert train("out", stop_at=3) == STOPPED  # steps 6, 7 and 8
    where = json.loads((tmp_path / "out" / "resume" / "state.json").read_text())["where"]
    assert (where["stage"], where["epoch"], where["step"]) == (2, 2, 2)
    (tmp_path / "out" / "checkpoint" / ".new.abc").mkdir()  # as a kill in the middle of writing leaves it
    assert train("out") == 0
    assert outcome(tmp_path / "out") == outcome(tmp_path / "whole")
    assert not list((tmp_path / "out" / "checkpoint").glob(".new.*"))


@pytest.mark.integration
def test_other_labels_are_another_run(train, tmp_path, capsys):
    """As many sentences as before: only what is in the file tells the two apart."""
    assert train("out") == 0
    path = tmp_path / "glue" / "CoLA" / "train.tsv"
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    path.write_text("".join("\t".join([row[0], str(1 - int(row[1])), *row[2:]]) + "\n" for row in rows))
    assert train("out") == 2
    assert "token ids and labels" in capsys.readouterr().err


@pytest.mark.integration
def test_a_folder_that_a_later_epoch_has_replaced_is_put_back(train, tmp_path):
    """The state before stage II's first epoch; the process died after that epoch had saved its own best."""
    assert train("whole") == 0
    after_epoch = resume.Checkpointer.after_epoch

    class Died(Exception):
        pass

    def die(self, epoch, step):
        if epoch == 3:
            raise Died
        after_epoch(self, epoch, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resume.Checkpointer, "after_epoch", die)
        assert train("out") == 1
    assert train("out") == 0
    assert outcome(tmp_path / "out") == outcome(tmp_path / "whole")
