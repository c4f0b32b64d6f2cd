"""Fixtures for every test, and which tests run when nobody chooses with ``-m``."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from op_oracle import DEVICES

import akd_ext

TESTS = Path(__file__).parent

# What each marker costs; without -m these are deselected (pytest prints how many).
ON_DEMAND = {
    "integration": "whole runs, other processes, builds",
    "slow": "more memory or minutes than a laptop has to spare",
    "native": "compiles the C++ kernels with sanitizers",
    "packaging": "builds wheels and environments, with pip and an index",
}


def pytest_configure(config):
    # Who runs the tests on one certain backend wants to be told when another one is there.
    expected = os.environ.get("AKD_TEST_BACKEND")
    if expected and akd_ext.backend("cpu") != expected:
        raise pytest.UsageError(f"AKD_TEST_BACKEND={expected}, but {akd_ext.__file__} runs {akd_ext.backend('cpu')!r}")
    for name, why in ON_DEMAND.items():
        config.addinivalue_line("markers", f"{name}: {why}; deselected unless chosen with -m")
    config.addinivalue_line("markers", "cuda: needs a CUDA device")


def pytest_collection_modifyitems(config, items):
    if not config.option.markexpr:
        on_demand = [item for item in items if any(item.get_closest_marker(name) for name in ON_DEMAND)]
        if on_demand:
            config.hook.pytest_deselected(items=on_demand)
            items[:] = [item for item in items if item not in on_demand]
    for item in items:
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def _one_thread(request):
    """Toy models train on one thread: several only wait for each other. The op's tests keep the machine's threads.

    Of a module, so that a run that its fixtures make has the bits of one that a test makes.
    """
    before = torch.get_num_threads()
    if request.path.parent not in (TESTS, TESTS / "op"):
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
