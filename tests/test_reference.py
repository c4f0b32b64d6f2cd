"""akd_ext.reference is the specification: it is compared with arithmetic done by hand."""

import pytest
import torch

import akd_ext
from akd_ext import reference

STUDENT = torch.tensor([[1.0, 2.0], [0.0, 1.0], [4.0, -2.0]])
TEACHER = torch.tensor([[2.0, 2.0], [4.0, 0.0], [0.0, 4.0]])
# student - teacher / 2 = [[0, 1], [-2, 1], [4, -4]], squares 0 1 | 4 1 | 16 16
MASK = torch.tensor([True, True, False])


@pytest.mark.parametrize(
    ("reduction", "mask", "expected"),
    [("sum", None, 38.0), ("mean", None, 38 / 6), ("batchmean", None, 38 / 3)]
    + [("sum", MASK, 6.0), ("mean", MASK, 6 / 4), ("batchmean", MASK, 6 / 2)],
)
def test_by_hand(reduction, mask, expected):
    for function in (reference.annealed_mse, akd_ext.annealed_mse_loss):
        assert function(STUDENT, TEACHER, 0.5, reduction=reduction, mask=mask).item() == pytest.approx(
            expected, rel=1e-6
        )


def test_none_by_hand():
    squares = torch.tensor([[0.0, 1.0], [4.0, 1.0], [0.0, 0.0]])
    for function in (reference.annealed_mse, akd_ext.annealed_mse_loss):
        assert torch.equal(function(STUDENT, TEACHER, 0.5, reduction="none", mask=MASK), squares)


def test_gradient_by_hand():
    gradient = reference.annealed_mse_gradient(STUDENT, TEACHER, 0.5, reduction="sum", mask=MASK)
    assert torch.equal(gradient, torch.tensor([[0.0, 2.0], [-4.0, 2.0], [0.0, 0.0]]))


def test_gradient_of_nothing_is_empty():
    for dtype in (torch.float32, torch.float16):
        nothing = torch.zeros(0, 3, dtype=dtype)
        assert reference.annealed_mse_gradient(nothing, nothing, 0.5).shape == (0, 3)
        all_masked = torch.ones(2, 3, dtype=dtype)
        mask = torch.zeros(2, dtype=torch.bool)
        assert (reference.annealed_mse_gradient(all_masked, all_masked, 0.5, mask=mask) == 0).all()
