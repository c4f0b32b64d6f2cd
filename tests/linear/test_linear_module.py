"""LinearAnnealingKDLoss: what it keeps, when it makes it anew, and gradient accumulation."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

import akd_ext
from akd_ext.linear import gram, module, reference

TOKENS, CLASSES, WIDTH, TEACHER_WIDTH = 12, 17, 5, 7
PHI = float(torch.tensor(0.7))  # the module's is a float32


def made(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def problem(teacher_width=TEACHER_WIDTH):
    hidden, weight, bias = made(TOKENS, WIDTH), made(CLASSES, WIDTH), made(CLASSES)
    student = [x.requires_grad_() for x in (hidden, weight, bias)]
    return student, made(TOKENS, teacher_width), made(CLASSES, teacher_width)


def criterion(teacher_weight, **options):
    options = {"center": True, "implementation": "gram", **options}
    loss = akd_ext.LinearAnnealingKDLoss(10, teacher_weight=teacher_weight, **options)
    loss.set_temperature(4)
    return loss


@pytest.fixture
def counted(monkeypatch):
    """How often all Gram matrices are made."""
    calls = []
    monkeypatch.setattr(module, "grams", lambda *args: calls.append(1) or gram.grams(*args))
    return calls


def test_value_and_gradients():
    (hidden, weight, bias), teacher_hidden, teacher_weight = problem()
    loss = criterion(teacher_weight)
    found = loss(hidden, weight, teacher_hidden, student_bias=bias)
    expected = reference.linear_annealed_mse(
        hidden, weight, teacher_hidden, teacher_weight, loss.phi.double(), student_bias=bias, center=True
    )
    torch.testing.assert_close(found, expected)
    leaves = (hidden, weight, bias)
    torch.testing.assert_close(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves))


@pytest.mark.parametrize("teacher_width", [WIDTH, TEACHER_WIDTH])
@pytest.mark.parametrize("implementation", ["gram", "chunked", "auto"])
@pytest.mark.parametrize("reduction", ["mean", "batchmean", "sum"])
def test_micro_batches_are_one_batch(teacher_width, implementation, reduction, counted):
    (hidden, weight, bias), teacher_hidden, teacher_weight = problem(teacher_width)
    mask = torch.rand(TOKENS) > 0.3
    expected = reference.linear_annealed_mse(
        hidden, weight, teacher_hidden, teacher_weight, PHI, student_bias=bias, center=True, mask=mask,
        reduction=reduction,
    )  # fmt: skip
    gradients = torch.autograd.grad(3 * expected, (hidden, weight, bias))
    loss, total = criterion(teacher_weight, implementation=implementation, reduction=reduction), 0.0
    with loss.accumulate(weight, int(mask.sum()), student_bias=bias):
        for part in (slice(0, 5), slice(5, 8), slice(8, TOKENS)):
            value = loss(hidden[part], weight, teacher_hidden[part], mask[part], student_bias=bias)
            total += value.detach()
            (3 * value).backward()
    torch.testing.assert_close(total, expected.detach())
    torch.testing.assert_close([hidden.grad, weight.grad, bias.grad], list(gradients))
    assert len(counted) <= 1


def test_a_frozen_head_costs_nothing_in_micro_batches_either(monkeypatch):
    (hidden, weight, _), teacher_hidden, teacher_weight = problem()
    loss = criterion(teacher_weight)
    expected = torch.autograd.grad(loss(hidden, weight, teacher_hidden), hidden)[0]
    monkeypatch.setattr(gram.Moments, "add", None)
    monkeypatch.setattr(module, "head_gradient", None)
    frozen = weight.detach()
    with loss.accumulate(frozen, TOKENS):
        for part in (slice(0, 5), slice(5, TOKENS)):
            loss(hidden[part], frozen, teacher_hidden[part]).backward()
    torch.testing.assert_close(hidden.grad, expected)


def test_a_tied_embedding_gets_both_gradients():
    (_, weight, _), teacher_hidden, teacher_weight = problem()
    places, wanted = torch.randint(CLASSES, (TOKENS,)), weight.detach().clone().requires_grad_()
    nn.functional.embedding(places, wanted).square().sum().backward()
    expected = reference.linear_annealed_mse(
        nn.functional.embedding(places, wanted), wanted, teacher_hidden, teacher_weight, PHI, center=True
    )
    expected.backward()
    nn.functional.embedding(places, weight).square().sum().backward()
    loss = criterion(teacher_weight)
    with loss.accumulate(weight, TOKENS):
        loss(nn.functional.embedding(places, weight), weight, teacher_hidden).backward()
    torch.testing.assert_close(weight.grad, wanted.grad)


def test_a_count_in_int32_times_the_classes_does_not_wrap_round():
    (hidden, weight, _), teacher_hidden, teacher_weight = problem()
    loss = criterion(teacher_weight, reduction="mean")
    many = torch.tensor(2**31 // CLASSES + 1, dtype=torch.int32)
    with loss.accumulate(weight, many):
        value = loss(hidden, weight, teacher_hidden)
        value.backward()
    expected = criterion(teacher_weight, reduction="sum")(hidden, weight, teacher_hidden) / (int(many) * CLASSES)
    torch.testing.assert_close(value, expected)


def test_a_frozen_head_is_multiplied_once(counted):
    (hidden, weight, _), teacher_hidden, teacher_weight = problem()
    loss, frozen = criterion(teacher_weight), weight.detach()
    for _ in range(3):
        loss(hidden, frozen, teacher_hidden).backward()
    assert len(counted) == 1


@pytest.mark.parametrize("optimizer", [{}, {"foreach": True}, {"fused": True}])
def test_a_changed_head_is_noticed(counted, optimizer):
    (hidden, weight, _), teacher_hidden, teacher_weight = problem()
    loss = criterion(teacher_weight)
    loss(hidden, weight, teacher_hidden).backward()
    torch.optim.AdamW([weight], lr=0.1, **optimizer).step()
    found = loss(hidden, weight, teacher_hidden)
    expected = reference.linear_annealed_mse(hidden, weight, teacher_hidden, teacher_weight, PHI, center=True)
    torch.testing.assert_close(found, expected)
    assert len(counted) == 2
    frozen = weight.detach()
    loss(hidden, frozen, teacher_hidden)
    with torch.no_grad():
        loss.teacher_weight.mul_(2.0)
    found = loss(hidden, frozen, teacher_hidden)
    torch.testing.assert_close(
        found, reference.linear_annealed_mse(hidden, weight, teacher_hidden, loss.teacher_weight, PHI, center=True)
    )


def test_another_head_of_the_same_shape_is_noticed(counted):
    (hidden, weight, _), teacher_hidden, teacher_weight = problem()
    loss, other = criterion(teacher_weight), weight.detach().clone()
    loss(hidden, weight, teacher_hidden)
    loss(hidden, other, teacher_hidden)
    assert len(counted) == 2


def test_a_head_that_changes_inside_a_step_is_an_error():
    (hidden, weight, _), teacher_hidden, teacher_weight = problem()
    loss = criterion(teacher_weight)
    with pytest.raises(RuntimeError, match="changed inside accumulate"), loss.accumulate(weight, TOKENS):
        loss(hidden, weight, teacher_hidden).backward()
        with torch.no_grad():
            weight.add_(1.0)
    assert weight.grad is None
    weight.grad = torch.ones_like(weight)
    with pytest.raises(RuntimeError, match="changed inside accumulate"), loss.accumulate(weight, TOKENS):
        loss(hidden, weight, teacher_hidden).backward()
        loss.teacher_weight.mul_(2.0)
    assert weight.grad.eq(1).all()
    weighted = criterion(teacher_weight, class_weight=torch.ones(CLASSES, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="changed inside accumulate"), weighted.accumulate(weight, TOKENS):
        weighted(hidden, weight, teacher_hidden).backward()
        weighted.class_weight.mul_(2.0)
    assert weight.grad.eq(1).all()
    fused = torch.optim.AdamW([weight], fused=True)  # counts no version
    with pytest.raises(RuntimeError, match="changed inside accumulate"), loss.accumulate(weight, TOKENS):
        loss(hidden, weight, teacher_hidden).backward()
        fused.step()
    assert weight.grad.eq(1).all()
    weight.grad = None
    with pytest.raises(RuntimeError, match="another head"), loss.accumulate(weight, TOKENS):
        loss(hidden, weight.detach().clone(), teacher_hidden)
    with pytest.raises(RuntimeError, match="already open"), loss.accumulate(weight, TOKENS):
        with loss.accumulate(weight, TOKENS):
            pass
    loss(hidden, weight, teacher_hidden).backward()  # and outside it works again
    assert weight.grad is not None


def test_the_students_head_is_the_teachers(counted):
    (hidden, weight, _), teacher_hidden, _ = problem(WIDTH)
    shared = weight.detach()
    loss = criterion(shared)
    found = loss(hidden, shared, teacher_hidden)
    expected = reference.linear_annealed_mse(hidden, shared, teacher_hidden, shared, PHI, center=True)
    torch.testing.assert_close(found, expected)
    assert loss._known[1].pq.numel() == 0


@pytest.mark.parametrize("biases", [(True, True), (True, False), (False, True)])
def test_a_head_with_a_bias_that_both_share_may_learn(biases):
    (hidden, weight, bias), teacher_hidden, _ = problem(WIDTH)
    student_bias, teacher_bias = (bias if has else None for has in biases)
    loss = criterion(weight, teacher_bias=teacher_bias)
    found = loss(hidden, weight, teacher_hidden, student_bias=student_bias)
    frozen = None if teacher_bias is None else teacher_bias.detach()
    expected = reference.linear_annealed_mse(
        hidden,
        weight,
        teacher_hidden,
        weight.detach(),
        PHI,
        student_bias=student_bias,
        teacher_bias=frozen,
        center=True,
    )
    torch.testing.assert_close(found, expected)
    leaves = [x for x in (hidden, weight, student_bias) if x is not None]
    torch.testing.assert_close(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves))


def test_a_temperature_that_nobody_set_is_said_once(recwarn):
    (hidden, weight, _), teacher_hidden, teacher_weight = problem()
    loss = akd_ext.LinearAnnealingKDLoss(10, teacher_weight=teacher_weight)
    loss.eval()(hidden, weight, teacher_hidden)
    assert not recwarn
    for _ in range(2):
        loss.train()(hidden, weight, teacher_hidden)
    assert [str(x.message)[:47] for x in recwarn] == ["LinearAnnealingKDLoss trains at tau_max = 10, b"]
    criterion(teacher_weight)(hidden, weight, teacher_hidden)
    assert len(recwarn) == 1


def test_schedule_and_moves():
    _, _, teacher_weight = problem()
    loss = criterion(teacher_weight.float())
    assert loss.set_epoch(0, 10) == (10, pytest.approx(0.1))
    assert loss.half().phi.dtype is torch.float32
    assert "teacher_weight" not in loss.state_dict()
    assert "teacher_head=(17, 7)" in repr(loss)


def test_bad_arguments():
    (hidden, weight, _), teacher_hidden, teacher_weight = problem()
    with pytest.raises(TypeError, match="no argument 'centre'"):
        criterion(teacher_weight, centre=True)
    with pytest.raises(ValueError, match="reduction is 'none'"):
        criterion(teacher_weight, reduction="none")
    loss = criterion(teacher_weight)
    with pytest.raises(ValueError, match="divisor is given inside accumulate"), loss.accumulate(weight, TOKENS):
        loss(hidden, weight, teacher_hidden, divisor=3)


def test_a_backward_after_the_block_is_an_error():
    (hidden, weight, _), teacher_hidden, teacher_weight = problem()
    loss = criterion(teacher_weight)
    with loss.accumulate(weight, TOKENS):
        found = loss(hidden, weight, teacher_hidden)
    with pytest.raises(RuntimeError, match=r"backward\(\) comes after the accumulate\(\) block"):
        found.backward()


@pytest.mark.parametrize("implementation", ["gram", "chunked"])
def test_the_head_alone_learns_from_micro_batches(implementation):
    (hidden, weight, bias), teacher_hidden, teacher_weight = problem()
    hidden = hidden.detach()
    loss = criterion(teacher_weight, implementation=implementation)
    loss(hidden, weight, teacher_hidden, student_bias=bias).backward()
    expected = weight.grad, bias.grad
    weight.grad = bias.grad = None
    with loss.accumulate(weight, TOKENS, student_bias=bias):
        for part in (slice(0, 5), slice(5, TOKENS)):
            loss(hidden[part], weight, teacher_hidden[part], student_bias=bias).backward()
    torch.testing.assert_close((weight.grad, bias.grad), expected)


def test_it_is_pickled_with_its_temperature_and_teacher():
    (hidden, weight, _), teacher_hidden, teacher_weight = problem()
    loss = criterion(teacher_weight)
    expected = loss(hidden, weight.detach(), teacher_hidden)
    copy = pickle.loads(pickle.dumps(loss))
    assert copy.temperature == loss.temperature
    torch.testing.assert_close(copy(hidden, weight.detach(), teacher_hidden), expected)


def test_a_head_that_learned_between_two_frozen_calls_is_noticed():
    head, teacher_weight = nn.Parameter(made(CLASSES, WIDTH)), made(CLASSES, TEACHER_WIDTH)
    hidden, teacher_hidden = made(TOKENS, WIDTH), made(TOKENS, TEACHER_WIDTH)
    loss = criterion(teacher_weight)
    optimizer = torch.optim.AdamW([head], lr=0.1, fused=True)
    for learns in (False, True, False):
        head.requires_grad_(learns)
        found = loss(hidden, head, teacher_hidden)
        expected = reference.linear_annealed_mse(hidden, head, teacher_hidden, teacher_weight, PHI, center=True)
        torch.testing.assert_close(found, expected)
        if learns:
            found.backward()
            optimizer.step()


def test_what_cannot_be_right_is_refused_at_the_border():
    with pytest.raises(ValueError, match=r"teacher_bias has shape \(18,\); accepted: \(17,\)"):
        criterion(made(CLASSES, TEACHER_WIDTH), teacher_bias=made(CLASSES + 1))
    loss = criterion(made(CLASSES, TEACHER_WIDTH))
    with pytest.raises(ValueError, match="group is given beside implementation='chunked'"):
        with criterion(made(CLASSES, TEACHER_WIDTH), implementation="chunked").accumulate(
            made(CLASSES, WIDTH), 12, group=object()
        ):
            pass
    with pytest.raises(TypeError, match="num_items is a str"), loss.accumulate(made(CLASSES, WIDTH), "12"):
        pass
    with pytest.raises(ValueError, match=r"num_items has shape \(2,\)"):
        loss.accumulate(made(CLASSES, WIDTH), torch.tensor([7, 5])).__enter__()
