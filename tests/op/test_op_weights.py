"""``weight`` and ``divisor``: a mask is a weight of 0 and 1, a divisor takes the place of the count."""

import pytest
import torch
from op_oracle import DTYPES, REDUCTIONS, name

from akd_ext import AnnealingKDLoss, annealed_mse_loss, reference

SHAPE = (6, 7, 11)


def inputs(device, dtype=torch.float32, teacher_dtype=None):
    student, teacher = torch.randn(2, *SHAPE, device=device).unbind()
    weight = torch.rand(SHAPE[:-1], device=device) + 0.1
    mask = torch.rand(SHAPE[:-1], device=device) < 0.7
    return student.to(dtype), teacher.to(teacher_dtype or dtype), weight, mask


def plain(student, teacher, phi, reduction, mask, weight, divisor):
    """What a user would write, in float64: every squared difference by itself, then the sums."""
    weight = torch.ones(student.shape[:-1], device=student.device) if weight is None else weight
    weight = (weight if mask is None else weight * mask).double()
    squares = (student.double() - phi * teacher.double()).square() * weight.unsqueeze(-1)
    if divisor is None:
        rows = weight.sum()
        divisor = {"mean": rows * student.shape[-1], "batchmean": rows}.get(reduction, 1)
    return (squares if reduction == "none" else squares.sum()) / divisor


@pytest.mark.parametrize("case", ["weight", "weight, mask", "divisor", "weight, mask, divisor"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_the_loss_and_its_gradients(dtype, reduction, case, device):
    student, teacher, weight, mask = inputs(device, dtype)
    options = {
        "weight": weight if "weight" in case else None,
        "mask": mask if "mask" in case else None,
        "divisor": 123.0 if "divisor" in case else None,
    }
    leaves = [x.clone().requires_grad_() for x in (student, teacher)]
    exact = [x.double().clone().requires_grad_() for x in (student, teacher)]
    loss = annealed_mse_loss(*leaves, 0.7, reduction=reduction, **options)
    expected = plain(*exact, 0.7, reduction, **options)
    # A single difference may cancel to nearly nothing, a sum of squares cannot.
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6 if reduction == "none" else 1e-9)
    alone = student.clone().requires_grad_()
    annealed_mse_loss(alone, teacher, 0.7, reduction=reduction, **options).sum().backward()
    loss.sum().backward()
    expected.sum().backward()
    tolerance = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 1e-7 if dtype is not torch.float64 else 1e-15}
    for got, want in (*((a.grad, b.grad) for a, b in zip(leaves, exact, strict=True)), (alone.grad, exact[0].grad)):
        torch.testing.assert_close(got.double(), want, **tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_mask_is_a_weight_of_one_and_zero(reduction, dtype, device):
    """Also where the rows that are left out hold NaN; to the last bit."""
    student, teacher, _, mask = inputs(device, dtype)
    student[~mask] = torch.nan
    losses, gradients = [], []
    for options in ({"mask": mask}, {"weight": mask.to(torch.float32)}):
        leaf = student.clone().requires_grad_()
        losses.append(annealed_mse_loss(leaf, teacher, 0.7, reduction=reduction, **options))
        losses[-1].sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*losses)
    assert torch.equal(*gradients)
    assert not gradients[1][~mask].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=name)
def test_ones_are_no_weight_to_the_last_bit(dtype, device):
    student, teacher = (x.to(dtype) for x in torch.randn(2, 40, 1000, device=device))
    leaves = [student.clone().requires_grad_() for _ in range(2)]
    losses = [
        annealed_mse_loss(leaf, teacher, 0.3, weight=weight)
        for leaf, weight in zip(leaves, (None, torch.ones(40, device=device)), strict=True)
    ]
    assert torch.equal(*losses)
    assert torch.equal(*(torch.autograd.grad(loss, leaf)[0] for loss, leaf in zip(losses, leaves, strict=True)))


@pytest.mark.parametrize("weight_dtype", DTYPES, ids=name)
def test_the_dtype_of_weights_says_nothing_about_the_loss(weight_dtype, device):
    student, teacher, weight, mask = inputs(device)
    weight = weight.to(weight_dtype)
    loss = annealed_mse_loss(student, teacher, 0.7, weight=weight)
    assert loss.dtype is torch.float32
    torch.testing.assert_close(loss.double(), plain(student, teacher, 0.7, "mean", None, weight, None))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=name)
def test_gradient_accumulation(dtype, device):
    """Micro-batches with unequal numbers of tokens give the gradient of the whole, with the whole's count as divisor."""
    student, teacher, weight, mask = inputs(device, dtype)
    whole, parts = student.clone().requires_grad_(), student.clone().requires_grad_()
    annealed_mse_loss(whole, teacher, 0.5, mask=mask).backward()
    count = mask.sum() * SHAPE[-1]  # an integer, on the device
    for i in range(0, SHAPE[0], 2):
        annealed_mse_loss(parts[i : i + 2], teacher[i : i + 2], 0.5, mask=mask[i : i + 2], divisor=count).backward()
    torch.testing.assert_close(parts.grad, whole.grad)


@pytest.mark.parametrize("make", [float, int, torch.tensor, lambda x: torch.tensor(x, dtype=torch.float64)])
def test_divisors_that_are_the_same_number(make, device):
    student, teacher, weight, _ = inputs(device)
    expected = annealed_mse_loss(student, teacher, 0.5, reduction="sum", weight=weight) / 50
    for reduction in ("sum", "mean", "batchmean"):
        got = annealed_mse_loss(student, teacher, 0.5, reduction=reduction, weight=weight, divisor=make(50))
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=name)
def test_nothing_counts(dtype, device):
    student, teacher, weight, mask = inputs(device, dtype)
    for options in ({"weight": torch.zeros_like(weight)}, {"divisor": 0, "mask": torch.zeros_like(mask)}):
        leaf = student.clone().requires_grad_()
        loss = annealed_mse_loss(leaf, teacher, 0.5, **options)
        loss.backward()
        assert loss.isnan()
        assert not leaf.grad.any()


def test_negative_weights(device):
    """They push away. Nothing says that the sum of the weights is positive."""
    student, teacher, weight, _ = inputs(device, torch.float64)
    student.requires_grad_()
    (got,) = torch.autograd.grad(annealed_mse_loss(student, teacher, 0.5, weight=-weight), student)
    (want,) = torch.autograd.grad(annealed_mse_loss(student, teacher, 0.5, weight=weight), student)
    torch.testing.assert_close(got, want)


def test_second_order(device):
    student, teacher, weight, mask = inputs(device, torch.float64)
    student, teacher = student[:2, :3].requires_grad_(), teacher[:2, :3].requires_grad_()
    options = {"weight": weight[:2, :3].double(), "mask": mask[:2, :3], "divisor": 5.0}
    for function in (annealed_mse_loss, reference.annealed_mse):
        assert torch.autograd.gradgradcheck(lambda s, t, f=function: f(s, t, 0.7, **options), (student, teacher))
        assert torch.autograd.gradcheck(lambda s, t, f=function: f(s, t, 0.7, **options), (student, teacher))


def test_transforms(device):
    student, teacher, weight, _ = inputs(device)
    by_batch = torch.func.vmap(lambda s, t, w: annealed_mse_loss(s, t, 0.5, weight=w, divisor=3))(
        student, teacher, weight
    )
    one_by_one = [
        annealed_mse_loss(*x, 0.5, weight=w, divisor=3) for *x, w in zip(student, teacher, weight, strict=True)
    ]
    torch.testing.assert_close(by_batch, torch.stack(one_by_one))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=name)
def test_compiled(dtype, device):
    torch._dynamo.reset()
    compiled = torch.compile(annealed_mse_loss, fullgraph=True, backend="aot_eager")
    student, teacher, weight, mask = inputs(device, dtype)
    for options in ({"weight": weight}, {"weight": weight, "mask": mask, "divisor": mask.sum()}, {"divisor": 70}):
        leaves = [student.clone().requires_grad_() for _ in range(2)]
        for leaf, function in zip(leaves, (compiled, annealed_mse_loss), strict=True):
            (3 * function(leaf, teacher, 0.5, **options)).backward()
        torch.testing.assert_close(leaves[0].grad, leaves[1].grad)


def test_in_inference_mode_and_from_it(device):
    student, teacher, weight, _ = inputs(device)
    with torch.inference_mode():
        weight, divisor = weight * 2, torch.tensor(10.0)
        expected = annealed_mse_loss(student, teacher, 0.5, weight=weight, divisor=divisor)
    student.requires_grad_()
    loss = annealed_mse_loss(student, teacher, 0.5, weight=weight, divisor=divisor)
    assert torch.equal(loss.detach(), expected)
    (first,) = torch.autograd.grad(loss, student, create_graph=True)
    torch.autograd.grad(first.sum(), student)


@pytest.mark.parametrize("kind", ["mse", "kl"])
def test_the_module_takes_them(kind, device):
    student, teacher, weight, mask = inputs(device)
    criterion = AnnealingKDLoss(2, loss=kind, reduction="none").to(device)
    terms = criterion(student, teacher).sum(-1) * weight * mask
    criterion.reduction = "batchmean"
    torch.testing.assert_close(criterion(student, teacher, mask, weight), terms.sum() / (weight * mask).sum())
    torch.testing.assert_close(criterion(student, teacher, mask, weight, divisor=4), terms.sum() / 4)
    dirty = student.clone()
    dirty[0] = torch.nan
    weight[0] = 0
    torch.testing.assert_close(criterion(dirty, teacher, None, weight), criterion(student, teacher, None, weight))
