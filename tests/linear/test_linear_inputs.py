"""Arguments that cannot be right are refused in one sentence."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import akd_ext
from akd_ext.linear import costs, output_head, teacher_gram

H, HT, V, N = 4, 6, 9, 3


def arguments(**changes):
    usual = {
        "student_hidden": torch.ones(N, H), "student_weight": torch.ones(V, H), "teacher_hidden": torch.ones(N, HT),
        "teacher_weight": torch.ones(V, HT), "phi": 0.5,
    }  # fmt: skip
    return {**usual, **changes}


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"student_hidden": torch.ones(N, 5)}, ValueError, r"student_hidden has shape \(3, 5\); accepted: \(..., 4\)"),
        ({"teacher_hidden": torch.ones(2, HT)}, ValueError, "a hidden state for each of the student's"),
        ({"student_weight": nn.Linear(H, V)}, TypeError, "student_weight is a Linear.*pass the .weight of a layer"),
        ({"student_weight": torch.ones(V, H, dtype=torch.int64)}, TypeError, "student_weight has dtype torch.int64"),
        ({"student_weight": torch.ones(H)}, ValueError, r"student_weight has shape \(4,\); accepted: \(vocabulary"),
        ({"teacher_weight": torch.ones(V + 2, HT)}, ValueError, r"9 and 11 entries.*torch.arange\(9\) for both"),
        ({"teacher_weight": torch.ones(V, HT).requires_grad_()}, ValueError, "teacher_weight requires a gradient"),
        ({"student_bias": torch.ones(V + 1)}, ValueError, r"student_bias has shape \(10,\); accepted: \(9,\)"),
        ({"student_ids": torch.arange(2)}, ValueError, "only one of student_ids and teacher_ids"),
        ({"student_ids": torch.arange(2), "teacher_ids": torch.arange(3)}, ValueError, "that of student_ids"),
        ({"student_ids": torch.tensor([99]), "teacher_ids": torch.tensor([0])}, ValueError, "entries from 99 to 99"),
        ({"student_ids": [0], "teacher_ids": torch.tensor([0])}, TypeError, "student_ids is a list"),
        ({"class_weight": torch.ones(2)}, ValueError, r"class_weight has shape \(2,\); accepted: \(9,\)"),
        (
            {"class_weight": torch.linspace(-1, 1, V)},
            ValueError,
            "class_weight has an entry -1.0; accepted: none below 0",
        ),
        ({"teacher_bias": torch.ones(V).requires_grad_()}, ValueError, "teacher_bias requires a gradient"),
        ({"reduction": "none"}, ValueError, "a value for each token and class, which this loss never makes"),
        ({"reduction": "median"}, ValueError, "reduction is 'median'"),
        ({"implementation": "fast"}, ValueError, "implementation is 'fast'; accepted: auto, gram, chunked"),
        ({"phi": 1.5}, ValueError, "phi is 1.5"),
        ({"mask": torch.ones(2, dtype=torch.bool)}, ValueError, r"mask has shape \(2,\); accepted: \(3,\)"),
        ({"weight": torch.ones(2)}, ValueError, r"weight has shape \(2,\)"),
        ({"divisor": -1}, ValueError, "divisor is -1"),
        ({"logit_softcapping": 30.0}, ValueError, "logit_softcapping is 30.0: such logits are not linear"),
        ({"logit_scale": "big"}, TypeError, "logit_scale is a str"),
        ({"teacher_gram": torch.ones(HT, HT)}, TypeError, "teacher_gram is a Tensor"),
    ],
)
def test_refused(changes, error, sentence):
    with pytest.raises(error, match=sentence):
        akd_ext.linear_annealed_mse_loss(**arguments(**changes))


class Model(nn.Module):
    def __init__(self, head, **config):
        super().__init__()
        self.head, self.config = head, SimpleNamespace(**config)

    def get_output_embeddings(self):
        return self.head


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"teacher_weight": nn.Linear(HT, V)}, TypeError, "teacher_weight is a Linear.*pass the .weight of a layer"),
        ({"teacher_weight": torch.ones(HT)}, ValueError, r"teacher_weight has shape \(6,\)"),
        ({"teacher_bias": torch.ones(V + 3)}, ValueError, r"teacher_bias has shape \(12,\); accepted: \(9,\)"),
        ({"class_weight": torch.ones(V + 1)}, ValueError, r"class_weight has shape \(10,\); accepted: \(9,\)"),
        ({"teacher_ids": torch.tensor([V])}, ValueError, "entries from 9 to 9; accepted: 0 to 8"),
    ],
)
def test_a_teacher_gram_of_something_else_is_refused(changes, error, sentence):
    with pytest.raises(error, match=sentence):
        teacher_gram(**{"teacher_weight": torch.ones(V, HT), **changes})


def test_the_head_of_a_model():
    head = nn.Linear(H, V)
    assert output_head(head).weight is head.weight
    assert output_head(Model(head, logit_scale=0.25)).logit_scale == 0.25
    assert output_head(Model(head, logits_scaling=8.0)).logit_scale == 0.125
    assert output_head(Model(nn.Linear(H, V, bias=False))).bias is None


@pytest.mark.parametrize(
    ("model", "error", "sentence"),
    [
        (Model(nn.Linear(H, V), final_logit_softcapping=30.0), ValueError, "caps its logits"),
        (Model(nn.Sequential(nn.Linear(H, V))), TypeError, "is a Sequential.*merge an adapter"),
        (Model(nn.utils.parametrizations.weight_norm(nn.Linear(H, V))), TypeError, "head"),
        (Model(None), TypeError, "is a NoneType"),
    ],
)
def test_a_head_that_is_not_linear(model, error, sentence):
    with pytest.raises(error, match=sentence):
        output_head(model)


def test_auto_takes_the_cheaper_way(monkeypatch):
    """Below the break-even chunked, from there on Gram; the counts meet there."""
    problem = costs.Problem(1, hidden=64, teacher_hidden=128, classes=5000)
    even = costs.break_even(problem)
    assert [costs.cheaper(problem._replace(tokens=n)) for n in (even - 1, even + 1)] == ["chunked", "gram"]
    assert costs.cheaper(problem._replace(head_gradient=False, grams_known=True)) == "gram"
    assert costs.break_even(costs.Problem(1, hidden=64, teacher_hidden=64, classes=8)) is None
    import akd_ext.linear.loss as loss

    taken = []
    monkeypatch.setattr(loss, "chunked_loss", lambda *args: taken.append("chunked"))
    monkeypatch.setattr(loss, "gram_loss", lambda *args: taken.append("gram"))
    weight = torch.ones(500, H, requires_grad=True)
    for tokens in (1, 500):
        akd_ext.linear_annealed_mse_loss(
            torch.ones(tokens, H), weight, torch.ones(tokens, H), torch.ones(500, H), 0.5
        )  # fmt: skip
    assert taken == ["chunked", "gram"]
