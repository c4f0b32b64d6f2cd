"""The C++ kernel by itself (pybind11, no torch around it) against the op: the layers between add nothing to the numbers."""

import importlib.util

import pytest
import torch
from places import ROOT

from akd_ext import backend
from akd_ext.op import autograd as _op

pytestmark = pytest.mark.integration  # compiles the binding

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.fixture(scope="module")
def bare():
    spec = importlib.util.spec_from_file_location("bare_kernel", ROOT / "benchmarks" / "bare_kernel.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def native(bare, tmp_path_factory):
    assert backend("cpu") == "cpu", "the op runs without its C++ kernel here: there is nothing to compare"
    return bare.build(tmp_path_factory.mktemp("bare kernel"))


@pytest.mark.parametrize("teacher_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("student_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("numel", [1, 15, 16, 33, 1280, 16384])  # up to one block of the op
def test_same_bits_as_the_op(bare, native, student_dtype, teacher_dtype, numel):
    student, teacher = torch.randn(numel).to(student_dtype), torch.randn(numel).to(teacher_dtype)
    loss, expected = _op.annealed_mse(student, teacher, None, 0.3, None, None, None, _op.REDUCTION["sum"], True)
    gradient = torch.full_like(student, torch.nan)
    scale = 1.0 if student_dtype is torch.float16 else 2.0  # float16 is normalised in the backward pass
    total = bare.run(native, student, teacher, gradient, 0.3, scale)
    assert torch.tensor(total, dtype=loss.dtype) == loss
    assert torch.equal(gradient, expected)


def test_without_a_gradient_nothing_is_written(bare, native):
    student, teacher = torch.randn(1000), torch.randn(1000)
    total = bare.run(native, student, teacher, None, 0.3, 2.0)
    assert total == pytest.approx((student.double() - 0.3 * teacher.double()).square().sum().item(), rel=1e-6)


def test_scale(native, bare):
    x = torch.randn(1003)
    expected = x * 0.37
    native.scale(bare.TYPES.index(x.dtype), x.data_ptr(), x.numel(), 0.37)
    assert torch.equal(x, expected)


def test_stops_at_the_last_element(bare, native):
    student, teacher, gradient = torch.randn(40), torch.randn(40), torch.zeros(40)
    bare.run(native, student[:37], teacher[:37], gradient, 1.0, 1.0)
    assert gradient[37:].eq(0).all() and gradient[:37].ne(0).all()
