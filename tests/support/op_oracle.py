"""What the op is compared with: an exact answer, and the error that plain PyTorch makes on the same input.

    |ours - exact| <= 2 |eager - exact| + one rounding

The last term is the rounding to the dtype that the result is stored in, which nothing can avoid. Eager's loss is the worst
of eight orders of the same elements: one order of adding may be right by luck, and luck is no yardstick. Nothing here uses akd_ext: an oracle that shares code with the subject proves nothing.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch.nn import functional as F

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
REDUCTIONS = ("mean", "batchmean", "sum", "none")
DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def loss_dtype(student, teacher):
    return torch.float64 if torch.float64 in (student.dtype, teacher.dtype) else torch.float32


def divisor(student, reduction, mask):
    rows = student.shape[:-1].numel() if mask is None else int(mask.sum())
    return {"mean": rows * student.shape[-1], "batchmean": rows}.get(reduction, 1)


def exact(student, teacher, phi, reduction="mean", mask=None):
    """``(loss, gradient of loss.sum())`` on the CPU in float64.

    float64 inputs are worked out in rational numbers, since float64 arithmetic would be the subject itself.
    """
    s, t = student.detach().cpu().double(), teacher.detach().cpu().double()
    n = divisor(student, reduction, mask)
    if loss_dtype(student, teacher) is torch.float64:
        p = Fraction(float(phi))
        d = [Fraction(a) - p * Fraction(b) for a, b in zip(s.reshape(-1).tolist(), t.reshape(-1).tolist(), strict=True)]
        keep = [True] * len(d) if mask is None else mask.cpu().unsqueeze(-1).expand(s.shape).reshape(-1).tolist()
        d = [x if k else Fraction(0) for x, k in zip(d, keep, strict=True)]
        gradient = _tensor([2 * x / n for x in d] if n else [0.0] * len(d), s.shape)
        if reduction == "none":
            return _tensor([x * x for x in d], s.shape), gradient
        return torch.tensor(float(sum(x * x for x in d) / n) if n else float("nan"), dtype=torch.float64), gradient
    d = s - float(phi) * t
    if mask is not None:
        d = torch.where(mask.cpu().unsqueeze(-1), d, torch.zeros((), dtype=torch.float64))
    gradient = 2 * d / n if n else torch.zeros_like(d)
    return (d.square() if reduction == "none" else d.square().sum() / n), gradient


def _tensor(values, shape):
    return torch.tensor([float(v) for v in values], dtype=torch.float64).reshape(shape)


def eager(student, teacher, phi, reduction="mean", mask=None):
    """``(loss, gradient)`` of the expression a user would write without us, in the dtypes it would have."""
    student = student.detach().requires_grad_()
    target = phi * teacher.detach()
    # What mse_loss does with two dtypes. Written out, because torch 2.10 does it in the forward pass only.
    common = torch.promote_types(student.dtype, target.dtype)
    wide, target = student.to(common), target.to(common)
    if mask is None and reduction != "batchmean":
        loss = F.mse_loss(wide, target, reduction=reduction)
    else:
        squares = F.mse_loss(wide, target, reduction="none")
        if mask is not None:
            squares = torch.where(mask.unsqueeze(-1), squares, torch.zeros_like(squares))
        n = divisor(student, reduction, mask)
        loss = squares if reduction == "none" else squares.sum() / n
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    return loss.detach(), gradient


def eager_losses(student, teacher, phi, reduction, mask):
    """The losses that eager computes with rows and classes in eight orders, stacked."""
    classes = student.shape[-1]
    s, t = student.detach().reshape(-1, classes), teacher.detach().reshape(-1, classes)
    flat_mask = None if mask is None else mask.reshape(-1)
    losses = []
    for _ in range(8):
        rows, columns = (torch.randperm(n, device=s.device) for n in s.shape)
        m = None if mask is None else flat_mask[rows]
        losses.append(eager(s[rows][:, columns], t[rows][:, columns], phi, reduction, m)[0])
    return torch.stack(losses)


def rounding(reference, dtype):
    """The largest distance from ``reference`` to its nearest neighbour in ``dtype``."""
    info = torch.finfo(dtype)
    # Below the normal numbers the grid is even: its step is that of the smallest normal number.
    return (reference.abs().clamp(min=info.smallest_normal) * (info.eps / 2)).double()


def assert_within(ours, plain, reference, what, roundings=1):
    """``ours`` errs at most twice as much as ``plain``, plus ``roundings`` to the dtype of ``ours``."""
    assert ours.shape == reference.shape, f"{what}: shape {ours.shape}, expected {reference.shape}"
    if reference.numel() == 0:
        return
    error = (ours.detach().cpu().double() - reference).abs()
    allowed = 2 * (plain.detach().cpu().double() - reference).abs().max() + roundings * rounding(reference, ours.dtype)
    excess = error / allowed
    assert torch.isfinite(ours).all(), f"{what}: not finite"
    assert (error <= allowed).all(), f"{what}: {excess.max().item():.3g} times the allowed error"


def check(loss_function, student, teacher, phi, reduction="mean", mask=None):
    """Loss and gradient of ``loss_function`` on this input, against :func:`exact` and :func:`eager`."""
    leaf = student.detach().requires_grad_()  # shares memory and strides
    loss = loss_function(leaf, teacher, phi, reduction=reduction, mask=mask)
    assert loss.dtype is loss_dtype(student, teacher)
    assert loss.device == student.device
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    assert gradient.dtype is student.dtype
    exact_loss, exact_gradient = exact(student, teacher, phi, reduction, mask)
    eager_loss, eager_gradient = eager(student, teacher, phi, reduction, mask)
    additions = 0
    if divisor(student, reduction, mask) == 0 and reduction != "none":
        assert loss.isnan(), "nothing to average over"
        assert (gradient == 0).all()
    else:
        if reduction != "none" and student.numel():
            eager_loss = torch.stack((eager_loss, *eager_losses(student, teacher, phi, reduction, mask)))
            if loss.dtype is torch.float64:
                # Added up in the dtype it is stored in: no order of n additions promises less than log2(n) roundings.
                # (That ours is on average as good as eager's: test_float64_sums_as_well_as_eager.)
                additions = math.ceil(math.log2(student.numel() + 1))
        assert_within(loss, eager_loss, exact_loss, "loss", roundings=1 + additions)
        assert_within(gradient, eager_gradient, exact_gradient, "gradient")
    with torch.no_grad():
        again = loss_function(student, teacher, phi, reduction=reduction, mask=mask)
    assert torch.equal(again, loss.detach()) or again.isnan().any(), "the loss without gradient is another one"
    return loss.detach(), gradient
