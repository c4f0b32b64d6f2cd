"""torch.compile: one graph, no recompilation when phi or another scale changes."""

from __future__ import annotations

import pytest
import torch

import akd_ext


def assert_one_graph(loss, leaves, settings):
    """Compiled once, ``loss`` has the value and the gradients of the eager one for every setting of its 0-d tensors."""
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    for values in settings:
        scales = [torch.tensor(value) for value in values]
        found, expected = compiled(*scales), loss(*scales)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves))
    assert counter.frame_count == 1


@pytest.mark.integration
@pytest.mark.parametrize("implementation", ["gram", "chunked", "auto"])
@pytest.mark.parametrize("masked", [False, True])
def test_one_graph_whatever_phi(implementation, masked):
    hidden, weight = torch.randn(12, 4, requires_grad=True), torch.randn(20, 4, requires_grad=True)
    teacher_hidden, teacher_weight = torch.randn(12, 6), torch.randn(20, 6)
    mask = torch.arange(12) % 3 != 0 if masked else None

    def loss(phi):
        return akd_ext.linear_annealed_mse_loss(
            hidden, weight, teacher_hidden, teacher_weight, phi, implementation=implementation, mask=mask, center=True
        )

    assert_one_graph(loss, (hidden, weight), [(0.2,), (0.5,), (1.0,)])


@pytest.mark.integration
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("masked", [False, True])
def test_one_graph_whatever_the_scales_of_the_kl(direction, masked):
    hidden, weight = torch.randn(12, 4, requires_grad=True), torch.randn(20, 4, requires_grad=True)
    teacher_hidden, teacher_weight = torch.randn(12, 6), torch.randn(20, 6)
    labels = torch.arange(12)
    labels[::3] = -100 if masked else 1

    def loss(phi, label_weight, temperature):
        return akd_ext.linear_scheduled_kl_loss(
            hidden, weight, teacher_hidden, teacher_weight, teacher_scale=phi, student_scale=1 - phi,
            label_weight=label_weight, temperature=temperature, labels=labels, direction=direction,
        )  # fmt: skip

    assert_one_graph(loss, (hidden, weight), ((0.2, 0.0, 1.0), (0.5, 0.3, 2.0), (1.0, 0.9, 4.0)))


@pytest.mark.integration
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_one_graph_whatever_the_schedule_of_the_top_k(given, masked):
    hidden, weight = torch.randn(12, 4, requires_grad=True), torch.randn(20, 4, requires_grad=True)
    states = {"teacher_hidden": torch.randn(12, 6), "teacher_weight": torch.randn(20, 6)}
    logits = states["teacher_hidden"] @ states["teacher_weight"].T
    top = logits.topk(3)
    kept = torch.arange(12) % 3 != 0
    how = {"k": 3}
    if given:
        how = {
            "teacher_values": top.values,
            "teacher_indices": top.indices,
            "teacher_log_normalizer": logits.logsumexp(-1),
        }
    how |= {"mask": kept} if masked else {}

    def loss(topk, anchor):
        return akd_ext.linear_topk_kl_loss(hidden, weight, **states, **how, topk=topk, anchor=anchor)

    assert_one_graph(loss, (hidden, weight), ((1.0, 0.0), (0.5, 0.5)))
