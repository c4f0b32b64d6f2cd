"""Backward in all the ways that people call it; above all, a gradient once handed out is never written again."""

import copy

import pytest
import torch
from op_oracle import DTYPES, REDUCTIONS, name
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from akd_ext import annealed_mse_loss

# Gradients by the teacher alone are checked here, too.
pytestmark = pytest.mark.filterwarnings("ignore:the second argument, the teacher's logits, requires a gradient")

SCALARS = REDUCTIONS[:3]


def plain_loss(student, teacher, phi):
    return F.mse_loss(student, phi * teacher)


@pytest.fixture
def logits(device):
    student, teacher = torch.randn(2, 6, 5, device=device).unbind()
    return student.clone().requires_grad_(), teacher.clone()


@pytest.fixture
def expected(logits):
    student, teacher = logits
    return torch.autograd.grad(plain_loss(student, teacher, 0.5), student)[0]


@pytest.fixture
def doubles(device):
    pair = torch.randn(2, 4, 3, dtype=torch.float64, device=device).unbind()
    return tuple(x.clone().requires_grad_() for x in pair)


@pytest.mark.parametrize("mask", [None, [1, 0, 1, 1]])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_first_and_second_order_against_finite_differences(doubles, reduction, mask, device):
    mask = None if mask is None else torch.tensor(mask, dtype=torch.bool, device=device)
    student, teacher = doubles

    def both(s, t):
        return annealed_mse_loss(s, t, 0.3, reduction=reduction, mask=mask)

    assert torch.autograd.gradcheck(both, (student, teacher))
    assert torch.autograd.gradcheck(lambda s: both(s, teacher.detach()), (student,))
    assert torch.autograd.gradcheck(lambda t: both(student.detach(), t), (teacher,))
    assert torch.autograd.gradgradcheck(both, (student, teacher))
    assert torch.autograd.gradgradcheck(lambda s: both(s, teacher.detach()), (student,))


@pytest.mark.parametrize("reduction", SCALARS)
def test_direct_op_against_finite_differences(doubles, reduction):
    """The registered autograd of the op itself, which compilers use, with and without the saved gradient."""
    from akd_ext.op import autograd as _op

    for with_gradient in (True, False):

        def op(s, t, flag=with_gradient):
            return torch.ops.akd_ext.annealed_mse(s, t, None, 0.3, None, None, None, _op.REDUCTION[reduction], flag)[0]

        assert torch.autograd.gradcheck(op, doubles)
        assert torch.autograd.gradgradcheck(op, doubles)


@pytest.mark.parametrize("upstream", [1.0, 2.0, 0.125, -3.0, 0.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_upstream_gradient(dtype, upstream, device):
    """By powers of two and the like, so that scaling loses nothing and bits can be compared."""
    student = torch.randn(6, 8, device=device).to(dtype).requires_grad_()
    teacher = torch.randn(6, 8, device=device).to(dtype)
    (unit,) = torch.autograd.grad(annealed_mse_loss(student, teacher, 0.5, reduction="sum"), student)
    for retain_graph in (False, True):
        loss = annealed_mse_loss(student, teacher, 0.5, reduction="sum")
        (scaled,) = torch.autograd.grad(upstream * loss, student, retain_graph=retain_graph)
        torch.testing.assert_close(scaled, upstream * unit)
        if upstream != -3.0:
            assert torch.equal(scaled, upstream * unit)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("upstream", [torch.nan, torch.inf])
def test_upstream_that_is_not_finite(dtype, upstream, device):
    student = torch.tensor([1.0, 2.0, 0.5], dtype=dtype, device=device, requires_grad=True)
    teacher = torch.tensor([0.0, 0.0, 1.0], dtype=dtype, device=device)
    (upstream * annealed_mse_loss(student, teacher, 0.5)).backward()
    gradient = student.grad
    student.grad = None
    (upstream * plain_loss(student, teacher, 0.5)).backward()
    torch.testing.assert_close(gradient, student.grad, equal_nan=True)


def test_backward_twice_with_the_graph_kept(logits, expected):
    student, teacher = logits
    loss = annealed_mse_loss(student, teacher, 0.5)
    first = torch.autograd.grad(loss, student, retain_graph=True)[0]
    second = torch.autograd.grad(3 * loss, student, retain_graph=True)[0]
    third = torch.autograd.grad(loss, student)[0]
    assert torch.equal(first, expected)
    torch.testing.assert_close(second, 3 * expected)
    assert torch.equal(third, expected)


def test_backward_twice_without_the_graph_kept_is_pytorchs_error(logits):
    student, teacher = logits
    loss = annealed_mse_loss(student, teacher, 0.5)
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_a_gradient_handed_out_is_never_written_again(dtype, device):
    """Every way in which the node's own buffer could come back to it: each result keeps the value it was handed out with."""
    student = torch.randn(6, 5, device=device).to(dtype).requires_grad_()
    teacher = torch.randn(6, 5, device=device).to(dtype)
    loss = annealed_mse_loss(student, teacher, 0.5)
    handed_out = []

    def keep(gradient):
        handed_out.append((gradient, gradient.clone()))
        return gradient

    for factor in (1, 1, 7, 0.5):
        keep(torch.autograd.grad(factor * loss, student, retain_graph=True)[0])
    keep(torch.autograd.grad(loss, student, create_graph=True)[0].detach())
    keep(torch.autograd.grad(5 * loss, student)[0])  # the graph dies here, the buffer may be given away
    other = annealed_mse_loss(student, teacher, 0.25)
    keep(torch.autograd.grad(11 * other, student)[0])
    for gradient, value in handed_out:
        assert torch.equal(gradient, value)
    addresses = [gradient.data_ptr() for gradient, _ in handed_out]
    assert len(set(addresses)) == len(addresses), "two gradients share their memory"


def test_user_may_write_into_a_gradient(logits, expected):
    """Gradient clipping and ``grad.zero_()`` write in place: with a kept graph, the next backward must not see it."""
    student, teacher = logits
    loss = annealed_mse_loss(student, teacher, 0.5)
    loss.backward(retain_graph=True)
    student.grad.zero_()
    loss.backward(retain_graph=True)
    assert torch.equal(student.grad, expected)
    student.grad.mul_(100)
    student.grad = None
    loss.backward()
    assert torch.equal(student.grad, expected)


def test_accumulation(logits, expected):
    student, teacher = logits
    for _ in range(3):
        annealed_mse_loss(student, teacher, 0.5).backward()
    torch.testing.assert_close(student.grad, 3 * expected)


def test_one_loss_used_twice(logits, expected):
    student, teacher = logits
    loss = annealed_mse_loss(student, teacher, 0.5)
    (loss + 2 * loss).backward()
    torch.testing.assert_close(student.grad, 3 * expected)


def test_student_used_elsewhere_too(logits, expected):
    """The engine adds the gradients of both uses, possibly in place in one of the buffers."""
    student, teacher = logits
    hidden = student * 1
    hidden.retain_grad()
    (annealed_mse_loss(hidden, teacher, 0.5) + hidden.sum() + annealed_mse_loss(hidden, teacher, 0.5)).backward()
    torch.testing.assert_close(student.grad, 2 * expected + 1)
    torch.testing.assert_close(hidden.grad, 2 * expected + 1)


def test_student_is_both_arguments(device):
    """d/dx |x - phi x|^2 / n = 2 (1 - phi)^2 x / n."""
    x = torch.randn(6, 5, dtype=torch.float64, device=device, requires_grad=True)
    annealed_mse_loss(x, x, 0.25).backward()
    torch.testing.assert_close(x.grad, 2 * 0.75**2 * x.detach() / 30)


def test_hooks_see_and_may_change_the_gradient(logits, expected):
    student, teacher = logits
    seen = []
    student.register_hook(lambda gradient: seen.append(gradient.clone()))
    student.register_hook(lambda gradient: 2 * gradient)
    annealed_mse_loss(student, teacher, 0.5).backward()
    assert torch.equal(seen[0], expected)
    assert torch.equal(student.grad, 2 * expected)


def test_a_hook_that_keeps_the_gradient_keeps_its_value(logits, expected):
    student, teacher = logits
    hidden = student * 1
    kept = []
    hidden.register_hook(lambda gradient: kept.append(gradient))
    loss = annealed_mse_loss(hidden, teacher, 0.5)
    loss.backward(retain_graph=True)
    (7 * loss).backward()
    assert torch.equal(kept[0], expected)
    torch.testing.assert_close(kept[1], 7 * expected)


def test_hook_on_the_loss_may_change_the_upstream(logits, expected):
    student, teacher = logits
    loss = annealed_mse_loss(student, teacher, 0.5)
    loss.register_hook(lambda gradient: gradient * 4)
    loss.backward()
    assert torch.equal(student.grad, 4 * expected)


def test_backward_inside_a_hook(logits, expected):
    """A nested backward, with the other setting of retain_graph, must not decide for the outer one."""
    student, teacher = logits
    inner = annealed_mse_loss(student, teacher, 0.5)
    outer = annealed_mse_loss(student, teacher, 0.5)
    nested = []
    outer.register_hook(lambda _: nested.append(torch.autograd.grad(inner, student)[0]))
    first = torch.autograd.grad(outer, student, retain_graph=True)[0]
    first.mul_(0)  # with a kept graph the buffer must not have been handed out
    inner = annealed_mse_loss(student, teacher, 0.5)
    second = torch.autograd.grad(outer, student)[0]
    assert torch.equal(nested[0], expected)
    assert torch.equal(second, expected)


def test_saved_tensors_hooks(logits, expected):
    """What is saved may go through the user's hands; the answer is right whatever it looks like inside."""
    student, teacher = logits
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.cpu().clone(), lambda x: x.to(student.device)):
        loss = annealed_mse_loss(student, teacher, 0.5)
    (first,) = torch.autograd.grad(loss, student, create_graph=True)
    assert torch.equal(first.detach(), expected)
    loss.backward()
    assert torch.equal(student.grad, expected)


def test_save_on_cpu(logits, expected):
    student, teacher = logits
    with torch.autograd.graph.save_on_cpu():
        loss = annealed_mse_loss(student, teacher, 0.5)
    loss.backward()
    assert torch.equal(student.grad, expected)


@pytest.mark.parametrize("what", ["student", "teacher", "mask", "phi"])
@pytest.mark.parametrize("mode", ["plain", "create_graph"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_argument_changed_in_place_before_backward(dtype, mode, what, device):
    """Right for the values the loss was computed with, or PyTorch's error; never a gradient of the new values."""
    leaf = torch.randn(6, 5, device=device).to(dtype).requires_grad_()
    arguments = {
        "student": leaf * 1,
        "teacher": torch.randn(6, 5, device=device).to(dtype),
        "phi": torch.tensor(0.5, device=device),
        "mask": torch.tensor([1, 0, 1, 1, 0, 1], dtype=torch.bool, device=device),
    }
    (expected,) = torch.autograd.grad(annealed_mse_loss(**arguments), leaf, retain_graph=True)
    loss = annealed_mse_loss(**arguments)
    with torch.no_grad():
        arguments[what].fill_(0)
    try:
        (gradient,) = torch.autograd.grad(loss, leaf, create_graph=mode == "create_graph")
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
    else:
        torch.testing.assert_close(gradient.detach(), expected, rtol=0, atol=0)


def test_create_graph_then_second_order(logits):
    student, teacher = logits
    (gradient,) = torch.autograd.grad(annealed_mse_loss(student, teacher, 0.5), student, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), student)
    torch.testing.assert_close(second, 2 * (2 / 30) * gradient.detach())


def test_hessian_by_reverse_over_reverse(device):
    student = torch.randn(4, dtype=torch.float64, device=device)
    teacher = torch.randn(4, dtype=torch.float64, device=device)
    hessian = torch.autograd.functional.hessian(lambda s: annealed_mse_loss(s, teacher, 0.5), student)
    torch.testing.assert_close(hessian, 0.5 * torch.eye(4, dtype=torch.float64, device=device))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_several_upstream_gradients_at_once(dtype, device):
    student = torch.randn(6, 5, device=device).to(dtype).requires_grad_()
    teacher = torch.randn(6, 5, device=device).to(dtype)
    loss = annealed_mse_loss(student, teacher, 0.5)
    (unit,) = torch.autograd.grad(loss, student, retain_graph=True)
    upstream = torch.tensor([1.0, 2.0, 4.0], device=device, dtype=loss.dtype)
    (batch,) = torch.autograd.grad(loss, student, upstream, is_grads_batched=True)
    torch.testing.assert_close(batch, torch.stack([unit, 2 * unit, 4 * unit]))


def test_forward_mode_is_right_or_refused(logits):
    """A tangent that is dropped without a word would be a wrong answer."""
    from torch.autograd import forward_ad

    student, teacher = logits
    tangent = torch.randn_like(student)
    for primal in (student, student.detach()):
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(primal, tangent)
            try:
                loss = annealed_mse_loss(dual, teacher, 0.5)
            except (NotImplementedError, RuntimeError):
                continue
            got = forward_ad.unpack_dual(loss).tangent
        assert got is not None, "the tangent is gone"
        torch.testing.assert_close(got, (2 / 30 * (student - 0.5 * teacher) * tangent).sum().detach())


def test_no_gradient_wanted(logits):
    student, teacher = logits
    with torch.no_grad():
        assert not annealed_mse_loss(student, teacher, 0.5).requires_grad
    assert not annealed_mse_loss(student.detach(), teacher, 0.5).requires_grad
    with torch.inference_mode():
        loss = annealed_mse_loss(student, teacher, 0.5)
    assert not loss.requires_grad
    torch.testing.assert_close(loss.clone(), plain_loss(student, teacher, 0.5).detach())


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("retain_graph", [False, True])
def test_arguments_from_inference_mode(dtype, retain_graph, device):
    """Teachers run under inference_mode; eager PyTorch takes their logits, so must we."""
    student = torch.randn(6, 5, device=device).to(dtype).requires_grad_()
    with torch.inference_mode():
        teacher = torch.randn(6, 5, device=device).to(dtype)
        mask = torch.arange(6, device=device) != 2
        phi = torch.tensor(0.5, device=device)
    loss = annealed_mse_loss(student, teacher, phi, mask=mask)
    loss.backward(retain_graph=retain_graph)
    other = student.detach().clone().requires_grad_()
    annealed_mse_loss(other, teacher.clone(), 0.5, mask=mask.clone()).backward()
    assert torch.equal(student.grad, other.grad)


@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16], ids=name)
def test_autocast(cast, device):
    """Half logits come out of autocast; the loss is float32 and the weights get their gradient."""
    layer = torch.nn.Linear(7, 5, device=device)
    x, teacher = torch.randn(6, 7, device=device), torch.randn(6, 5, device=device)
    with torch.autocast(device, dtype=cast):
        student = layer(x)
        loss = annealed_mse_loss(student, teacher, 0.5)
    assert student.dtype is cast
    assert loss.dtype is torch.float32
    loss.backward()
    ours = layer.weight.grad.clone()
    layer.zero_grad()
    with torch.autocast(device, dtype=cast):
        wide = layer(x).float()
    F.mse_loss(wide, 0.5 * teacher).backward()
    torch.testing.assert_close(ours, layer.weight.grad, rtol=4 * torch.finfo(cast).eps, atol=4 * torch.finfo(cast).eps)


def test_backward_under_autocast(logits, expected, device):
    student, teacher = logits
    with torch.autocast(device, dtype=torch.bfloat16):
        (gradient,) = torch.autograd.grad(annealed_mse_loss(student, teacher, 0.5), student, create_graph=True)
    torch.testing.assert_close(gradient.detach(), expected)


def test_grad_scaler(device):
    """One step with a scaler is the step without one: its factor is a power of two."""
    start = torch.nn.Linear(7, 5, device=device)
    x, teacher = torch.randn(6, 7, device=device), torch.randn(6, 5, device=device)
    layers = []
    for enabled in (False, True):
        layer = copy.deepcopy(start)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler(device, init_scale=2.0**12, enabled=enabled)
        scaler.scale(annealed_mse_loss(layer(x), teacher, 0.5)).backward()
        scaler.step(optimizer)
        scaler.update()
        layers.append(layer)
    assert not torch.equal(layers[0].weight, start.weight)
    assert torch.equal(layers[0].weight, layers[1].weight)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(logits, expected, reentrant):
    student, teacher = logits
    checkpoint(lambda s: annealed_mse_loss(s * 1, teacher, 0.5), student, use_reentrant=reentrant).backward()
    assert torch.equal(student.grad, expected)


def test_a_dropped_loss_frees_its_buffers(device):
    """No reference cycle: with the garbage collector off, dropping the loss must be enough."""
    import gc
    import weakref

    gc.collect()
    gc.disable()
    try:
        student = torch.randn(6, 5, device=device, requires_grad=True)
        hidden = student * 1
        alive = weakref.ref(hidden)
        loss = annealed_mse_loss(hidden, torch.randn(6, 5, device=device), 0.5)
        del hidden, loss
        assert alive() is None
    finally:
        gc.enable()


def test_anomaly_mode(logits, expected):
    student, teacher = logits
    with torch.autograd.detect_anomaly(check_nan=True):
        annealed_mse_loss(student, teacher, 0.5).backward()
    assert torch.equal(student.grad, expected)


def test_backward_from_another_thread(logits, expected):
    import threading

    student, teacher = logits
    loss = annealed_mse_loss(student, teacher, 0.5)
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()
    assert torch.equal(student.grad, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_direct_op_never_writes_its_second_result(dtype, device):
    """Whoever calls the op itself holds the gradient buffer too: backward must not scale it behind their back."""
    student = torch.randn(6, 5, device=device).to(dtype).requires_grad_()
    teacher = torch.randn(6, 5, device=device).to(dtype)
    loss, buffer = torch.ops.akd_ext.annealed_mse(student, teacher, None, 0.5, None, None, None, 1, True)
    before = buffer.clone()
    (7 * loss).backward()
    assert torch.equal(buffer, before)
    assert student.grad.data_ptr() != buffer.data_ptr()
