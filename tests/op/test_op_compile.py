"""The op under compilers: one graph, one compilation for a whole schedule, the same gradients."""

import pytest
import torch
from op_oracle import DTYPES, REDUCTIONS, name
from torch._dynamo.testing import CompileCounterWithBackend

from akd_ext import AnnealingKDLoss, annealed_mse_loss
from akd_ext.op import autograd as _op

SCALARS = REDUCTIONS[:3]
PHIS = [k / 10 for k in range(1, 11)]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def gradient_of(function, student, *rest):
    leaf = student.detach().clone().requires_grad_()
    loss = function(leaf, *rest)
    loss.backward()
    return loss.detach(), leaf.grad


def same(one, other):
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


OPCHECK = {
    "plain": {},
    "no gradient": {"with_gradient": False},
    "student wants its gradient": {"student_grad": True},
    "both want theirs": {"student_grad": True, "teacher_grad": True},
    "phi on the CPU": {"phi": "cpu", "student_grad": True},
    "phi on the device": {"phi": "device", "student_grad": True},
    "mask": {"mask": True, "student_grad": True},
    "mask, both": {"mask": True, "student_grad": True, "teacher_grad": True},
    "weight": {"weight": True, "student_grad": True},
    "weight, mask, both": {"weight": True, "mask": True, "student_grad": True, "teacher_grad": True},
    "divisor on the CPU": {"divisor": "cpu", "student_grad": True},
    "divisor on the device": {"divisor": "device", "student_grad": True},
    "float16, weight, divisor": {"dtype": torch.float16, "weight": True, "divisor": "cpu", "student_grad": True},
    "rows with gaps": {"gaps": True, "student_grad": True},
    "strided": {"strided": True, "student_grad": True},
    "bfloat16": {"dtype": torch.bfloat16, "student_grad": True},
    "float16": {"dtype": torch.float16, "student_grad": True},
    "float16, mask": {"dtype": torch.float16, "mask": True, "student_grad": True},
    "float64": {"dtype": torch.float64, "student_grad": True},
    "mixed": {"dtype": torch.bfloat16, "teacher_dtype": torch.float32, "student_grad": True},
    "one dimension": {"shape": (7,), "student_grad": True},
    "three dimensions": {"shape": (2, 3, 5), "mask": True, "student_grad": True},
    # The sum, because opcheck does not take two NaN for the same.
    "empty": {"shape": (0, 5), "reduction": "sum", "student_grad": True},
    "one element": {"shape": (1, 1), "student_grad": True},
}


@pytest.mark.integration
@pytest.mark.parametrize("case", OPCHECK)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_opcheck(case, device):
    """Every utility: schema, fake kernel, autograd registration, ahead-of-time dispatch with fixed and dynamic shapes."""
    _opcheck(device, **OPCHECK[case])


def _opcheck(
    device,
    shape=(4, 5),
    dtype=torch.float32,
    teacher_dtype=None,
    phi=None,
    mask=False,
    weight=False,
    divisor=None,
    strided=False,
    gaps=False,
    student_grad=False,
    teacher_grad=False,
    with_gradient=True,
    reduction="mean",
):
    student = torch.randn(shape, device=device).to(dtype)
    teacher = torch.randn(shape, device=device).to(teacher_dtype or dtype)
    if strided:
        student, teacher = student.t().contiguous().t(), teacher.t().contiguous().t()
    if gaps:
        student, teacher = (
            torch.cat((student, student), -1)[..., : shape[-1]],
            torch.cat((teacher, teacher))[: shape[0]],
        )
    phi_tensor = {None: None, "cpu": torch.tensor(0.5), "device": torch.tensor(0.5, device=device)}[phi]
    rows = torch.arange(torch.Size(shape[:-1]).numel(), device=device).reshape(shape[:-1])
    torch.library.opcheck(
        _op.annealed_mse,
        (
            student.requires_grad_(student_grad),
            teacher.requires_grad_(teacher_grad),
            phi_tensor,
            0.5,
            rows % 3 != 1 if mask else None,
            0.5 + rows.to(torch.float32) if weight else None,
            torch.tensor(7.0, device=device if divisor == "device" else "cpu") if divisor else None,
            _op.REDUCTION[reduction],
            with_gradient,
        ),
    )


@pytest.mark.parametrize("reduction", SCALARS)
def test_opcheck_reductions(reduction, device):
    _opcheck(device, student_grad=True, mask=True, reduction=reduction)


@pytest.mark.parametrize("factor", [1.0, 3.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_opcheck_scale(dtype, factor, device):
    torch.library.opcheck(
        _op.scale_,
        (torch.randn(4, 5, device=device).to(dtype), torch.tensor(factor, device=device), 0.5),
    )


@pytest.mark.parametrize("place", ["cpu", "device"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_one_compilation_for_every_phi(dtype, place, device):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(annealed_mse_loss, fullgraph=True, backend=counter)
    student, teacher = (x.to(dtype) for x in torch.randn(2, 8, 5, device=device).unbind())
    phi = torch.tensor(0.0, device="cpu" if place == "cpu" else device)
    for value in PHIS:
        phi.fill_(value)
        same(gradient_of(compiled, student, teacher, phi), gradient_of(annealed_mse_loss, student, teacher, phi))
        fresh = torch.tensor(value, device=phi.device)
        same(gradient_of(compiled, student, teacher, fresh), gradient_of(annealed_mse_loss, student, teacher, value))
    assert counter.frame_count == 1


def test_one_compilation_for_a_whole_schedule_of_the_module(device):
    """The temperature is a Python integer on the module: the compiled step must not depend on it."""
    counter = CompileCounterWithBackend("aot_eager")
    criterion = AnnealingKDLoss(tau_max=10).to(device)
    compiled = torch.compile(criterion, fullgraph=True, backend=counter)
    student, teacher = torch.randn(2, 8, 5, device=device).unbind()
    for epoch in range(20):
        criterion.set_epoch(epoch, 20)
        same(gradient_of(compiled, student, teacher), gradient_of(criterion, student, teacher))
    assert counter.frame_count == 1


def test_one_compilation_of_a_training_step(device):
    """Model, loss and a mask in one compiled function, as in a real loop; the loss is scaled, so upstream is not 1."""
    counter = CompileCounterWithBackend("aot_eager")
    layer = torch.nn.Linear(4, 5, device=device)
    criterion = AnnealingKDLoss(tau_max=5).to(device)

    def step(x, teacher, mask):
        return 0.25 * criterion(layer(x), teacher, mask) + layer.weight.square().sum()

    compiled = torch.compile(step, fullgraph=True, backend=counter)
    x, teacher = torch.randn(8, 4, device=device), torch.randn(8, 5, device=device)
    for epoch in range(5):
        criterion.set_epoch(epoch, 5)
        mask = torch.arange(8, device=device) % (epoch + 2) == 0
        compiled(x, teacher, mask).backward()
        got = layer.weight.grad.clone()
        layer.zero_grad()
        step(x, teacher, mask).backward()
        torch.testing.assert_close(got, layer.weight.grad)
        layer.zero_grad()
    assert counter.frame_count == 1


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reductions_masks_and_second_argument(reduction, device):
    compiled = torch.compile(annealed_mse_loss, fullgraph=True, backend="aot_eager")
    student, teacher = torch.randn(2, 8, 5, device=device).unbind()
    mask = torch.arange(8, device=device) % 3 != 0
    for arguments in ({}, {"mask": mask}):
        leaves = [x.clone().requires_grad_() for x in (student, teacher)]
        others = [x.clone().requires_grad_() for x in (student, teacher)]
        (3 * compiled(*leaves, 0.5, reduction=reduction, **arguments)).sum().backward()
        (3 * annealed_mse_loss(*others, 0.5, reduction=reduction, **arguments)).sum().backward()
        for leaf, other in zip(leaves, others, strict=True):
            torch.testing.assert_close(leaf.grad, other.grad)


@pytest.mark.parametrize("upstream", [1.0, -2.0, 1000.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_upstream_gradient_into_a_compiled_loss(dtype, upstream, device):
    """The factor is applied outside the compiled region, and the graph is kept: twice the same answer."""
    compiled = torch.compile(annealed_mse_loss, fullgraph=True, backend="aot_eager")
    student, teacher = (x.to(dtype) for x in torch.randn(2, 8, 5, device=device).unbind())
    leaf, other = student.clone().requires_grad_(), student.clone().requires_grad_()
    (expected,) = torch.autograd.grad(upstream * annealed_mse_loss(other, teacher, 0.5), other)
    loss = compiled(leaf, teacher, 0.5)
    for retain_graph in (True, False):
        (got,) = torch.autograd.grad(upstream * loss, leaf, retain_graph=retain_graph)
        torch.testing.assert_close(got, expected)


def test_dynamic_batch_size(device):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(annealed_mse_loss, fullgraph=True, dynamic=True, backend=counter)
    phi = torch.tensor(0.5, device=device)
    for batch in (3, 4, 8, 129):
        student, teacher = torch.randn(batch, 5, device=device), torch.randn(batch, 5, device=device)
        same(gradient_of(compiled, student, teacher, phi), gradient_of(annealed_mse_loss, student, teacher, phi))
    assert counter.frame_count == 1


def test_no_grad_and_inference_mode(device):
    compiled = torch.compile(annealed_mse_loss, fullgraph=True, backend="aot_eager")
    student, teacher = torch.randn(2, 8, 5, device=device).unbind()
    expected = annealed_mse_loss(student, teacher, 0.5)
    with torch.no_grad():
        torch.testing.assert_close(compiled(student.clone().requires_grad_(), teacher, 0.5), expected)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(student, teacher, 0.5), expected)


def test_under_autocast(device):
    layer = torch.nn.Linear(4, 5, device=device)
    x, teacher = torch.randn(8, 4, device=device), torch.randn(8, 5, device=device)

    def step(x):
        with torch.autocast(device, dtype=torch.bfloat16):
            return annealed_mse_loss(layer(x), teacher, 0.5)

    expected = torch.autograd.grad(step(x), layer.weight)
    got = torch.autograd.grad(torch.compile(step, fullgraph=True, backend="aot_eager")(x), layer.weight)
    torch.testing.assert_close(got, expected)


def test_torch_func_inside(device):
    student, teacher = torch.randn(2, 8, 5, device=device).unbind()

    def per_sample(s, t):
        return torch.func.vmap(torch.func.grad(lambda a, b: annealed_mse_loss(a, b, 0.5)))(s, t)

    got = torch.compile(per_sample, fullgraph=True, backend="aot_eager")(student, teacher)
    torch.testing.assert_close(got, per_sample(student, teacher))


@pytest.mark.integration
def test_inductor(device):
    """The real compiler, once: forward and backward, an upstream gradient, phi from a tensor, one compilation."""
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(lambda s, t, p: 3 * annealed_mse_loss(s, t, p), fullgraph=True, backend=counter)
    student, teacher = torch.randn(2, 8, 5, device=device).unbind()
    for value in PHIS[::4]:
        phi = torch.tensor(value, device=device)
        same(
            gradient_of(compiled, student, teacher, phi),
            gradient_of(lambda *a: 3 * annealed_mse_loss(*a), student, teacher, phi),
        )
    assert counter.frame_count == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=name)
def test_compiled_autograd(dtype, device):
    """A compiled backward of an eager forward: one graph, and nobody writes into buffers behind the compiler's back."""
    loss = lambda *a: 3 * annealed_mse_loss(*a)  # noqa: E731
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager", fullgraph=True)):
        for _ in range(3):  # other numbers every time: none may be baked into the graph
            student, teacher = torch.randn(2, 8, 5, device=device, dtype=dtype).unbind()
            with torch._dynamo.compiled_autograd._disable():
                expected = gradient_of(loss, student, teacher, 0.5)
            same(gradient_of(loss, student, teacher, 0.5), expected)


class Distiller(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.student = torch.nn.Linear(4, 5)
        self.criterion = AnnealingKDLoss(tau_max=4)

    def forward(self, x, teacher):
        return self.criterion(self.student(x), teacher)


def test_export(device):
    """A module that holds the loss exports, with a free batch size, and the exported program gives the same loss."""
    module = Distiller().to(device)
    x, teacher = torch.randn(3, 4, device=device), torch.randn(3, 5, device=device)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(module, (x, teacher), dynamic_shapes=({0: batch}, {0: batch}))
    x, teacher = torch.randn(7, 4, device=device), torch.randn(7, 5, device=device)
    torch.testing.assert_close(program.module()(x, teacher), module(x, teacher))


def test_exported_program_round_trip(tmp_path):
    module = Distiller()
    arguments = (torch.randn(3, 4), torch.randn(3, 5))
    torch.export.save(torch.export.export(module, arguments), tmp_path / "distiller.pt2")
    loaded = torch.export.load(tmp_path / "distiller.pt2").module()
    torch.testing.assert_close(loaded(*arguments), module(*arguments))


def test_jit_script_refuses_clearly():
    """TorchScript knows neither keyword-only defaults nor ours; what matters is an error, not a wrong program."""
    for what in (AnnealingKDLoss(tau_max=4), annealed_mse_loss):
        with pytest.raises(Exception, match=r"(?i)script|compiled|annotation|torch.compile"):
            torch.jit.script(what)


@pytest.mark.filterwarnings("ignore")
def test_jit_trace_is_right_or_refused(device):
    """A traced loss must follow phi if it is an input, or tracing must fail: a phi frozen in silence would be wrong."""
    student, teacher = torch.randn(2, 8, 5, device=device).unbind()
    phi = torch.tensor(0.5, device=device)
    try:
        traced = torch.jit.trace(annealed_mse_loss, (student, teacher, phi))
    except (RuntimeError, TypeError, ValueError):
        return
    phi = torch.tensor(0.25, device=device)
    torch.testing.assert_close(traced(student, teacher, phi), annealed_mse_loss(student, teacher, phi))
