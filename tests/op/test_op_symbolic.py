"""Traced and exported programs, and those compiled for any batch size: the sizes of the trace are not in them."""

from __future__ import annotations

import itertools

import pytest
import torch
from op_oracle import DTYPES, REDUCTIONS, name
from torch._dynamo.testing import CompileCounterWithBackend
from torch.fx.experimental.proxy_tensor import make_fx

from akd_ext import AnnealingKDLoss, annealed_mse_loss

ROWS = ("every row", "mask", "weight")


def every_case(usually=lambda *case: True):
    """Loss, reduction, dtype, rows in all combinations, of which those not ``usually`` tested are for integration."""
    cases = itertools.product(("mse", "kl"), REDUCTIONS, DTYPES, ROWS)
    marks = lambda case: () if usually(*case) else pytest.mark.integration  # noqa: E731
    return pytest.mark.parametrize(
        ("loss", "reduction", "dtype", "rows"),
        [pytest.param(*case, id=f"{case[0]} {case[1]} {name(case[2])} {case[3]}", marks=marks(case)) for case in cases],
    )


def one_of_each(loss, reduction, dtype, rows):
    return reduction == "mean" and (loss, dtype) in (("mse", torch.float16), ("kl", torch.float32)) and rows != "weight"


TOLERANCE = {"rtol": 1e-3, "atol": 1e-6}  # float16 rounds twice in one of the two paths


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def arguments(batch, dtype, rows="every row", classes=5):
    student, teacher = torch.randn(2, batch, classes).to(dtype).unbind()
    mask, weight = torch.arange(batch) % 3 != 1, torch.arange(batch) + 1.0
    return (student, teacher, *{"every row": (), "mask": (mask,), "weight": (mask, weight)}[rows])


def with_gradient(function, student, *rest):
    leaf = student.detach().clone().requires_grad_()
    loss = function(leaf, *rest)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    return loss.detach(), gradient


def check(program, function, batch, dtype, rows):
    inputs = arguments(batch, dtype, rows)
    torch.testing.assert_close(with_gradient(program, *inputs), with_gradient(function, *inputs), **TOLERANCE)


@every_case()
@pytest.mark.filterwarnings("ignore")
def test_jit_trace(loss, reduction, dtype, rows):
    criterion = AnnealingKDLoss(2, loss=loss, reduction=reduction)
    traced = torch.jit.trace(criterion, arguments(3, dtype, rows), check_trace=False)
    check(traced, criterion, 7, dtype, rows)


@every_case(lambda loss, reduction, dtype, rows: dtype is torch.float16 and rows == "mask")
@pytest.mark.filterwarnings("ignore")
def test_symbolic_make_fx(loss, reduction, dtype, rows):
    """Loss and gradient in one graph."""
    criterion = AnnealingKDLoss(2, loss=loss, reduction=reduction)
    function = lambda *inputs: with_gradient(criterion, *inputs)  # noqa: E731
    graph = make_fx(function, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*arguments(3, dtype, rows))
    inputs = arguments(7, dtype, rows, classes=9)
    torch.testing.assert_close(graph(*inputs), function(*inputs), **TOLERANCE)


@every_case(one_of_each)
def test_one_compilation_for_every_batch_size(loss, reduction, dtype, rows):
    counter = CompileCounterWithBackend("aot_eager")
    criterion = AnnealingKDLoss(2, loss=loss, reduction=reduction)
    compiled = torch.compile(criterion, fullgraph=True, dynamic=True, backend=counter)
    for batch in (3, 4, 129):
        check(compiled, criterion, batch, dtype, rows)
    assert counter.frame_count == 1


@every_case(one_of_each)
def test_export_with_a_free_batch_size(loss, reduction, dtype, rows):
    criterion = AnnealingKDLoss(2, loss=loss, reduction=reduction)
    inputs, batch = arguments(3, dtype, rows), torch.export.Dim("batch", min=2)
    program = torch.export.export(criterion, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs)).module()
    inputs = arguments(7, dtype, rows)
    torch.testing.assert_close(program(*inputs), criterion(*inputs))


@pytest.mark.parametrize("reduction", ["mean", "batchmean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=name)
def test_class_dim_and_a_divisor_of_the_batch(dtype, reduction):
    """batchmean over dimension 1 counts rows by a product of sizes, and a user's divisor may be one, too."""
    counter = CompileCounterWithBackend("aot_eager")

    def loss(student, teacher):
        one = annealed_mse_loss(student, teacher, 0.5, reduction=reduction, class_dim=0)
        return one + annealed_mse_loss(student, teacher, 0.5, divisor=student.shape[0] * 3)

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=counter)
    graph = make_fx(loss, tracing_mode="symbolic")(*arguments(3, dtype))
    check(compiled, loss, 3, dtype, "every row")
    compilations = counter.frame_count
    for batch in (4, 129):
        check(compiled, loss, batch, dtype, "every row")
        inputs = arguments(batch, dtype)
        torch.testing.assert_close(graph(*inputs), loss(*inputs))
    assert counter.frame_count == compilations
