"""Where the arithmetic is the same as in plain PyTorch, the gradient is the same to the last bit."""

import pytest
import torch
from op_oracle import DTYPES, name

from akd_ext import annealed_mse_loss

SCALE = {
    "mean": lambda rows, classes: 2.0 / (rows * classes),
    "batchmean": lambda rows, classes: 2.0 / rows,
    "sum": lambda *_: 2.0,
}


def formula(student, teacher, phi, scale, mask):
    """Step by step what the kernel does: multiply, subtract, scale, each rounded once; then one rounding to the dtype."""
    dtype = torch.float64 if torch.float64 in (student.dtype, teacher.dtype) else torch.float32
    difference = student.to(dtype) - phi * teacher.to(dtype)
    if mask is not None:
        difference = torch.where(mask.unsqueeze(-1), difference, 0.0)
    return (scale * difference).to(student.dtype)


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("reduction", SCALE)
@pytest.mark.parametrize("teacher_dtype", DTYPES, ids=name)
@pytest.mark.parametrize("student_dtype", DTYPES[:3], ids=name)
def test_gradient_is_the_formula(student_dtype, teacher_dtype, reduction, with_mask, device):
    """float16 is not here: it stores its gradient unscaled, so it rounds twice."""
    for shape in [(1,), (31,), (5, 7), (128, 100), (3, 11, 1009)]:
        student = (3 * torch.randn(shape, device=device)).to(student_dtype).requires_grad_()
        teacher = (3 * torch.randn(shape, device=device)).to(teacher_dtype)
        mask = torch.rand(shape[:-1], device=device) < 0.7 if with_mask and len(shape) > 1 else None
        rows = student.shape[:-1].numel() if mask is None else int(mask.sum())
        annealed_mse_loss(student, teacher, 0.3, reduction=reduction, mask=mask).backward()
        scale = SCALE[reduction](rows, shape[-1])
        assert torch.equal(student.grad, formula(student.detach(), teacher, 0.3, scale, mask))


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=name)
def test_gradient_is_that_of_autograd(dtype, device):
    """The sum: its gradient 2 d has no other rounding than that of d, so eager PyTorch has the same bits."""
    student = torch.randn(300, 77, dtype=dtype, device=device, requires_grad=True)
    teacher = torch.randn(300, 77, dtype=dtype, device=device)
    annealed_mse_loss(student, teacher, 0.3, reduction="sum").backward()
    (plain,) = torch.autograd.grad(torch.nn.functional.mse_loss(student, 0.3 * teacher, reduction="sum"), student)
    assert torch.equal(student.grad, plain)


@pytest.mark.parametrize("teacher_dtype", DTYPES, ids=name)
@pytest.mark.parametrize("student_dtype", DTYPES, ids=name)
def test_both_gradients_in_float64_with_a_mask(student_dtype, teacher_dtype, device):
    """2 / count must be as exact as the logits; a count that went through float32 shows here."""
    student = torch.randn(7, 5, device=device).to(student_dtype).requires_grad_()
    teacher = torch.randn(7, 5, device=device).to(teacher_dtype).requires_grad_()
    mask = torch.tensor([1, 0, 1, 1, 0, 0, 1], dtype=torch.bool, device=device)
    annealed_mse_loss(student, teacher, 0.5, mask=mask).backward()
    difference = (student.detach().double() - 0.5 * teacher.detach().double()) * mask.unsqueeze(-1)
    for leaf, exact in ((student, difference / 10), (teacher, -difference / 20)):
        wide = torch.float64 if torch.float64 in (student_dtype, teacher_dtype) else torch.float32
        eps = max(torch.finfo(leaf.dtype).eps, torch.finfo(wide).eps)
        smallest = torch.finfo(leaf.dtype).smallest_normal
        assert ((leaf.grad.double() - exact).abs() <= 2 * eps * exact.abs().clamp(min=smallest)).all()


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float16, torch.float64], ids=name)
def test_default_dtype_has_no_say(default, device):
    student, teacher = torch.randn(2, 40, 2000, device=device).unbind()
    mask = torch.rand(40, device=device) < 0.9

    def run(dtype, reduction):
        leaf, other = student.to(dtype).requires_grad_(), teacher.to(dtype).requires_grad_()
        loss = annealed_mse_loss(leaf, other, 0.5, reduction=reduction, mask=mask)
        return (
            loss.detach(),
            *torch.autograd.grad(loss, (leaf, other), retain_graph=True),
            *torch.autograd.grad(loss, leaf),
        )

    for dtype in DTYPES:
        expected = run(dtype, "mean")
        torch.set_default_dtype(default)
        try:
            got = run(dtype, "mean")
        finally:
            torch.set_default_dtype(torch.float32)
        for a, b in zip(expected, got, strict=True):
            assert a.dtype is b.dtype
            assert torch.equal(a, b)


def test_masked_rows_get_zero_and_positive_zero(device):
    student = torch.full((4, 3), torch.nan, device=device).requires_grad_()
    mask = torch.zeros(4, dtype=torch.bool, device=device)
    annealed_mse_loss(
        student, torch.full((4, 3), -torch.inf, device=device), 0.5, reduction="sum", mask=mask
    ).backward()
    assert torch.equal(student.grad, torch.zeros(4, 3, device=device))
    assert not student.grad.signbit().any()
