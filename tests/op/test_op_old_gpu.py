"""A GPU for which the CUDA kernel has no code runs plain PyTorch. The choice alone is tested: no such GPU is needed."""

from __future__ import annotations

import json
import warnings

import pytest
import torch

import akd_ext
from akd_ext.op import autograd as _op
from akd_ext.op import capability as _capability
from akd_ext.op import library as _library


@pytest.fixture
def gpu(monkeypatch):
    """Sets the capability of every GPU, beside a kernel built from sm_80 on."""
    monkeypatch.setattr(_capability, "OLDEST", 80)
    monkeypatch.setattr(_capability, "_too_old", {})
    monkeypatch.setattr(_library, "backend", lambda device_type: device_type)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    return lambda *capability: monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)


class OnCuda:
    """What is asked of a CUDA tensor."""

    is_cuda, device = True, torch.device("cuda:1")


def test_older_is_one_warning_and_no_kernel(gpu):
    gpu(7, 5)
    with pytest.warns(
        UserWarning, match=r"cuda:1, which has compute capability 7.5; .* built for 8.0 and newer"
    ) as said:
        assert [_capability.has_no_kernel(OnCuda) for _ in range(3)] == [True] * 3
    assert len(said) == 1


@pytest.mark.parametrize("capability", [(8, 0), (8, 7), (9, 0), (12, 0)], ids=str)
def test_new_enough(gpu, capability):
    gpu(*capability)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not _capability.has_no_kernel(OnCuda)


def test_without_a_loaded_kernel_the_dispatcher_decides(gpu, monkeypatch):
    gpu(7, 5)
    monkeypatch.setattr(_library, "backend", lambda device_type: "reference")
    assert not _capability.has_no_kernel(OnCuda)


@pytest.mark.skipif(torch.version.cuda is None, reason="this torch has no CUDA: its autograd ends the process")
def test_a_fake_tensor_needs_no_gpu():
    assert not torch.cuda.is_initialized()
    with torch._subclasses.FakeTensorMode(), warnings.catch_warnings():
        warnings.simplefilter("error")
        student = torch.empty(4, 3, device="cuda", requires_grad=True)
        loss = akd_ext.annealed_mse_loss(student, torch.empty(4, 3, device="cuda"), 0.5)
    assert loss.device.type == "cuda" and not _capability._too_old


def test_a_cpu_tensor_asks_no_gpu(gpu):
    gpu()  # too few numbers: asking would raise
    assert not _capability.has_no_kernel(torch.ones(1))


@pytest.mark.parametrize(
    ("archs", "oldest"),
    [(["sm_80", "sm_120", "compute_120"], 80), (["sm_90a"], 90), (["sm_100", "compute_75"], 75), ([], 0)],
)
def test_oldest_of_the_build(tmp_path, archs, oldest):
    build = tmp_path / "build.json"
    assert _capability.oldest_arch(build) == 0
    build.write_text(json.dumps({"cuda": {"archs": archs}}))
    assert _capability.oldest_arch(build) == oldest


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_forward_and_backward_touch_no_kernel(monkeypatch, dtype):
    def never(*arguments):
        raise AssertionError("the kernel was called")

    student, teacher = torch.randn(4, 3, dtype=dtype), torch.randn(4, 3, dtype=dtype)
    mask = torch.tensor([True, False, True, True])

    def run():
        leaf = student.clone().requires_grad_()
        loss = akd_ext.annealed_mse_loss(leaf, teacher, 0.5, mask=mask)
        (3 * loss).backward()
        return loss.detach(), leaf.grad, akd_ext.annealed_mse_loss(student, teacher, 0.5, mask=mask)

    wanted = run()
    monkeypatch.setattr(_capability, "has_no_kernel", lambda tensor: True)
    for name in ("annealed_mse", "_annealed_mse_of_tensors", "scale_"):
        monkeypatch.setattr(_op, name, never)
    torch.testing.assert_close(run(), wanted)


@pytest.mark.integration
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_torch_compile_asks_once_while_it_compiles_and_leaves_the_kernel_out(gpu, monkeypatch, reduction):
    gpu(7, 5)
    asked = []
    monkeypatch.setattr(_capability, "_ask", lambda index: asked.append(index) or True)
    # The tensors lie on the CPU here: only the question is a GPU's.
    monkeypatch.setattr(_capability, "has_no_kernel", lambda tensor: _capability._is_too_old(1))
    called = []

    def look(graph, _):
        called.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    student, teacher = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    loss = torch.compile(
        lambda phi: akd_ext.annealed_mse_loss(student, teacher, phi, reduction=reduction), backend=look, fullgraph=True
    )
    for phi in (torch.tensor(0.25), torch.tensor(0.5)):
        expected = akd_ext.reference.annealed_mse(student, teacher, phi, reduction=reduction)
        torch.testing.assert_close(loss(phi), expected)
    torch._dynamo.reset()
    assert not [name for name in called if "akd_ext" in name]
    assert asked == ([1] if reduction == "mean" else [])
