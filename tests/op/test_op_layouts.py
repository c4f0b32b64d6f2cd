"""Any stride and any alignment: the layout of an argument changes nothing but speed."""

import pytest
import torch
from op_oracle import DTYPES, check

from akd_ext import annealed_mse_loss

SHAPE = (12, 35)


def contiguous(x):
    return x.contiguous()


def every_second_column(x):
    return torch.stack((x, torch.full_like(x, torch.nan)), dim=-1).flatten(-2)[..., ::2]


def transposed(x):
    return x.transpose(0, -1).contiguous().transpose(0, -1)


def expanded_rows(x):
    return x[:1].expand(x.shape)


def expanded_scalar(x):
    return x[:1, :1].expand(x.shape)


def row_slice_of_a_wider_tensor(x):
    wide = torch.full((x.shape[0], x.shape[1] + 3), torch.nan, dtype=x.dtype, device=x.device)
    wide[:, 1:-2] = x
    return wide[:, 1:-2]


def offset(by):
    def misaligned(x):
        flat = torch.full((x.numel() + 64,), torch.nan, dtype=x.dtype, device=x.device)
        view = flat[by : by + x.numel()].view(x.shape)
        view.copy_(x)
        assert view.storage_offset() == by
        return view

    misaligned.__name__ = f"offset_{by}"
    return misaligned


def negative_bit(x):
    """A lazily negated view, as ``z.conj().imag`` makes one."""
    view = torch.complex(torch.zeros_like(x, dtype=torch.float64), -x.double()).conj().imag.to(x.dtype)
    return torch._neg_view(-x) if x.dtype is not torch.float64 else view


LAYOUTS = [
    contiguous,
    every_second_column,
    transposed,
    expanded_rows,
    expanded_scalar,
    row_slice_of_a_wider_tensor,
    negative_bit,
]
LAYOUTS += [offset(by) for by in (1, 2, 3, 5, 7, 8, 31)]


@pytest.mark.parametrize("teacher_layout", LAYOUTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("student_layout", LAYOUTS, ids=lambda f: f.__name__)
def test_layouts(student_layout, teacher_layout, device):
    for dtype in DTYPES[1:] if student_layout is teacher_layout else DTYPES[1:2]:
        student = student_layout(torch.randn(SHAPE, device=device).to(dtype))
        teacher = teacher_layout(torch.randn(SHAPE, device=device).to(dtype))
        loss, gradient = check(annealed_mse_loss, student, teacher, 0.6)
        leaf = student.contiguous().resolve_neg().clone().requires_grad_()
        plain = annealed_mse_loss(leaf, teacher.contiguous().resolve_neg().clone(), 0.6)
        plain.backward()
        assert torch.equal(plain.detach(), loss)
        assert torch.equal(leaf.grad, gradient)


@pytest.mark.parametrize("mask_layout", ["every_second", "expanded", "offset", "transposed"])
def test_mask_layouts(mask_layout, device):
    student, teacher = torch.randn(2, 4, 6, 9, device=device).unbind()
    mask = torch.rand(4, 6, device=device) < 0.5
    view = {
        "every_second": lambda: torch.stack((mask, ~mask), -1).flatten(-2)[..., ::2],
        "expanded": lambda: mask[:1].expand(4, 6),
        "offset": lambda: torch.cat((~mask[0, :3], mask.flatten()))[3:].view(4, 6),
        "transposed": lambda: mask.t().contiguous().t(),
    }[mask_layout]()
    check(annealed_mse_loss, student, teacher, 0.6, "mean", view)


def test_mask_bytes_that_are_not_one(device):
    """A bool tensor that views other memory may hold any byte; everything but 0 is True, as in PyTorch."""
    mask = (torch.arange(70, device=device) * 37 % 256).to(torch.uint8).view(torch.bool)
    student, teacher = torch.randn(2, 70, 5, device=device).unbind()
    check(annealed_mse_loss, student, teacher, 0.6, "mean", mask)


def test_channels_last(device):
    student = torch.randn(2, 8, 3, 3, device=device).to(memory_format=torch.channels_last)
    teacher = torch.randn(2, 8, 3, 3, device=device)
    check(annealed_mse_loss, student, teacher, 0.6)


def test_overlapping_student(device):
    """Windows over one storage; the leaf sums what its windows get."""
    base = torch.randn(14, device=device, requires_grad=True)
    teacher = torch.randn(5, 10, device=device)
    annealed_mse_loss(base.unfold(0, 10, 1), teacher, 0.5).backward()
    other = base.detach().clone().requires_grad_()
    torch.nn.functional.mse_loss(other.unfold(0, 10, 1), 0.5 * teacher).backward()
    torch.testing.assert_close(base.grad, other.grad)


def test_student_is_the_teacher(device):
    student = torch.randn(5, 7, device=device, requires_grad=True)
    annealed_mse_loss(student, student.detach(), 0.25).backward()
    torch.testing.assert_close(student.grad, 2 / 35 * 0.75 * student.detach())
