"""The cases of ``benchmarks.kernels`` under pytest-benchmark: ``pytest benchmarks``. Asserts no time.

One group a case; in its table the figure in brackets is the ratio to the fastest. A subset: ``pytest benchmarks -k 128x10``.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from benchmarks.cases import (
    EAGER,
    FALLBACK,
    FLOOR,
    FORWARD,
    OURS,
    OURS_TENSOR,
    cases,
    contenders,
    floors,
    make_inputs,
    step,
)
from benchmarks.measure import input_sets

NAMES = (OURS, OURS_TENSOR, EAGER, FALLBACK, FLOOR)
DEVICES = ("cpu", *(["cuda"] if torch.cuda.is_available() else []))
CASES = [pytest.param(device, case, id=f"{device} {case}") for device in DEVICES for case in cases(device)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("device", "case"), CASES)
@pytest.mark.benchmark(min_rounds=3, max_time=0.2, warmup=False)
def test_kernel(benchmark, device, case, name):
    pytest.importorskip("pytest_benchmark")
    benchmark.group = f"{device} {case}"
    inputs = make_inputs(case, device, input_sets(case, device))
    if name == FLOOR:
        one = dict(floors(case, device))[FLOOR]
    else:
        loss_of = dict(contenders(case, device, compiled=False))[name]
        with torch.set_grad_enabled(case.direction != FORWARD):
            expected = dict(contenders(case, device, compiled=False))[FALLBACK](inputs[0])
            torch.testing.assert_close(loss_of(inputs[0]).float(), expected.float(), rtol=0.02, atol=0)
        one = step(case, device, loss_of)
    rotation = itertools.cycle(inputs)

    def call() -> None:
        one(next(rotation))
        if device == "cuda":
            torch.cuda.synchronize()

    call()
    benchmark(call)
