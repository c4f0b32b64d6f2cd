"""The criterion for ModelOpt's kd_loss mode against the real library."""

import copy
import types

import pytest
import torch
from torch import nn

from akd_ext import annealed_mse_loss
from akd_ext.adapters.modelopt import AnnealingKDLoss

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def mtd():
    pytest.importorskip("modelopt", reason="the adapter is for it: pip install '.[modelopt]'")
    # Not at the top: it takes seconds, and warns of versions of transformers that nobody uses here.
    import modelopt.torch.distill

    return modelopt.torch.distill


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.dropout, self.layer = nn.Dropout(0.5), nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(self.dropout(x))


class Output(Plain):
    """Its output has ``.logits``, as those of Hugging Face."""

    def forward(self, x):
        return types.SimpleNamespace(logits=super().forward(x))


def logits(output):
    return output if isinstance(output, torch.Tensor) else output.logits


@pytest.mark.parametrize("make", [Plain, Output])
def test_loss_and_gradient_follow_the_epoch(mtd, make):
    student, teacher, images = make().eval(), make(), torch.randn(5, 3)
    alone, criterion = copy.deepcopy(student), AnnealingKDLoss(tau_max=4)
    with torch.no_grad():
        target = logits(copy.deepcopy(teacher).eval()(images))
    both = mtd.convert(student, mode=[("kd_loss", {"teacher_model": teacher.train(), "criterion": criterion})])
    for epoch in (0, 2, 3):
        _, phi = criterion.set_epoch(epoch, 4)
        both(images)
        loss = both.compute_kd_loss()
        expected = annealed_mse_loss(logits(alone(images)), target, phi)
        assert loss.item() == expected.item()
        got = torch.autograd.grad(loss, [p for p in both.parameters() if p.requires_grad])
        for one, other in zip(got, torch.autograd.grad(expected, alone.parameters()), strict=True):
            assert torch.equal(one, other)


def test_the_student_comes_out_alone(mtd):
    criterion = AnnealingKDLoss(tau_max=4)
    both = mtd.convert(Plain(), mode=[("kd_loss", {"teacher_model": Plain(), "criterion": criterion})])
    student = mtd.export(both)
    assert student.state_dict().keys() == Plain().state_dict().keys()
    student.train()(torch.randn(5, 3)).sum().backward()


def test_beside_a_loss_on_the_labels(mtd):
    """ModelOpt's balancer: 0.75 of ours and 0.25 of the student's own."""
    config = {
        "teacher_model": Plain(),
        "criterion": AnnealingKDLoss(tau_max=1),
        "loss_balancer": mtd.StaticLossBalancer(kd_loss_weight=0.75),
    }
    both = mtd.convert(Plain().eval(), mode=[("kd_loss", config)])
    images = torch.randn(5, 3)
    student = both(images)
    ours = annealed_mse_loss(student, both.teacher_model(images), 1.0)
    both(images)
    total = both.compute_kd_loss(student_loss=torch.tensor(2.0))
    torch.testing.assert_close(total, 0.75 * ours + 0.25 * 2.0)


def test_an_output_without_logits():
    with pytest.raises(TypeError, match="output is a dict; accepted: a tensor, or an object with .logits"):
        AnnealingKDLoss(tau_max=4)({}, torch.zeros(2, 3))
