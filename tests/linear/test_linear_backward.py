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


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("implementation", ["gram", "chunked"])
def test_a_teacher_of_inference_mode(implementation, bias):
    inputs = problem()
    if not bias:
        del inputs["student_bias"], inputs["teacher_bias"]
    leaves = [x for x in inputs.values() if x.requires_grad]
    expected = torch.autograd.grad(gram_loss(inputs, implementation), leaves)
    with torch.inference_mode():
        for name in ("teacher_weight", "teacher_hidden"):
            inputs[name] = inputs[name].clone()
    torch.testing.assert_close(torch.autograd.grad(gram_loss(inputs, implementation), leaves), expected)


def without_bias(student_hidden, student_weight, teacher_hidden, teacher_weight, phi=0.5, **_):
    return akd_ext.linear_annealed_mse_loss(
        student_hidden, student_weight, teacher_hidden, teacher_weight, phi, implementation="gram"
    )


def test_the_teachers_states_may_change_only_where_the_head_is_frozen():
    inputs = problem()
    loss = without_bias(**inputs)
    inputs["teacher_hidden"].mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    inputs["student_weight"] = inputs["student_weight"].detach()
    loss = without_bias(**inputs)
    (expected,) = torch.autograd.grad(loss, inputs["student_hidden"], retain_graph=True)
    inputs["teacher_hidden"].mul_(2.0)
    torch.testing.assert_close(torch.autograd.grad(loss, inputs["student_hidden"])[0], expected)


def test_phi_may_move_on_before_backward():
    inputs, phi = problem(), torch.tensor(0.5, dtype=torch.float64)
    leaves = [inputs["student_hidden"], inputs["student_weight"]]
    expected = torch.autograd.grad(without_bias(**inputs), leaves)
    loss = without_bias(**inputs, phi=phi)
    phi.fill_(1.0)
    torch.testing.assert_close(torch.autograd.grad(loss, leaves), expected)


@pytest.mark.parametrize("width", [6, 9])
def test_the_teachers_states_are_not_copied(width):
    """Until backward only one tensor beside the inputs is as long as the tokens: half the gradient by hidden states."""
    inputs = problem()
    inputs["teacher_hidden"] = torch.randn(13, width, dtype=torch.float64)
    inputs["teacher_weight"] = torch.randn(CLASSES, width, dtype=torch.float64)
    known, kept = {x.data_ptr() for x in inputs.values()}, []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        without_bias(**inputs)
    assert [x.shape for x in kept if x.ndim == 2 and x.data_ptr() not in known] == [(13, 6)]


@pytest.mark.parametrize("implementation", ["gram", "chunked"])
def test_a_second_derivative_is_an_error_and_not_0(implementation):
    inputs = problem()
    with pytest.raises(RuntimeError, match="a linear loss, which has no second derivative; accepted"):
        torch.autograd.grad(gram_loss(inputs, implementation), inputs["student_hidden"], create_graph=True)


@pytest.mark.parametrize("loss", ["chunked", "gram", "kl"])
def test_a_scaled_loss_keeps_the_small_gradients_of_a_float16_head(loss):
    """Without the factor, they are below float16's smallest number, 6e-8."""
    inputs = {name: x.detach().to(torch.float16) for name, x in problem().items() if name != "class_weight"}
    wanted = [inputs[name].requires_grad_() for name in ("student_weight", "student_bias", "student_hidden")]

    def gradients(divisor, factor):
        if loss == "kl":
            found = akd_ext.linear_scheduled_kl_loss(**inputs, divisor=divisor)
        else:
            found = akd_ext.linear_annealed_mse_loss(**inputs, phi=0.5, implementation=loss, divisor=divisor)
        return torch.autograd.grad(found * factor, wanted)

    found, expected = gradients(2.0**40, 2.0**33), gradients(2.0**7, 1.0)
    assert all(x.dtype is torch.float16 and x.any() for x in found)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
