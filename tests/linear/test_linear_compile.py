"""torch.compile: one graph, no recompilation when phi changes."""

from __future__ import annotations

import pytest

import akd_ext


@pytest.mark.integration
@pytest.mark.parametrize("implementation", ["gram", "chunked", "auto"])
@pytest.mark.parametrize("masked", [False, True])
def test_one_graph_whatever_phi(implementation, masked):
    import torch._dynamo.testing

    hidden, weight = torch.randn(12, 4, requires_grad=True), torch.randn(20, 4, requires_grad=True)
    teacher_hidden, teacher_weight = torch.randn(12, 6), torch.randn(20, 6)
    mask = torch.arange(12) % 3 != 0 if masked else None

    def loss(phi):
        return akd_ext.linear_annealed_mse_loss(
            hidden, weight, teacher_hidden, teacher_weight, phi, implementation=implementation, mask=mask, center=True
        )

    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    for value in (0.2, 0.5, 1.0):
        phi = torch.tensor(value)
        found, expected = compiled(phi), loss(phi)
        torch.testing.assert_close(found, expected)
        leaves = (hidden, weight)
        torch.testing.assert_close(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves))
    assert counter.frame_count == 1
