"""What may not happen between forward and backward, and after it."""

from __future__ import annotations

import pytest
import torch

import akd_ext

CLASSES = 31


def problem():
    def made(*shape):
        return torch.randn(*shape, dtype=torch.float64)

    return {
        "student_hidden": made(13, 6).requires_grad_(), "student_weight": made(CLASSES, 6).requires_grad_(),
        "student_bias": made(CLASSES).requires_grad_(), "teacher_hidden": made(13, 9), "teacher_weight": made(CLASSES, 9),
        "teacher_bias": made(CLASSES), "class_weight": torch.rand(CLASSES, dtype=torch.float64),
    }  # fmt: skip


def gram_loss(inputs, implementation="gram"):
    return akd_ext.linear_annealed_mse_loss(**inputs, phi=0.5, implementation=implementation)


@pytest.mark.parametrize("name", ["teacher_weight", "teacher_bias", "student_weight", "class_weight"])
def test_a_head_that_changes_before_backward_is_an_error(name):
    """The head's gradient is made of both heads then: the changed one would make a wrong one."""
    inputs = problem()
    loss = gram_loss(inputs)
    with torch.no_grad():
        inputs[name].mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_teacher_that_changes_matters_to_nobody_where_the_students_head_is_frozen():
    inputs = problem()
    inputs |= {name: inputs[name].detach() for name in ("student_weight", "student_bias")}
    loss = gram_loss(inputs)
    expected = torch.autograd.grad(loss, inputs["student_hidden"], retain_graph=True)
    inputs["teacher_weight"].mul_(2.0)
    torch.testing.assert_close(torch.autograd.grad(loss, inputs["student_hidden"]), expected)


def test_a_teachers_head_of_inference_mode():
    inputs = problem()
    leaves = [x for x in inputs.values() if x.requires_grad]
    expected = torch.autograd.grad(gram_loss(inputs), leaves)
    with torch.inference_mode():
        inputs["teacher_weight"] = inputs["teacher_weight"].clone()
    torch.testing.assert_close(torch.autograd.grad(gram_loss(inputs), leaves), expected)


@pytest.mark.parametrize("implementation", ["gram", "chunked"])
def test_a_second_derivative_is_an_error_and_not_0(implementation):
    inputs = problem()
    with pytest.raises(RuntimeError, match="a linear loss, which has no second derivative; accepted"):
        torch.autograd.grad(gram_loss(inputs, implementation), inputs["student_hidden"], create_graph=True)
