"""What else is a function of the same three inner products: each equal to its plain form."""

from __future__ import annotations

import pytest
import torch

from akd_ext import linear
from akd_ext.linear import reference


def problem(width=6, teacher_width=9, classes=23):
    def made(*shape):
        return torch.randn(*shape, dtype=torch.float64)

    return made(11, width).requires_grad_(), made(classes, width).requires_grad_(), made(11, teacher_width), made(
        classes, teacher_width
    )  # fmt: skip


def assert_same(found, expected, leaves):
    # float64 rounds by 1.1e-16; an inner product adds some 23 * (6 + 9) products of up to a hundred in all, in another order
    # than the logits do: 350 * 100 * 1.1e-16 is 4e-12 at the very worst, a gradient's difference ten times that.
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradients = (torch.autograd.grad(x.sum(), leaves, retain_graph=True) for x in (found, expected))
    for mine, other in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("teacher_width", [6, 9])
@pytest.mark.parametrize("center", [False, True])
def test_inner_products(teacher_width, center):
    inputs = problem(teacher_width=teacher_width)
    student, teacher = reference.logits(*inputs[:2]), reference.logits(*inputs[2:])
    if center:
        student, teacher = reference.centered(student), reference.centered(teacher)
    found = linear.linear_inner_products(*inputs, center=center)
    for mine, other in zip(found[:2], ((student * student).sum(-1), (student * teacher).sum(-1)), strict=True):
        assert_same(mine, other, inputs[:2])
    torch.testing.assert_close(found.teacher, (teacher * teacher).sum(-1))


@pytest.mark.parametrize("center", [False, True])
def test_cosine(center):
    inputs, mask = problem(), torch.arange(11) % 4 != 0
    student, teacher = reference.logits(*inputs[:2]), reference.logits(*inputs[2:])
    if center:
        student, teacher = reference.centered(student), reference.centered(teacher)
    found = linear.linear_cosine_loss(*inputs, center=center, mask=mask)
    assert_same(found, reference.cosine(student, teacher)[mask].mean(), inputs[:2])


def test_standardised_logits():
    inputs, weight = problem(), torch.rand(11, dtype=torch.float64)
    student, teacher = (reference.standardized(reference.logits(*x)) for x in (inputs[:2], inputs[2:]))
    expected = ((student - teacher).square().mean(-1) * weight).sum() / weight.sum()
    assert_same(linear.linear_standardized_mse_loss(*inputs, weight=weight), expected, inputs[:2])


def test_margin_mse_of_all_pairs():
    inputs = problem()
    student, teacher = reference.logits(*inputs[:2]), reference.logits(*inputs[2:])
    expected = reference.margin_mse(student, teacher, 0.4).mean()
    assert_same(linear.linear_margin_mse_loss(*inputs, 0.4), expected, inputs[:2])


def test_teacher_gram_and_a_map():
    inputs, ids = problem(), torch.randperm(23)[:9]
    made = linear.teacher_gram(inputs[3], teacher_ids=ids.flip(0), center=True)
    found = linear.linear_cosine_loss(*inputs, student_ids=ids, teacher_ids=ids.flip(0), center=True, teacher_gram=made)
    student, teacher = reference.logits(*inputs[:2], ids=ids), reference.logits(*inputs[2:], ids=ids.flip(0))
    expected = reference.cosine(reference.centered(student), reference.centered(teacher)).mean()
    assert_same(found, expected, inputs[:2])


def test_what_has_its_own_is_not_given():
    inputs = problem()
    with pytest.raises(TypeError, match="center is given"):
        linear.linear_standardized_mse_loss(*inputs, center=True)
    with pytest.raises(TypeError, match="class_weight is given"):
        linear.linear_margin_mse_loss(*inputs, 0.5, class_weight=torch.ones(23))
    with pytest.raises(TypeError, match="no argument 'masks'"):
        linear.linear_cosine_loss(*inputs, masks=None)


@pytest.mark.parametrize("which", [1, 3], ids=["student's", "teacher's"])
def test_a_head_changed_before_backward_is_an_error(which):
    inputs = [torch.randn(6, 4) for _ in range(4)]
    inputs[1].requires_grad_()
    found = linear.linear_cosine_loss(*inputs)
    with torch.no_grad():
        inputs[which].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found.backward()


def test_a_teachers_states_of_inference_mode():
    student, weight, teacher, teacher_weight = problem()
    expected = linear.linear_cosine_loss(student, weight, teacher, teacher_weight)
    with torch.inference_mode():
        teacher = teacher.clone()
    assert_same(linear.linear_cosine_loss(student, weight, teacher, teacher_weight), expected, (student, weight))
