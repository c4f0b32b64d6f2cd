"""Loss and gradient are at most twice as far from the exact answer as plain PyTorch on the same input."""

import math

import pytest
import torch
from op_oracle import DTYPES, REDUCTIONS, check, name
from torch.nn import functional as F

from akd_ext import annealed_mse_loss

PAIRS = [pytest.param(s, t, id=f"{name(s)}-{name(t)}") for s in DTYPES for t in DTYPES]
MASKS = {
    "no_mask": lambda rows: None,
    "some": lambda rows: torch.rand(rows) < 0.6,
    "one_row": lambda rows: torch.arange(rows.numel()).reshape(rows) == 1,
    "all_kept": lambda rows: torch.ones(rows, dtype=torch.bool),
    "all_masked": lambda rows: torch.zeros(rows, dtype=torch.bool),
}


def logits(shape, dtype, device, scale=3.0):
    return (scale * torch.randn(shape, dtype=torch.float64)).to(device, dtype)


def make_mask(kind, shape, device):
    mask = MASKS[kind](torch.Size(shape[:-1]))
    return None if mask is None else mask.to(device)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("student_dtype", "teacher_dtype"), PAIRS)
def test_dtypes_masks_reductions(student_dtype, teacher_dtype, mask, reduction, device):
    shape = (3, 5, 37)
    student, teacher = logits(shape, student_dtype, device), logits(shape, teacher_dtype, device)
    check(annealed_mse_loss, student, teacher, 0.7, reduction, make_mask(mask, shape, device))


@pytest.mark.parametrize(
    "shape", [(1,), (2,), (10,), (1, 1), (128, 10), (32, 2), (7, 33), (2, 3, 17), (2, 3, 4, 5)], ids=str
)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_shapes(dtype, shape, device):
    for reduction in REDUCTIONS:
        check(annealed_mse_loss, logits(shape, dtype, device), logits(shape, dtype, device), 0.3, reduction)


@pytest.mark.parametrize("mask", ["no_mask", "some"])
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=name)
def test_many_blocks(dtype, mask, device):
    """Large enough for several threads and blocks, with a length that no vector divides."""
    shape = (61, 2731)
    student, teacher = logits(shape, dtype, device), logits(shape, dtype, device)
    for reduction in ("mean", "sum"):
        check(annealed_mse_loss, student, teacher, 0.4, reduction, make_mask(mask, shape, device))


@pytest.mark.parametrize("phi", [0.0, 0.1, 1 / 3, 1.0, 1, 0])
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_phi_as_a_number(dtype, phi, device):
    check(annealed_mse_loss, logits((6, 9), dtype, device), logits((6, 9), dtype, device), phi)


@pytest.mark.parametrize("phi_dtype", DTYPES, ids=name)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_phi_as_a_tensor(dtype, phi_dtype, device):
    """On the CPU and on the logits' device, in any dtype: the same bits as the number it holds."""
    student, teacher = logits((6, 9), dtype, device), logits((6, 9), dtype, device)
    phi = torch.tensor(0.7, dtype=phi_dtype)
    loss, gradient = check(annealed_mse_loss, student, teacher, phi.item())
    for place in {"cpu", device}:
        leaf = student.clone().requires_grad_()
        by_tensor = annealed_mse_loss(leaf, teacher, phi.to(place))
        by_tensor.backward()
        assert torch.equal(by_tensor.detach(), loss)
        assert torch.equal(leaf.grad, gradient)


def test_phi_tensor_is_read_when_the_loss_is_computed(device):
    phi = torch.tensor(0.25, device=device)
    student, teacher = logits((4, 5), torch.float32, device), logits((4, 5), torch.float32, device)
    first = annealed_mse_loss(student, teacher, phi)
    phi.fill_(0.75)
    second = annealed_mse_loss(student, teacher, phi)
    assert torch.equal(first, annealed_mse_loss(student, teacher, 0.25))
    assert torch.equal(second, annealed_mse_loss(student, teacher, 0.75))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_nothing_to_average(dtype, device):
    for shape in [(0,), (0, 3), (3, 0), (0, 0), (2, 0, 5), (2, 5, 0)]:
        for reduction in REDUCTIONS:
            for mask in (None, torch.ones(shape[:-1], dtype=torch.bool, device=device)):
                check(
                    annealed_mse_loss, logits(shape, dtype, device), logits(shape, dtype, device), 0.5, reduction, mask
                )


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_arguments_are_only_read(dtype, device):
    student, teacher = logits((9, 7), dtype, device).requires_grad_(), logits((9, 7), dtype, device)
    mask, phi = torch.rand(9, device=device) < 0.5, torch.tensor(0.5, device=device)
    before = [x.detach().clone() for x in (student, teacher, mask, phi)]
    (3 * annealed_mse_loss(student, teacher, phi, mask=mask)).backward()
    for was, now in zip(before, (student, teacher, mask, phi), strict=True):
        assert torch.equal(was, now.detach())
        assert now._version == 0


@pytest.mark.parametrize("length", [16, 48, 1000, 30000, 1000000])
def test_float64_sums_as_well_as_eager(length, device):
    """Root mean square over draws, in roundings: twice eager's and one more, as everywhere."""
    ours, plain = [], []
    for _ in range(6):
        student = torch.randn(length, dtype=torch.float64, device=device)
        zeros = torch.zeros_like(student)
        # The squares are rounded once by everybody; math.fsum adds them without any further error.
        exact = math.fsum(student.square().tolist())
        for errors, function in (
            (ours, annealed_mse_loss),
            (plain, lambda s, t, _, reduction: F.mse_loss(s, t, reduction=reduction)),
        ):
            errors.append((function(student, zeros, 0.0, reduction="sum").item() - exact) / exact * 2**53)
    rms = [math.sqrt(sum(e * e for e in errors) / len(errors)) for errors in (ours, plain)]
    assert rms[0] <= 2 * rms[1] + 1, rms


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=name)
def test_a_long_sum_of_equal_squares_stays_near_one_rounding(dtype, device):
    """Errors of equal terms do not cancel: a sum that stays in float32 for long shows here, at about 100 roundings.

    Ours leaves float32 after at most 32 additions; the k-th errs by k/32 of a rounding of the end, so 16 together.
    """
    for value in (1.1, 1.3, 1.7, 1.9):
        student = torch.full((300000,), value, device=device).to(dtype)
        loss = annealed_mse_loss(student, torch.zeros_like(student), 0.0, reduction="sum")
        square = student[:1].float().square().double().item()
        assert abs(loss.item() - 300000 * square) <= 17 * 2**-24 * 300000 * square
