"""The same bits: every run, every number of threads, every instruction set, every alignment."""

import hashlib
import platform
from pathlib import Path

import pytest
import torch
from op_oracle import DTYPES, REDUCTIONS, name
from places import SUPPORT
from subject_process import run

import akd_ext
from akd_ext import annealed_mse_loss

native = pytest.mark.skipif(akd_ext.backend("cpu") != "cpu", reason="plain PyTorch's sum depends on the threads")
SHAPES = [(1,), (33,), (128, 10), (7, 4999), (5, 3, 16411)]


def digest(device="cpu"):
    """A hash of every loss and gradient over dtypes, reductions, shapes and masks."""
    generator = torch.Generator().manual_seed(1)
    result = hashlib.sha256()
    for shape in SHAPES:
        student64, teacher64 = (torch.randn(shape, dtype=torch.float64, generator=generator) for _ in "st")
        mask = torch.rand(shape[:-1], generator=generator) < 0.7
        for dtype in DTYPES:
            for teacher_dtype in (dtype, torch.float32):
                for use_mask in (False, True):
                    student = student64.to(device, dtype).clone().requires_grad_()
                    teacher = teacher64.to(device, teacher_dtype)
                    loss = annealed_mse_loss(student, teacher, 0.3, mask=mask.to(device) if use_mask else None)
                    (3 * loss).backward()
                    for tensor in (loss.detach(), student.grad):
                        result.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return result.hexdigest()


@pytest.mark.parametrize("reduction", REDUCTIONS[:3])
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_a_hundred_runs(dtype, reduction, device):
    if akd_ext.backend(device) == "reference":
        pytest.skip(f"no kernel for {device}: plain PyTorch promises nothing here")
    student = torch.randn(129, 1021, device=device).to(dtype).requires_grad_()
    teacher = torch.randn(129, 1021, device=device).to(dtype)
    mask = torch.rand(129, device=device) < 0.8
    first = None
    for _ in range(100):
        loss = annealed_mse_loss(student, teacher, 0.3, reduction=reduction, mask=mask)
        (gradient,) = torch.autograd.grad(loss, student)
        first = first or (loss.detach(), gradient)
        assert torch.equal(loss.detach(), first[0])
        assert torch.equal(gradient, first[1])


@native
def test_threads():
    before = torch.get_num_threads()
    try:
        digests = set()
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            digests.add(digest())
    finally:
        torch.set_num_threads(before)
    assert len(digests) == 1


@native
def test_alignment():
    """The loss of a view at any offset has the bits of the aligned one."""
    for dtype in DTYPES:
        memory = torch.randn(5000).to(dtype)
        values, teacher = torch.randn(4001).to(dtype), torch.randn(4001).to(dtype)
        losses = set()
        for offset in range(0, 40):
            view = memory[offset : offset + 4001]
            view.copy_(values)
            losses.add(annealed_mse_loss(view, teacher, 0.3).item())
        assert len(losses) == 1


@pytest.mark.integration
@native
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="one instruction set on this architecture")
def test_instruction_sets():
    """AKD_EXT_CPU chooses one; a machine that lacks it says so, and at least the portable one always runs."""
    code = f"import sys; sys.path[:0] = {[str(Path(__file__).parent), str(SUPPORT)]!r}; from test_op_determinism import digest; print(digest())"
    digests = {}
    for isa in ("portable", "avx2", "avx512"):
        try:
            digests[isa] = run(["-c", code], AKD_EXT_CPU=isa, OMP_NUM_THREADS="1").strip()
        except AssertionError as error:
            assert "AKD_EXT_CPU" in str(error), error
    assert "portable" in digests
    assert len(set(digests.values())) == 1, digests


@pytest.mark.integration
@native
def test_an_unknown_instruction_set_is_refused():
    code = "import torch, akd_ext; akd_ext.annealed_mse_loss(torch.ones(1), torch.ones(1), 0.5)"
    with pytest.raises(AssertionError, match="AKD_EXT_CPU is sse9"):
        run(["-c", code], AKD_EXT_CPU="sse9")
