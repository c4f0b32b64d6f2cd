"""``torch.ops.akd_ext`` called past the Python function: a bad argument is an exception, never a crash or a made-up number."""

from pathlib import Path

import pytest
import torch

import akd_ext

GOOD = {
    "student": torch.randn(4, 3),
    "teacher": torch.randn(4, 3),
    "phi_tensor": None,
    "phi": 0.5,
    "mask": None,
    "weight": None,
    "divisor": None,
    "reduction": 1,
    "with_gradient": True,
}
BAD = {
    "student of integers": {"student": torch.ones(4, 3, dtype=torch.int64)},
    "student complex": {"student": torch.ones(4, 3, dtype=torch.complex64)},
    "student of booleans": {"student": torch.ones(4, 3, dtype=torch.bool)},
    "no dimension": {"student": torch.ones(()), "teacher": torch.ones(())},
    "student shorter": {"student": torch.randn(3, 3)},
    "student on meta": {"student": torch.randn(4, 3, device="meta")},
    "teacher of integers": {"teacher": torch.ones(4, 3, dtype=torch.int32)},
    "teacher shorter": {"teacher": torch.randn(4, 2)},
    "teacher with fewer rows": {"teacher": torch.randn(1, 3)},
    "teacher with another rank": {"teacher": torch.randn(3)},
    "teacher on meta": {"teacher": torch.randn(4, 3, device="meta")},
    "teacher empty": {"teacher": torch.randn(0)},
    "phi with a dimension": {"phi_tensor": torch.ones(1)},
    "phi empty": {"phi_tensor": torch.ones(0)},
    "phi an integer": {"phi_tensor": torch.tensor(1)},
    "phi on meta": {"phi_tensor": torch.tensor(0.5, device="meta")},
    "mask shorter": {"mask": torch.ones(3, dtype=torch.bool)},
    "mask empty": {"mask": torch.ones(0, dtype=torch.bool)},
    "mask of bytes": {"mask": torch.ones(4, dtype=torch.uint8)},
    "mask too deep": {"mask": torch.ones(4, 3, dtype=torch.bool)},
    "mask on meta": {"mask": torch.ones(4, dtype=torch.bool, device="meta")},
    "reduction below": {"reduction": -1},
    "reduction above": {"reduction": 3},
    "reduction huge": {"reduction": 2**62},
    "student missing": {"student": None},
    "phi text": {"phi": "half"},
}
native = pytest.mark.skipif(
    akd_ext.backend("cpu") != "cpu", reason="these checks are the CPU kernel's own; it is not built"
)


@native
@pytest.mark.parametrize("case", BAD)
def test_bad_argument(case):
    with pytest.raises((RuntimeError, TypeError, ValueError)):
        torch.ops.akd_ext.annealed_mse(**{**GOOD, **BAD[case]})


@native
@pytest.mark.parametrize("teacher", [torch.eye(4, 3).to_sparse(), torch.eye(4, 3).to_sparse_csr()], ids=["coo", "csr"])
def test_sparse_is_right_or_refused(teacher):
    try:
        loss, _ = torch.ops.akd_ext.annealed_mse(**{**GOOD, "teacher": teacher})
    except (RuntimeError, TypeError, ValueError):
        return
    torch.testing.assert_close(loss, torch.nn.functional.mse_loss(GOOD["student"], 0.5 * teacher.to_dense()))


BAD_FACTORS = {
    "a dimension": torch.ones(1),
    "empty": torch.ones(0),
    "an integer": torch.tensor(2),
    "complex": torch.tensor(2j),
    "meta": torch.tensor(2.0, device="meta"),
}


@native
@pytest.mark.parametrize("case", BAD_FACTORS)
def test_scale_with_a_bad_factor(case):
    tensor = torch.ones(4, 3)
    with pytest.raises((RuntimeError, TypeError, ValueError)):
        torch.ops.akd_ext.scale_(tensor, BAD_FACTORS[case], 1.0)
    assert torch.equal(tensor, torch.ones(4, 3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_scale_multiplies_by_both_factors(dtype):
    """A power of two each, so that nothing is rounded; when they cancel, nothing is written."""
    tensor = torch.randn(5, 7).to(dtype)
    for factor, constant in ((4.0, 0.25), (1.0, 1.0), (4.0, 0.5), (1.0, 8.0), (0.0, 1.0)):
        got = tensor.clone()
        torch.ops.akd_ext.scale_(got, torch.tensor(factor), constant)
        assert torch.equal(got, tensor * (factor * constant))


BAD_TENSORS = {
    "integers": torch.ones(4, 3, dtype=torch.int32),
    "transposed": torch.ones(3, 4).t(),
    "expanded": torch.ones(1).expand(4),
}


@native
@pytest.mark.parametrize("case", BAD_TENSORS)
def test_scale_of_a_bad_tensor(case):
    with pytest.raises((RuntimeError, TypeError, ValueError)):
        torch.ops.akd_ext.scale_(BAD_TENSORS[case], torch.tensor(2.0), 1.0)


@pytest.mark.parametrize("reduction", [0, 1, 2])
def test_phi_tensor_wins_over_phi(reduction):
    by_tensor = torch.ops.akd_ext.annealed_mse(**{**GOOD, "phi_tensor": torch.tensor(0.25), "reduction": reduction})
    by_number = torch.ops.akd_ext.annealed_mse(**{**GOOD, "phi": 0.25, "reduction": reduction})
    assert torch.equal(by_tensor[0], by_number[0])
    assert torch.equal(by_tensor[1], by_number[1])


def test_meta_tensors_give_shapes():
    for student_dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        student = torch.empty(2, 3, 5, device="meta", dtype=student_dtype)
        loss, gradient = torch.ops.akd_ext.annealed_mse(student, student, None, 0.5, None, None, None, 1, True)
        real = torch.zeros(2, 3, 5, dtype=student_dtype)
        real_loss, real_gradient = torch.ops.akd_ext.annealed_mse(real, real, None, 0.5, None, None, None, 1, True)
        for fake, true in ((loss, real_loss), (gradient, real_gradient)):
            assert (fake.shape, fake.dtype, fake.stride()) == (true.shape, true.dtype, true.stride())


@native
@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="this system has no transparent huge pages"
)
def test_huge_pages_are_asked_for_a_large_gradient():
    """By the flag ``hg`` of the mapping that holds its middle: 33 MiB, which glibc maps anew."""
    student = torch.zeros(33, 2**18)
    _, gradient = torch.ops.akd_ext.annealed_mse(student, student, None, 0.5, None, None, None, 1, True)
    middle, inside = gradient.data_ptr() + 2 * gradient.numel(), False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *flags = line.split()
        if "-" in first and not first.endswith(":"):
            begin, end = (int(address, 16) for address in first.split("-"))
            inside = begin <= middle < end
        elif inside and first == "VmFlags:":
            assert "hg" in flags
            return
    pytest.fail("the gradient is in no mapping")
