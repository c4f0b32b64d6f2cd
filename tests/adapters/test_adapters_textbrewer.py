"""The TextBrewer adapter against the real library."""

import warnings

import pytest
import torch
from torch import nn

from akd_ext import AnnealingKDLoss, AnnealingSchedule, LinearAnnealingKDLoss

pytestmark = pytest.mark.integration

BATCHES = 3


@pytest.fixture
def distil(tmp_path):
    pytest.importorskip("textbrewer", reason="the adapter needs it: pip install '.[textbrewer]'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # TextBrewer compares texts by `is`
        import textbrewer

    from akd_ext.adapters.textbrewer import annealing

    def run(criterion, epochs, **more):
        torch.manual_seed(1)
        data = torch.utils.data.TensorDataset(torch.randn(2 * BATCHES, 4))
        student, teacher = nn.Linear(4, 2, bias=False), nn.Linear(4, 2, bias=False)
        seen = []

        def watch(batch, output):  # the student's adaptor sees every batch just before its loss
            seen.append((criterion.temperature, student.weight.detach().clone()))
            return {"logits": output}

        settings = textbrewer.TrainingConfig(
            output_dir=str(tmp_path), log_dir=None, device="cpu", ckpt_frequency=1,
            gradient_accumulation_steps=more.pop("accumulation", 1),
        )  # fmt: skip
        config = textbrewer.DistillationConfig(**annealing(criterion, **more))
        distiller = textbrewer.BasicDistiller(settings, config, teacher, student, lambda b, o: {"logits": o}, watch)
        with distiller:
            distiller.train(torch.optim.SGD(student.parameters(), 0.1), torch.utils.data.DataLoader(data, 2), epochs)
        return data.tensors[0], teacher, seen

    return run


@pytest.mark.parametrize("epochs", [4, 8])
def test_the_temperature_follows_the_epochs(distil, epochs):
    _, _, seen = distil(AnnealingKDLoss(4), epochs)
    schedule = AnnealingSchedule(4, epochs)
    assert [T for T, _ in seen] == [schedule.temperature(epoch) for epoch in range(epochs) for _ in range(BATCHES)]


def test_with_accumulation_and_epochs_that_do_not_divide(distil):
    _, _, seen = distil(AnnealingKDLoss(4), epochs=6, accumulation=3)  # six steps, four temperatures
    assert [T for T, _ in seen[::BATCHES]] == [4, 4, 3, 2, 2, 1]


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_a_step_is_that_of_the_loss(distil, weight):
    data, teacher, seen = distil(AnnealingKDLoss(2), 2, weight=weight)
    for step, phi in ((0, 0.5), (BATCHES, 1.0)):  # the first batch of each of the two epochs
        before = seen[step][1].requires_grad_()
        loss = nn.functional.mse_loss(data[:2] @ before.T, phi * (data[:2] @ teacher.weight.T))
        (gradient,) = torch.autograd.grad(weight * loss, before)
        torch.testing.assert_close(seen[step + 1][1], before - 0.1 * gradient)


def test_a_loss_of_hidden_states_is_refused(distil):
    with pytest.raises(TypeError, match="criterion is a LinearAnnealingKDLoss"):
        distil(LinearAnnealingKDLoss(4, teacher_weight=torch.ones(2, 4)), 4)
