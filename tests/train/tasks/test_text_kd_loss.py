"""akd-train says that KDLoss is another loss here than in torchdistill's own GLUE script, and the formulas are right."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from text_fixture import make_model

pytest.importorskip("torchdistill")

from akd_ext.train.tasks.text.kd_loss import remarks

PLACES = {f"{model}_module_{part}": "output" for model in ("student", "teacher") for part in ("path", "io")}


# In a text run: both classifiers are hooked.
WHERE = {"student_module_path": "classifier", "teacher_module_path": "classifier"}


def term(**kwargs) -> dict:
    return {"key": "KDLoss", "kwargs": {**PLACES, **kwargs}}


@pytest.mark.parametrize(
    "kwargs", [{"alpha": 0.25, "temperature": 3.0}, {"alpha": 0.5, "temperature": 2, "beta": 0.75}], ids=str
)
def test_both_formulas_are_what_torchdistill_computes(kwargs):
    from torchdistill.losses.mid_level import KDLoss

    (said,) = remarks(
        {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": {"criterion": term(**kwargs), "weight": 1}}}}
    )
    hard, soft = map(float, re.search(r"KDLoss is (\S+) \* cross entropy \+ (\S+) \* KL here", said).groups())
    alone = float(re.search(r"targets=None, where it is (\S+) \* KL alone", said)[1])
    student, teacher, targets = torch.randn(5, 3), torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    given = ({"output": {"output": student}}, {"output": {"output": teacher}})
    loss, t = KDLoss(**PLACES, **kwargs), kwargs["temperature"]
    kl = F.kl_div(F.log_softmax(student / t, -1), F.softmax(teacher / t, -1), reduction="batchmean")
    torch.testing.assert_close(loss(*given, targets), hard * F.cross_entropy(student, targets) + soft * kl)
    torch.testing.assert_close(loss(*given, targets=None), alone * kl)


@pytest.mark.parametrize("criterion", [None, {"key": "KLDivLoss", "kwargs": {}}, term(alpha=0, temperature=2)], ids=str)
def test_where_the_two_agree_nothing_is_said(criterion):
    assert list(remarks(criterion)) == []


@pytest.mark.integration
def test_akd_train_logs_it_once(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    import text_fixture
    from text_fixture import write_cola

    from akd_ext.train.cli import main

    monkeypatch.setattr("akd_ext.train.trainer.draw_curves", lambda *args: None)
    write_cola(tmp_path / "glue")
    config = tmp_path / "cola.yaml"
    ours = text_fixture.bert_small("kd", "cola")
    places = "".join(f"              {name}: '{WHERE.get(name, 'output')}'\n" for name in PLACES)
    theirs = ours.replace(
        "'LogitKDLoss'\n            kwargs:\n", f"'KDLoss'\n            kwargs:\n              alpha: 0.5\n{places}"
    )
    hooked = "    forward_proc: 'forward_with_label_loss'\n"
    theirs = theirs.replace(hooked, f"{hooked}    forward_hook: {{input: [], output: ['classifier']}}\n")
    theirs = theirs.replace(
        "'cached_forward'\n", "'forward_batch_only_as_kwargs'\n    forward_hook: {input: [], output: ['classifier']}\n"
    )
    assert "KDLoss" in theirs.replace("LogitKDLoss", "") and "classifier" in theirs
    config.write_text(theirs)
    models = [make_model(tmp_path / "student"), "--teacher", make_model(tmp_path / "teacher", layers=3)]
    cache = f"--set=train.train_data_loader.dataset_wrapper.kwargs.cache_dir={tmp_path / 'cache'}"
    arguments = [
        "--config",
        str(config),
        "--glue_dir",
        str(tmp_path / "glue"),
        "--device",
        "cpu",
        "--student",
        *map(str, models),
    ]
    code = main([*arguments, cache, "--set=train.num_epochs=1", "--output_dir", str(tmp_path / "out"), "--quiet"])
    assert code == 0
    assert (tmp_path / "out" / "train.log").read_text().count("torchdistill's own GLUE script passes targets=None") == 1
