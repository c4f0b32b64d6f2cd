"""The parts of akd-train that need no training: the editable YAML, the files, the meter, the checkpoints."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip("torchdistill", reason="akd-train runs torchdistill's boxes; pip install '.[experiments]'")

from akd_ext.filesystem import replacing, write_text
from akd_ext.train.config.document import Tagged, YamlTree
from akd_ext.train.system.errors import ConfigError, nearest

ANCHORS = """
base: &base {lr: 0.1, momentum: 0.9}
a:
  kwargs: &kwargs
    size: 1
  path: &path !join ['x/', 'y']
b:
  kwargs: *kwargs
  path: *path
c:
  <<: *base
  lr: 0.2
  items: [1, 2]
"""


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "x.yaml").write_text(ANCHORS)
    return YamlTree(str(tmp_path / "x.yaml"))


def test_set_at_an_anchor_reaches_its_aliases_and_at_an_alias_stays_there(tree):
    tree.set("a.kwargs.size", "7", parse=True)
    assert tree.plain()["b"]["kwargs"] == {"size": 7}
    tree.set("b.kwargs.size", "8", parse=True)
    assert tree.plain()["a"]["kwargs"] == {"size": 7} and tree.plain()["b"]["kwargs"] == {"size": 8}
    tree.set("a.path", "z", parse=True)
    assert tree.plain()["b"]["path"] == "z"


@pytest.mark.parametrize(
    ("text", "value"), [("3", 3), ("1e-3", 1e-3), ("[1, 2]", [1, 2]), ("", None), ("null", None), ("x: 1", {"x": 1}),
                        ("'1e-3'", "1e-3"), ("true", True), ("a.b/c", "a.b/c"), ("!join [p, q]", "pq")],
)  # fmt: skip
def test_set_reads_its_value_as_yaml(tree, text, value):
    tree.set("c.lr", text, parse=True)
    assert tree.plain()["c"]["lr"] == value


def test_set_reaches_list_items_and_merged_mappings(tree):
    tree.set("c.items.1", "5", parse=True)
    tree.set("c.momentum", "0.5", parse=True)
    assert tree.plain()["c"] == {"lr": 0.2, "momentum": 0.5, "items": [1, 5]}
    assert tree.plain()["base"] == {"lr": 0.1, "momentum": 0.9}


def test_dump_reads_back_as_the_same_file_with_its_anchors(tree, tmp_path):
    tree.set("a.kwargs.size", "7", parse=True)
    text = tree.dump()
    assert "&kwargs" in text and "*kwargs" in text and "!join" in text
    (tmp_path / "again.yaml").write_text(text)
    assert YamlTree(str(tmp_path / "again.yaml")).plain() == tree.plain()


def test_the_plain_view_calls_nothing(tmp_path):
    (tmp_path / "x.yaml").write_text("a: !import_call {key: os.getcwd}\nb: !join [1, !import_get {key: os.sep}]\n")
    plain = YamlTree(str(tmp_path / "x.yaml")).plain()
    assert plain["a"] == Tagged("!import_call", {"key": "os.getcwd"})
    assert isinstance(plain["b"], Tagged)  # a join of something that does not exist yet does not exist yet


def test_construct_does_what_torchdistill_does(tree):
    from torchdistill.common.yaml_util import load_yaml_file

    assert tree.construct() == load_yaml_file(tree.path)


def test_nearest_ignores_case_and_always_answers():
    assert nearest("SDG", ["Adam", "SGD"]) == "SGD"
    assert nearest("sgd", ["ASGD", "SGD"]) == "SGD"
    assert nearest("zzz", ["abc"]) == "abc"
    assert nearest("zzz", []) is None


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "results.json"
    write_text(path, "old")
    with pytest.raises(RuntimeError, match="in the middle"), replacing(path) as temporary:
        with open(temporary, "w") as file:
            file.write("half of the n")
        assert path.read_text() == "old"
        raise RuntimeError("in the middle")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]
    write_text(path, "new")
    assert path.read_text() == "new"


def results(tmp_path):
    from akd_ext.train.reporting.results import Results

    return Results(str(tmp_path / "results.json"), config="c.yaml", seed=1, device="cpu", versions={})


def entry(epoch, stage, accuracy):
    rest = {"T": None, "phi": None, "train_loss": 1.0, "loss_terms": {}, "seconds": 1.0}
    return {"epoch": epoch, "stage": stage, "val_accuracy": accuracy, **rest}


def test_results_are_complete_only_at_the_very_end_and_always_valid_json(tmp_path):
    def stored():
        def no_nan(name):
            raise AssertionError(f"{name} is not JSON")

        return json.loads((tmp_path / "results.json").read_text(), parse_constant=no_nan)

    r = results(tmp_path)
    assert stored()["complete"] is False  # also right after a rerun into the same folder has begun
    assert r.add_epoch(**entry(0, 1, math.nan)) == (True, True)
    assert stored()["epochs"] == []  # its student may not be saved yet
    r.write()
    assert stored()["best"]["val_accuracy"] is None and stored()["complete"] is False
    assert r.add_epoch(**entry(1, 1, 0.0)) == (True, True)  # any number beats NaN
    assert r.add_epoch(**entry(2, 1, 50.0)) == (True, True)
    assert r.add_epoch(**entry(3, 1, 50.0)) == (False, False)  # of equals the earlier stays
    assert r.add_epoch(**entry(4, 2, 40.0)) == (True, False)  # best of its stage, not of the run
    assert r.add_epoch(**entry(5, 2, math.nan)) == (False, False)
    r.finish(best=1.0, last=2.0, teacher=None)
    assert stored()["complete"] is True and stored()["teacher"] is None
    assert stored()["best"] == {"epoch": 2, "stage": 1, "val_accuracy": 50.0, "test_accuracy": 1.0}
    assert stored()["last"] == {"epoch": 5, "stage": 2, "val_accuracy": None, "test_accuracy": 2.0}


def test_the_checkpoint_holds_the_best_of_the_stage_until_the_best_of_the_run_is_due(tmp_path):
    from akd_ext.train.checkpoint.best import BestCheckpoint
    from akd_ext.train.run_folder import RunFolder

    model = nn.Linear(1, 1)
    box = SimpleNamespace(optimizer=torch.optim.SGD(model.parameters(), lr=0.1), lr_scheduler=None)
    best_checkpoint = BestCheckpoint(str(tmp_path / "ckpt.pt"), RunFolder(tmp_path))

    def epoch(value, best_of_stage, best_of_run):
        nn.init.constant_(model.weight, value)
        best_checkpoint.update(
            model, box, best_of_stage=best_of_stage, best_of_run=best_of_run, epoch=0, stage=1, val_accuracy=value
        )

    def stored():
        return torch.load(tmp_path / "ckpt.pt", weights_only=True)["model"]["weight"].item()

    epoch(9.0, True, True)
    epoch(8.0, False, False)
    assert stored() == 9.0
    epoch(3.0, True, False)  # first of stage 2, worse than stage 1: stage 3 would start from it all the same
    assert stored() == 3.0
    epoch(2.0, False, False)
    best_checkpoint.finish()
    assert stored() == 9.0
    assert best_checkpoint.best["weight"].item() == 9.0 and best_checkpoint.last["weight"].item() == 2.0


class _Criterion(nn.Module):
    def __init__(self, **terms):
        super().__init__()
        self.term_dict, self.model_loss_factor = terms, None


def test_the_meter_averages_over_samples_without_changing_the_loss():
    from akd_ext.train.reporting.meter import LossMeter

    identity = nn.Identity()
    meter = LossMeter(_Criterion(a=(identity, 2.0)), torch.device("cpu"))
    for value, samples in ((1.0, 3), (5.0, 1)):
        loss = 2.0 * identity(torch.tensor(value, requires_grad=True)) + 1
        meter.add(loss, samples)
        loss.div_(4)  # torchdistill divides in place when it accumulates gradients
        loss.backward()
    assert meter.read() == (5.0, {"a": 4.0})
    meter.add(2.0 * identity(torch.tensor(7.0)), 4)
    assert meter.read() == (14.0, {"a": 14.0})
    assert meter.epoch() == (9.5, {"a": 9.0})
    meter.close()
    assert not identity._forward_hooks


def test_the_meter_names_what_the_model_itself_adds_to_the_loss():
    from akd_ext.train.reporting.meter import LossMeter

    identity = nn.Identity()
    criterion = _Criterion(a=(identity, 1.0))
    criterion.model_loss_factor = 0.5
    meter = LossMeter(criterion, torch.device("cpu"))
    meter.add(identity(torch.tensor(2.0)) + 3.0, 1)
    assert meter.read() == (5.0, {"a": 2.0, "model_term": 3.0})


def test_the_meter_moves_what_the_box_forgets_to_the_device():
    from akd_ext.train.reporting.meter import LossMeter

    term = nn.CrossEntropyLoss(weight=torch.ones(3))
    LossMeter(_Criterion(ce=(term, 1.0)), torch.device("meta"))
    assert term.weight.device.type == "meta"


def test_accuracy_counts_samples_not_batches():
    from akd_ext.train.system.precision import Precision
    from akd_ext.train.tasks.evaluate import evaluate

    cpu = torch.device("cpu")
    logits = torch.eye(8)[[0, 1, 2, 3, 4]]
    targets = torch.tensor([0, 1, 2, 3, 7])
    loader = [(logits[:4], targets[:4]), (logits[4:], targets[4:])]
    found = evaluate(nn.Identity(), loader, cpu, Precision(None, cpu))
    assert found.top1 == pytest.approx(80.0)
    assert evaluate(nn.Identity(), [(torch.eye(3), torch.arange(3))], cpu, Precision(None, cpu)).top5 is None
    assert math.isnan(evaluate(nn.Identity(), [], cpu, Precision(None, cpu)).top1)


def test_the_student_given_out_is_the_whole_one_and_not_a_stages_redesign():
    from akd_ext.train.boxes import original_student

    original = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    box = SimpleNamespace(org_student_model=original, student_model=nn.Sequential(original[0]))
    assert original_student(box) is original
    box = SimpleNamespace(org_student_model=original, student_model=nn.DataParallel(original))
    assert original_student(box) is box.student_model  # a wrapper is no redesign


def test_a_torchvision_module_does_not_hide_a_registered_model():
    """`resnet` is a module in torchvision and a model in torchdistill, whose own script stumbles over that."""
    from akd_ext.train.checkpoint.weights import build_model

    config = {"key": "resnet", "kwargs": {"depth": 8, "num_classes": 3, "block": None}}
    with pytest.raises(ConfigError) as error:
        build_model(config, "models.model", torch.device("cpu"), False)
    assert "module' object is not callable" not in str(error.value)


def test_the_curves_can_be_drawn_for_one_epoch_and_for_nan(tmp_path):
    pytest.importorskip("matplotlib", reason="curves.png needs matplotlib; pip install '.[experiments]'")
    from akd_ext.train.reporting.plots import draw_curves

    r = results(tmp_path)
    assert not draw_curves(r.data, str(tmp_path / "curves.png"))
    r.add_epoch(**entry(0, 1, math.nan))
    assert draw_curves(r.data, str(tmp_path / "curves.png"))
    r.add_epoch(**{**entry(1, 2, 50.0), "loss_terms": {"a": 0.5, "b": 0.5}, "phi": 0.5, "T": 1})
    r.finish(best=40.0, last=30.0, teacher=60.0)
    assert draw_curves(r.data, str(tmp_path / "curves.png"))
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "first, halves", [(10.0, 5), (95.0, 1)]
)  # a beginning that would squeeze the rest; the best epoch in it
def test_the_curves_show_what_is_of_interest(tmp_path, monkeypatch, first, halves):
    pytest.importorskip("matplotlib", reason="curves.png needs matplotlib; pip install '.[experiments]'")
    from akd_ext.train.reporting import plots

    figures = []
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure))
    r = results(tmp_path)
    for epoch in range(1, 31):
        r.add_epoch(**{**entry(epoch, 1, first if epoch == 2 else 90.0), "train_loss": 2.0 ** (-epoch / halves)})
    assert plots.draw_curves(r.data, str(tmp_path / "curves.png"))
    low, high = figures[0].axes[0].get_ylim()
    assert low > 80 and high > max(first, 90.0)
    figures[0].canvas.draw()
    ticks = [label.get_text() for label in figures[0].axes[1].get_yticklabels()]
    assert any(ticks) and not any("10^" in tick for tick in ticks)


def test_a_loss_of_one_element():
    """Some of torchdistill's have the shape [1] (CRDLoss)."""
    from akd_ext.train.reporting.meter import LossMeter

    meter = LossMeter(_Criterion(), torch.device("cpu"))
    meter.add(torch.tensor([2.0]), 3)
    assert meter.read()[0] == 2.0
