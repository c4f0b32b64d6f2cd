"""What a person reads in a terminal while akd-train runs."""

from __future__ import annotations

import ast
import io
import re
import sys

import pytest
from places import ROOT

import akd_ext_commands

pytest.importorskip("torchdistill", reason="akd-train runs torchdistill's boxes; pip install '.[experiments]'")

from akd_ext.train import cli
from akd_ext.train.reporting.folding import folded
from akd_ext.train.reporting.lines import epoch_line


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_lines_of_a_long_run_stand_below_each_other_within_100_columns():
    entry = {
        "stage": 1,
        "T": 10,
        "phi": 0.1,
        "train_loss": 0.28131234,
        "loss_terms": {"annealing_kd": 0.28131234},
    }
    lines = [
        epoch_line([{**entry, "epoch": n}], 160, 2, "11.02 %", best=n == 1, pace="6781 images/s  left 1:23:45")
        for n in (1, 99, 160)
    ]
    assert lines[0].startswith("epoch   1/160  stage 1  T 10  Phi 0.100  loss 0.2813    val  11.02 % *  ")
    assert "%    6781" in lines[1]  # not the best: the mark's place stays empty
    assert max(map(len, lines)) <= 100 and len({line.index("images") for line in lines}) == 1


@pytest.mark.parametrize("score", ["{:.2f} %", "accuracy {:.2f}, f1 {:.2f}"], ids=["images", "text"])
@pytest.mark.parametrize("names", [("annealing_kd",), ("ce", "kd")], ids=["one term", "two terms"])
def test_lines_stand_below_each_other_whatever_their_numbers_are(names, score):
    entries, lines = [], []
    for temperature, loss, accuracy in [
        (10, 0.05935, 9.8),
        (9, 0.0445, 10.0),
        (1, 1.25, 100.0),
        (1, 3.0, float("nan")),
    ]:
        entry = {"epoch": len(entries) + 1, "stage": 1, "T": temperature, "phi": 0.1 * (11 - temperature)}
        entries.append(entry | {"train_loss": loss, "loss_terms": dict.fromkeys(names, loss)})
        shown = score.format(accuracy, accuracy)
        lines.append(epoch_line(entries, 10, 2, shown, best=False, pace="1 image/s  left 0:00:01"))
    for word in ("T ", "Phi", "loss", "val", "image"):
        assert len({line.index(word) for line in lines}) == 1, "\n".join(lines)
    assert "T  9  Phi" in lines[1] and "loss 0.04450 " in lines[1]


def test_a_run_of_one_stage_does_not_number_it_and_has_room_for_its_terms():
    entry = {"epoch": 1, "stage": 1, "T": None, "phi": None, "train_loss": 0.5, "loss_terms": {"ce": 0.25, "kd": 0.25}}
    line = epoch_line([entry], 160, 1, "11.02 %", best=True, pace="6781 images/s  left 1:23:45")
    assert "stage" not in line and len(line) <= 100


def test_a_terminal_gets_sentences_of_100_columns_and_whole_tables(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = "\n".join(["word " * 60 + "end", "| cell " * 30, "short"])
    lines = folded(text, Terminal()).split("\n")
    assert max(len(line) for line in lines if not line.startswith("|")) <= 100
    assert "| cell " * 30 in lines and lines[-1] == "short" and lines[1].startswith("  word")
    assert " ".join(" ".join(lines[:-2]).split()) == "word " * 60 + "end"  # nothing is lost
    assert folded(text, io.StringIO()) == text  # a file, a pipe: whoever searches it finds whole lines


def test_the_help_says_what_the_star_is_and_which_flag_saves(capsys):
    assert cli.main(["--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "* marks the best epoch" in text and "With --output_dir DIR a state is saved" in text
    files = text.partition("--output_dir DIR results.json")[2].partition(" --")[0]
    assert "checkpoint.pt" in files and "resume/" in files


# -- the word that comes first -----------------------------------------------------------------------------------------


def test_the_commands_say_a_word_before_anything_heavy_is_imported(monkeypatch, capsys):
    scripts = re.findall(r'^(akd-\w+) = "(\w+):', (ROOT / "pyproject.toml").read_text(), re.M)
    assert dict(scripts) == dict.fromkeys(("akd-train", "akd-reproduce", "akd-info"), "akd_ext_commands")
    tree = ast.parse((ROOT / "akd_ext_commands.py").read_text())
    at_once = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert {name.name for node in at_once for name in node.names} == {"os", "sys"}

    said = []
    monkeypatch.setattr(cli, "main", lambda: said.append(capsys.readouterr().err) or 3)
    monkeypatch.setattr(sys, "argv", ["akd-train", "--config", "x.yaml"])
    assert akd_ext_commands.train() == 3
    assert said == ["akd-train: loading PyTorch ...\n"]


@pytest.mark.parametrize("words, rank", [(["--quiet"], "0"), (["--help"], "0"), (["--config", "x.yaml"], "1")])
def test_who_wants_silence_gets_it(monkeypatch, capsys, words, rank):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(sys, "argv", ["akd-train", *words])
    monkeypatch.setattr(cli, "main", lambda: 0)
    akd_ext_commands.train()
    assert capsys.readouterr().err == ""
