"""What only a CUDA device can show: graphs, streams, several devices, no waiting, no memory beyond one gradient."""

import pytest
import torch
from op_oracle import DTYPES, exact, name
from torch.nn import functional as F

import akd_ext
from akd_ext import AnnealingKDLoss, annealed_mse_loss

pytestmark = pytest.mark.cuda


@pytest.fixture(autouse=True)
def _the_kernel_is_there():
    assert akd_ext.backend("cuda") == "cuda", akd_ext.load_report()


def logits(shape=(64, 1000), dtype=torch.float32):
    student, teacher = (torch.randn(shape, device="cuda").to(dtype) for _ in "st")
    return student.requires_grad_(), teacher


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("shape", [(8, 10), (256, 1000), (512, 32000)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_one_captured_graph_replays_a_whole_schedule(dtype, shape, with_mask):
    """phi lives on the device: the graph is captured once, and every replay has the temperature of its epoch."""
    student, teacher = logits(shape, dtype)
    mask = torch.rand(shape[0], device="cuda") < 0.5 if with_mask else None
    criterion = AnnealingKDLoss(tau_max=10).cuda()

    def step():
        student.grad = None
        loss = criterion(student, teacher, mask)
        (3 * loss).backward()
        return loss.detach()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    gradient = student.grad
    for epoch in range(20):
        criterion.set_epoch(epoch, 20)
        with torch.no_grad():
            student.copy_(torch.randn_like(student))
        graph.replay()
        loss, replayed = captured.clone(), gradient.clone()
        leaf = student.detach().clone().requires_grad_()
        expected = criterion(leaf, teacher, mask)
        (3 * expected).backward()
        assert torch.equal(loss, expected.detach())
        assert torch.equal(replayed, leaf.grad)


@pytest.mark.parametrize("upstream", [1.0, 3.0])
@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_nothing_waits_for_the_device(dtype, with_mask, upstream):
    student, teacher = logits(dtype=dtype)
    mask = torch.rand(64, device="cuda") < 0.5 if with_mask else None
    phis = [0.5, torch.tensor(0.5), torch.tensor(0.5, device="cuda")]
    factor = torch.tensor(upstream, device="cuda")
    for phi in phis:
        annealed_mse_loss(student, teacher, phi, mask=mask).backward(
            factor.to(annealed_mse_loss(student, teacher, phi).dtype)
        )
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for phi in phis:
            for retain_graph in (True, False):
                loss = annealed_mse_loss(student, teacher, phi, mask=mask)
                (factor * loss).backward(retain_graph=retain_graph)
            loss = annealed_mse_loss(student, teacher, phi, mask=mask)
            torch.autograd.grad(loss, student, create_graph=True)
            with torch.no_grad():
                annealed_mse_loss(student, teacher, phi, mask=mask)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_current_stream():
    """Inputs that a slow kernel on the side stream is still making: on any other stream the loss would be of the old ones."""
    student, teacher = logits((512, 32000))
    annealed_mse_loss(student, teacher, 0.5).backward()
    student.grad = None
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)
        with torch.no_grad():
            student.fill_(1.0)
            teacher.fill_(0.0)
        loss = annealed_mse_loss(student, teacher, 0.5)
        (2 * loss).backward()
    side.synchronize()
    assert loss.item() == 1.0
    assert (student.grad == 4 / student.numel()).all()


def test_another_device_than_the_current_one():
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device only")
    student = torch.randn(64, 1000, device="cuda:1", requires_grad=True)
    teacher = torch.randn(64, 1000, device="cuda:1")
    with torch.cuda.device(0):
        loss = annealed_mse_loss(student, teacher, 0.5)
        (3 * loss).backward()
        assert torch.cuda.current_device() == 0
    torch.testing.assert_close(loss, F.mse_loss(student, 0.5 * teacher))
    with pytest.raises(ValueError, match="teacher"):
        annealed_mse_loss(student, teacher.to("cuda:0"), 0.5)
    with pytest.raises(ValueError, match="phi"):
        annealed_mse_loss(student, teacher, torch.tensor(0.5, device="cuda:0"))


@pytest.mark.parametrize("upstream", [1.0, 3.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_peak_memory_is_one_gradient(dtype, upstream):
    student, teacher = logits((1024, 4096), dtype)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss = annealed_mse_loss(student, teacher, 0.5)
    (upstream * loss if upstream != 1 else loss).backward()
    peak = torch.cuda.max_memory_allocated() - before
    assert peak <= student.numel() * student.element_size() + 64 * 1024  # scalars and the blocks' sums
    with torch.no_grad():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        annealed_mse_loss(student, teacher, 0.5)
        assert torch.cuda.max_memory_allocated() - before <= 64 * 1024


def test_same_gradient_as_the_cpu():
    """One arithmetic header for both: the gradient has the same bits, only the order of the sum differs."""
    for student_dtype in DTYPES:
        for teacher_dtype in DTYPES:
            student, teacher = torch.randn(33, 1009).to(student_dtype), torch.randn(33, 1009).to(teacher_dtype)
            mask = torch.rand(33) < 0.7
            results = []
            for device in ("cpu", "cuda"):
                leaf = student.to(device).clone().requires_grad_()
                annealed_mse_loss(leaf, teacher.to(device), 0.3, mask=mask.to(device)).backward()
                results.append(leaf.grad.cpu())
            assert torch.equal(*results)


def test_logits_on_the_cpu_and_the_device_do_not_mix():
    student, teacher = logits()
    for arguments in ((student, teacher.cpu(), 0.5), (student.cpu(), teacher, 0.5)):
        with pytest.raises(ValueError, match="teacher"):
            annealed_mse_loss(*arguments)
    with pytest.raises(ValueError, match="mask"):
        annealed_mse_loss(student, teacher, 0.5, mask=torch.ones(64, dtype=torch.bool))
    with pytest.raises(ValueError, match="phi"):
        annealed_mse_loss(student.cpu(), teacher.cpu(), torch.tensor(0.5, device="cuda"))


@pytest.mark.parametrize("case", ["teacher", "mask", "phi_tensor", "scale factor"])
def test_direct_calls_with_the_wrong_device_raise(case):
    """A host pointer in a kernel would kill the context, and every test after this one."""
    student, teacher = (x.detach() for x in logits())
    arguments = {"student": student, "teacher": teacher, "phi_tensor": None, "phi": 0.5, "mask": None}
    arguments |= {"weight": None, "divisor": None, "reduction": 1}
    arguments["with_gradient"] = True
    if case == "teacher":
        arguments["teacher"] = teacher.cpu()
    elif case == "mask":
        arguments["mask"] = torch.ones(64, dtype=torch.bool)
    if case in ("teacher", "mask"):
        with pytest.raises((RuntimeError, ValueError)):
            torch.ops.akd_ext.annealed_mse(**arguments)
    elif case == "phi_tensor":
        cpu = {**arguments, "student": student.cpu(), "teacher": teacher.cpu(), "phi_tensor": torch.tensor(0.5).cuda()}
        with pytest.raises((RuntimeError, ValueError)):
            torch.ops.akd_ext.annealed_mse(**cpu)
    else:
        with pytest.raises((RuntimeError, ValueError)):
            torch.ops.akd_ext.scale_(torch.ones(5), torch.tensor(2.0, device="cuda"), 1.0)
    torch.cuda.synchronize()


def test_reduce_overhead_compilation():
    """torch.compile with CUDA graphs inside: phi changes, nothing recompiles, nothing stale is replayed."""
    torch._dynamo.reset()
    student, teacher = logits((32, 100))
    phi = torch.tensor(0.0, device="cuda")
    compiled = torch.compile(annealed_mse_loss, fullgraph=True, mode="reduce-overhead")
    for step in range(10):
        phi.fill_((step + 1) / 10)
        torch.compiler.cudagraph_mark_step_begin()
        loss = compiled(student, teacher, phi)
        (gradient,) = torch.autograd.grad(loss, student)
        expected = annealed_mse_loss(student, teacher, phi)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(gradient, torch.autograd.grad(expected, student)[0])


def test_loss_of_many_blocks_is_near_the_exact_one():
    student, teacher = logits((4099, 1031), torch.bfloat16)
    loss = annealed_mse_loss(student, teacher, 0.3)
    reference, _ = exact(student, teacher, 0.3)
    assert abs(loss.item() - reference.item()) <= 2 * 2**-24 * reference.item()
