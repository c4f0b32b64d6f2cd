"""torch.func: composable transforms see plain PyTorch operations, so all of them work."""

import pytest
import torch
from op_oracle import REDUCTIONS
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from akd_ext import annealed_mse_loss


@pytest.fixture
def logits(device):
    return torch.randn(2, 6, 5, device=device, dtype=torch.float64).unbind()


def test_grad(logits):
    student, teacher = logits
    gradient = torch.func.grad(annealed_mse_loss)(student, teacher, 0.5)
    torch.testing.assert_close(gradient, 2 / 30 * (student - 0.5 * teacher))


@pytest.mark.filterwarnings("error:the second argument, the teacher's logits, requires a gradient")  # it was asked for
def test_grad_of_the_teacher(logits):
    student, teacher = logits
    gradient = torch.func.grad(annealed_mse_loss, argnums=1)(student, teacher, 0.5)
    torch.testing.assert_close(gradient, -0.5 * 2 / 30 * (student - 0.5 * teacher))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_vmap(logits, reduction):
    student, teacher = logits
    mapped = torch.func.vmap(lambda s, t: annealed_mse_loss(s, t, 0.5, reduction=reduction))(student, teacher)
    for row in range(6):
        torch.testing.assert_close(mapped[row], annealed_mse_loss(student[row], teacher[row], 0.5, reduction=reduction))


def test_vmap_with_a_mask(device):
    student, teacher = torch.randn(2, 3, 4, 5, device=device).unbind()
    mask = torch.rand(3, 4, device=device) < 0.5
    mapped = torch.func.vmap(lambda s, t, m: annealed_mse_loss(s, t, 0.5, reduction="sum", mask=m))(
        student, teacher, mask
    )
    torch.testing.assert_close(mapped.sum(), annealed_mse_loss(student, teacher, 0.5, reduction="sum", mask=mask))


def test_vmap_over_phi(logits):
    student, teacher = logits
    phis = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64, device=student.device)
    mapped = torch.func.vmap(lambda p: annealed_mse_loss(student, teacher, p))(phis)
    torch.testing.assert_close(mapped, torch.stack([F.mse_loss(student, p * teacher) for p in phis]))


def test_per_sample_gradients(logits):
    student, teacher = logits
    mapped = torch.func.vmap(torch.func.grad(lambda s, t: annealed_mse_loss(s, t, 0.5)))(student, teacher)
    torch.testing.assert_close(mapped, 2 / 5 * (student - 0.5 * teacher))


def test_jacrev_and_jacfwd(logits):
    student, teacher = logits
    expected = 2 / 30 * (student - 0.5 * teacher)
    for jacobian in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(jacobian(lambda s: annealed_mse_loss(s, teacher, 0.5))(student), expected)


def test_hessian(logits):
    student, teacher = (x[0] for x in logits)
    hessian = torch.func.hessian(lambda s: annealed_mse_loss(s, teacher, 0.5))(student)
    torch.testing.assert_close(hessian, 0.4 * torch.eye(5, dtype=student.dtype, device=student.device))


def test_functional_call_of_a_model(device):
    layer = torch.nn.Linear(4, 5, device=device)
    x, teacher = torch.randn(3, 4, device=device), torch.randn(3, 5, device=device)

    def loss(parameters):
        return annealed_mse_loss(torch.func.functional_call(layer, parameters, (x,)), teacher, 0.5)

    gradients = torch.func.grad(loss)({k: v.detach() for k, v in layer.named_parameters()})
    annealed_mse_loss(layer(x), teacher, 0.5).backward()
    for key, parameter in layer.named_parameters():
        torch.testing.assert_close(gradients[key], parameter.grad)


def test_transform_around_an_ordinary_graph(logits):
    """A transform inside, autograd outside: the student belongs to both."""
    student = logits[0].clone().requires_grad_()
    teacher = logits[1]
    total = torch.func.vmap(lambda s, t: annealed_mse_loss(s, t, 0.5))(student, teacher).sum()
    total.backward()
    torch.testing.assert_close(student.grad, 2 / 5 * (student.detach() - 0.5 * teacher))


def test_a_dispatch_mode_sees_the_op(logits):
    """Counters of FLOPs and memory, fake tensors and tracers are such modes."""
    seen = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    student, teacher = logits
    for gradient in (False, True):
        with Record():
            annealed_mse_loss(student.clone().requires_grad_(gradient), teacher, 0.5)
        assert seen.count(torch.ops.akd_ext.annealed_mse.default) == 1
        seen.clear()


def test_a_subclass_of_tensor(logits):
    class Logits(torch.Tensor):
        pass

    student, teacher = logits
    leaf = student.as_subclass(Logits).requires_grad_()
    loss = annealed_mse_loss(leaf, teacher, 0.5)
    loss.backward()
    assert isinstance(loss, Logits)  # as what PyTorch's own losses return
    torch.testing.assert_close(leaf.grad.as_subclass(torch.Tensor), 2 / 30 * (student - 0.5 * teacher))
