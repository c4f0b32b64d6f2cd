"""NaN, infinities, denormal and huge numbers: as in eager PyTorch."""

import itertools

import pytest
import torch
from op_oracle import DTYPES, check, exact, name, rounding
from torch.nn import functional as F

from akd_ext import annealed_mse_loss

SPECIAL = [torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1.0]


def kind(x):
    """0 finite, 1 nan, 2 +inf, 3 -inf."""
    return x.isnan() * 1 + x.isposinf() * 2 + x.isneginf() * 3


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("phi", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_nan_and_inf_go_where_eager_sends_them(dtype, phi, reduction, device):
    for student_value, teacher_value in itertools.product(SPECIAL, SPECIAL):
        student = torch.randn(40, device=device).to(dtype)
        teacher = torch.randn(40, device=device).to(dtype)
        student[17], teacher[17] = student_value, teacher_value
        results = []
        for function in (
            lambda s, t: annealed_mse_loss(s, t, phi, reduction=reduction),
            lambda s, t: F.mse_loss(s, phi * t, reduction=reduction),
        ):
            leaf = student.clone().requires_grad_()
            loss = function(leaf, teacher)
            loss.sum().backward()
            results.append((loss.detach(), leaf.grad))
        (ours, our_gradient), (plain, plain_gradient) = results
        assert torch.equal(kind(ours), kind(plain)), (student_value, teacher_value)
        assert torch.equal(kind(our_gradient), kind(plain_gradient)), (student_value, teacher_value)


@pytest.mark.parametrize("position", [0, 1, 15, 16, 31, 32, 33, 1023, 1024, 1040, 16383, 16384, 40000, -1])
def test_one_nan_is_never_lost(position, device):
    """At every kind of place: vector, tail, block border."""
    for dtype in DTYPES:
        student = torch.zeros(40003, dtype=dtype, device=device)
        student[position] = torch.nan
        leaf = student.requires_grad_()
        loss = annealed_mse_loss(leaf, torch.zeros_like(student), 0.5)
        loss.backward()
        assert loss.isnan()
        assert leaf.grad.isnan().sum() == 1
        assert leaf.grad[position].isnan()


@pytest.mark.parametrize("bits", [0x7FA0, 0x7FFF, 0xFFFF, 0x7F81, 0x7FC0])
def test_bfloat16_nan_payload_does_not_round_to_infinity(bits, device):
    student = (
        torch.tensor([bits - 0x10000 if bits > 0x7FFF else bits], dtype=torch.int16).view(torch.bfloat16).to(device)
    )
    leaf = student.requires_grad_()
    loss = annealed_mse_loss(leaf, torch.zeros_like(student), 0.5)
    loss.backward()
    assert loss.isnan()
    assert leaf.grad.isnan().all()


@pytest.mark.parametrize("reduction", ["mean", "batchmean", "sum", "none"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_masked_rows_do_not_leak(dtype, reduction, device):
    clean = torch.randn(2, 9, 21, device=device).to(dtype)
    mask = torch.arange(9, device=device) % 3 != 1
    dirty = clean.clone()
    for row, value in zip((~mask).nonzero().flatten().tolist(), (torch.nan, torch.inf, -torch.inf), strict=True):
        dirty[:, row] = value
    loss, gradient = check(annealed_mse_loss, clean[0], clean[1], 0.5, reduction, mask)
    leaf = dirty[0].clone().requires_grad_()
    other = annealed_mse_loss(leaf, dirty[1], 0.5, reduction=reduction, mask=mask)
    other.sum().backward()
    assert torch.equal(other.detach(), loss)
    assert torch.equal(leaf.grad, gradient)
    assert (leaf.grad[~mask] == 0).all()


@pytest.mark.parametrize("retain", [False, True])
def test_masked_rows_do_not_leak_into_slower_paths(retain, device):
    student = torch.randn(4, 3, device=device)
    student[1] = torch.nan
    student.requires_grad_()
    teacher = torch.randn(4, 3, device=device)
    teacher[1] = torch.inf
    teacher.requires_grad_()
    mask = torch.tensor([1, 0, 1, 1], dtype=torch.bool, device=device)
    loss = annealed_mse_loss(student, teacher, 0.5, mask=mask)
    by_student, by_teacher = torch.autograd.grad(loss, (student, teacher), create_graph=retain)
    assert by_student.isfinite().all() and (by_student[1] == 0).all()
    assert by_teacher.isfinite().all() and (by_teacher[1] == 0).all()
    if retain:
        (second,) = torch.autograd.grad(by_student.sum(), student)
        assert second.isfinite().all() and (second[1] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_denormal_logits(dtype, device):
    """Gradients of numbers below the smallest normal one, to half a step of the even grid there (a full one if eager errs)."""
    step = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    student = (torch.arange(-40, 40, device=device, dtype=torch.float64) * step).to(dtype)
    teacher = (torch.arange(80, device=device, dtype=torch.float64) * 3 * step).to(dtype)
    for phi in (1.0, 0.5, 0.0):
        leaf = student.clone().requires_grad_()
        annealed_mse_loss(leaf, teacher, phi, reduction="sum").backward()
        plain = student.clone().requires_grad_()
        F.mse_loss(plain, phi * teacher, reduction="sum").backward()
        _, reference = exact(student, teacher, phi, "sum")
        allowed = 2 * (plain.grad.cpu().double() - reference).abs().max() + rounding(reference, dtype)
        assert ((leaf.grad.cpu().double() - reference).abs() <= allowed).all(), phi


def test_float32_denormals_bit_for_bit(device):
    student = torch.randint(-(2**20), 2**20, (1000,), device=device).to(torch.float32) * 2.0**-149
    teacher = torch.randint(-(2**20), 2**20, (1000,), device=device).to(torch.float32) * 2.0**-149
    leaf, plain = student.clone().requires_grad_(), student.clone().requires_grad_()
    annealed_mse_loss(leaf, teacher, 0.3, reduction="sum").backward()
    F.mse_loss(plain, 0.3 * teacher, reduction="sum").backward()
    assert torch.equal(leaf.grad, plain.grad)
    assert leaf.grad.abs().max() > 0


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_huge_logits(dtype, device):
    """|s - phi t| beyond the largest number: the gradient is eager's, infinity included."""
    huge = torch.finfo(dtype).max
    student = torch.tensor([huge, huge, -huge, huge / 2, huge / 4], dtype=dtype, device=device)
    teacher = torch.tensor([-huge, huge, huge, -huge / 4, 0.0], dtype=dtype, device=device)
    for reduction in ("mean", "sum"):
        leaf, plain = student.clone().requires_grad_(), student.clone().requires_grad_()
        annealed_mse_loss(leaf, teacher, 1.0, reduction=reduction).backward()
        F.mse_loss(plain, 1.0 * teacher, reduction=reduction).backward()
        finite = plain.grad.isfinite()  # where eager overflows, ours may still hold the true value
        assert leaf.grad[finite].isfinite().all()
        assert not leaf.grad.isnan().any()
        torch.testing.assert_close(leaf.grad[finite], plain.grad[finite])


@pytest.mark.parametrize("retain_graph", [False, True])
@pytest.mark.parametrize("scaled_by", ["a product", "the gradient argument"])
def test_float16_with_a_big_upstream_gradient_does_not_underflow(scaled_by, retain_graph, device):
    """13 million logits, GradScaler's first factor: 2 d / N alone is zero in float16, times 65536 it is not."""
    student = torch.full((1300, 10000), 0.5, dtype=torch.float16, device=device).requires_grad_()
    teacher = torch.full_like(student, 0.9375, requires_grad=False)
    factor, difference = 65536.0, 0.5 - 0.5 * 0.9375
    assert 2 * difference / student.numel() < 2**-25, "the case is not the one it claims to be"
    loss = annealed_mse_loss(student, teacher, 0.5)
    if scaled_by == "a product":
        (factor * loss).backward(retain_graph=retain_graph)
    else:
        loss.backward(torch.tensor(factor, device=device), retain_graph=retain_graph)
    expected = 2 * difference * factor / student.numel()
    assert (student.grad.double() - expected).abs().max() <= expected * 2**-11


@pytest.mark.parametrize("teacher_dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_float16_against_a_teacher_that_marks_unused_classes(teacher_dtype, device):
    """The difference, 1e9, is no float16, but the gradient 2 d / count may be: it must not be infinite."""
    student = torch.randn(64, 1000, device=device).half().requires_grad_()
    teacher = torch.randn(64, 1000, device=device).to(teacher_dtype)
    teacher[:, -2:] = torch.tensor([-1e9, 1e9], device=device, dtype=teacher_dtype)
    (got,) = torch.autograd.grad(annealed_mse_loss(student, teacher, 0.5), student)
    assert got.isfinite().all()
    most = torch.tensor([1.0, -1.0], device=device).half() * (65504 * 2 / student.numel())
    torch.testing.assert_close(got[:, -2:], most.expand(64, 2))
    plain = (2 / student.numel() * (student.detach().double() - 0.5 * teacher.double()))[:, :-2]
    torch.testing.assert_close(got[:, :-2].double(), plain, rtol=2e-3, atol=1e-7)


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_float16_does_not_hide_what_is_not_finite(bad, device):
    student = torch.zeros(3, 40, device=device).half()
    student[1, 7] = bad
    student.requires_grad_()
    (got,) = torch.autograd.grad(annealed_mse_loss(student, torch.zeros(3, 40, device=device), 0.5), student)
    assert got.isfinite().sum() == 119 and not got[1, 7].isfinite()
