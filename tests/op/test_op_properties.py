"""Any combination of shape, strides, offset, dtypes, mask, phi and reduction stays within the bound of op_oracle."""

import pytest
import torch
from op_oracle import DEVICES, DTYPES, REDUCTIONS, check

from akd_ext import annealed_mse_loss

hypothesis = pytest.importorskip("hypothesis", reason="pip install .[test] brings hypothesis")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

# derandomize: a failure is the same failure for everybody.
BOUNDED = settings(derandomize=True, deadline=None, max_examples=100)


def build(shape, dtype, device, seed, scale, offset, step, order):
    """Logits of this shape as a view: ``offset`` elements into the storage, every ``step``-th, dimensions in ``order``."""
    generator = torch.Generator().manual_seed(seed)
    memory_shape = [shape[d] for d in order]
    numel = torch.Size(shape).numel()
    memory = torch.full((offset + max(numel * step, 1),), torch.nan, dtype=dtype)
    values = scale * torch.randn(memory_shape, dtype=torch.float64, generator=generator)
    view = memory.to(device)[offset : offset + numel * step : step]
    view.copy_(values.reshape(-1))
    return view.view(memory_shape).permute([order.index(d) for d in range(len(shape))])


@st.composite
def problems(draw):
    shape = tuple(draw(st.lists(st.integers(0, 7), min_size=0, max_size=3))) + (draw(st.integers(0, 70)),)
    logits = []
    for seed in range(2):
        layout = {
            "dtype": draw(st.sampled_from(DTYPES)),
            "seed": draw(st.integers(0, 99)) * 2 + seed,
            "scale": draw(st.sampled_from([1e-3, 1.0, 30.0])),
            "offset": draw(st.integers(0, 17)),
            "step": draw(st.integers(1, 3)),
            "order": draw(st.permutations(range(len(shape)))),
        }
        logits.append(layout)
    keep = draw(st.sampled_from([None, 0.0, 0.3, 0.9, 1.0]))
    phi = draw(st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1)))
    phi_is_a_tensor = draw(st.booleans())
    return shape, logits, keep, phi, phi_is_a_tensor, draw(st.sampled_from(REDUCTIONS))


@pytest.mark.parametrize("device", DEVICES)
@BOUNDED
@given(problems())
def test_within_twice_the_error_of_eager(device, problem):
    shape, logits, keep, phi, phi_is_a_tensor, reduction = problem
    student, teacher = (build(shape, device=device, **layout) for layout in logits)
    generator = torch.Generator().manual_seed(0)
    mask = None if keep is None else (torch.rand(shape[:-1], generator=generator) < keep).to(device)
    if phi_is_a_tensor:
        phi = torch.tensor(phi, dtype=torch.float32)  # its value, rounded, is what counts
    check(annealed_mse_loss, student, teacher, phi, reduction, mask)


@pytest.mark.parametrize("device", DEVICES)
@BOUNDED
@given(
    rows=st.integers(1, 300),
    classes=st.integers(1, 300),
    seed=st.integers(0, 99),
    keep=st.sampled_from([0.0, 0.1, 0.5, 0.99, 1.0]),
    dtype=st.sampled_from(DTYPES),
)
def test_a_mask_is_the_same_as_leaving_the_rows_out(device, rows, classes, seed, keep, dtype):
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(rows, classes, generator=generator).to(device, dtype).requires_grad_()
    teacher = torch.randn(rows, classes, generator=generator).to(device, dtype)
    mask = (torch.rand(rows, generator=generator) < keep).to(device)
    loss = annealed_mse_loss(student, teacher, 0.5, mask=mask)
    (gradient,) = torch.autograd.grad(loss, student)
    kept = student.detach()[mask].requires_grad_()
    other = annealed_mse_loss(kept, teacher[mask], 0.5)
    (expected,) = torch.autograd.grad(other, kept)
    torch.testing.assert_close(loss, other, rtol=1e-6, atol=0, equal_nan=True)
    assert torch.equal(gradient[mask], expected)
    assert (gradient[~mask] == 0).all()


@BOUNDED
@given(st.integers(1, 40), st.integers(1, 400), st.sampled_from(["linear", "cosine", "exponential", "step"]))
def test_every_schedule_is_monotone_and_ends_at_one(tau_max, num_epochs, annealing):
    from akd_ext import AnnealingSchedule

    schedule = AnnealingSchedule(tau_max, num_epochs, annealing)
    pairs = [schedule(epoch) for epoch in range(num_epochs)]
    assert all(1 <= T <= tau_max and 0 <= phi <= 1 for T, phi in pairs)
    assert all(a[0] >= b[0] and a[1] <= b[1] for a, b in zip(pairs, pairs[1:], strict=False))
    assert pairs[-1] == (1, 1.0)
