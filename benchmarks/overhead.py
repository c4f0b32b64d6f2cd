"""Where the microseconds of one small call go: python -m benchmarks.overhead [--device cpu|cuda].

Each layer is timed by itself, from the bare kernel (bound with pybind11) up to ``loss.backward()``; what a layer adds is
the difference to the one below. Batches of calls in random order, medians. On CUDA this is the host's time: the calls
are only enqueued. Writes ``benchmarks/results/overhead-<device>.{md,json}``. Asserts nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from akd_ext import annealed_mse_loss
from akd_ext.op import autograd as _op
from akd_ext.op import validation as _checks
from benchmarks import machine
from benchmarks.cases import PAPER, PHI, Nothing, OpAlone
from benchmarks.kernels import RESULTS

BATCH, ROUNDS = 40, 100


def layers(shape: tuple[int, int], device: str, native) -> dict[str, Callable[[], object]]:
    leaf = torch.randn(shape, device=device, requires_grad=True)
    student, teacher = leaf.detach(), torch.randn(shape, device=device)
    gradient = torch.empty_like(student)
    phi = torch.tensor(PHI, device=device)
    rest = (None, PHI, None, None, None, _op.REDUCTION["mean"], True)

    def checks() -> None:
        _checks.check_logits(leaf, teacher)
        _checks.check_phi(PHI, leaf)
        _checks.check_reduction("mean")

    def backward(loss: torch.Tensor) -> None:
        loss.backward()
        leaf.grad = None

    found = {}
    if native is not None:
        # Reading an address takes longer than the kernel; `keep` holds the memory it points to.
        keep = (student, teacher, gradient)
        arguments = (0, 0, *(tensor.data_ptr() for tensor in keep), student.numel(), PHI, 1.0)
        found["bare kernel, pybind11"] = lambda keep=keep: native.run(*arguments)
    return found | {
        "op, dispatched below autograd": lambda: _op.annealed_mse_without_grad(student, teacher, *rest),
        "op, dispatched": lambda: _op.annealed_mse(student, teacher, *rest),
        "checks of the Python function": checks,
        "autograd.Function around the op": lambda: _op.AnnealedMSE.apply(leaf, teacher, rest),
        "annealed_mse_loss, no gradient": lambda: annealed_mse_loss(student, teacher, PHI),
        "annealed_mse_loss, forward": lambda: annealed_mse_loss(leaf, teacher, PHI),
        "annealed_mse_loss, forward + backward": lambda: backward(annealed_mse_loss(leaf, teacher, PHI)),
        "the same, phi a tensor": lambda: backward(annealed_mse_loss(leaf, teacher, phi)),
        "eager, no gradient": lambda: F.mse_loss(student, PHI * teacher),
        "eager, forward": lambda: F.mse_loss(leaf, PHI * teacher),
        "eager, forward + backward": lambda: backward(F.mse_loss(leaf, PHI * teacher)),
        "Function without work, forward": lambda: Nothing.apply(leaf, teacher),
        "Function without work, forward + backward": lambda: backward(Nothing.apply(leaf, teacher)),
        "Function with the op alone, forward + backward": lambda: backward(OpAlone.apply(leaf, teacher)),
        "student.sum().backward()": lambda: backward(leaf.sum()),
        "torch.add(s, t)": lambda: torch.add(student, teacher),
    }


# (text, upper layer, lower layer): what the upper one adds.
STEPS = (
    ("the kernel itself", "bare kernel, pybind11", None),
    ("dispatcher, boxing, two new tensors", "op, dispatched below autograd", "bare kernel, pybind11"),
    ("Python autograd kernel, not on our eager path", "op, dispatched", "op, dispatched below autograd"),
    ("autograd.Function, saving for backward", "autograd.Function around the op", "op, dispatched below autograd"),
    ("checks and the rest of the Python function", "annealed_mse_loss, forward", "autograd.Function around the op"),
    ("backward: Tensor.backward, engine, our node", "annealed_mse_loss, forward + backward", "annealed_mse_loss, forward"),
    ("of it without any work in the node", "Function without work, forward + backward", "Function without work, forward"),
    ("checks, saving, the questions of backward", "annealed_mse_loss, forward + backward", "Function with the op alone, forward + backward"),
)  # fmt: skip


def measure(calls: dict[str, Callable[[], object]], device: str) -> dict[str, list[float]]:
    """Microseconds per call, one number a round."""
    names, samples = list(calls), {name: [] for name in calls}
    shuffle = random.Random(0).shuffle
    for call in calls.values():
        for _ in range(BATCH):
            call()
    gc.disable()
    try:
        for _ in range(ROUNDS):
            shuffle(names)
            for name in names:
                call = calls[name]
                call()  # the first of a batch runs in the last one's cache
                if device == "cuda":
                    torch.cuda.synchronize()
                begin = time.perf_counter_ns()
                for _ in range(BATCH):
                    call()
                samples[name].append((time.perf_counter_ns() - begin) / BATCH / 1000)
            gc.collect(0)
    finally:
        gc.enable()
    return samples


def table(samples: dict[str, list[float]]) -> list[str]:
    lines = ["| call | us [quartiles] |", "|---|---|"]
    for name, values in samples.items():
        first, median, third = statistics.quantiles(values, n=4)
        lines.append(f"| {name} | {median:.2f} [{first:.2f}, {third:.2f}] |")
    lines += ["", "| what | us |", "|---|---|"]
    for text, upper, lower in STEPS:
        if upper in samples and (lower is None or lower in samples):
            below = samples[lower] if lower else [0.0] * ROUNDS
            lines.append(
                f"| {text} | {statistics.median(a - b for a, b in zip(samples[upper], below, strict=True)):.2f} |"
            )
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args(argv)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    facts, native, note = machine.describe(device), None, ""
    with tempfile.TemporaryDirectory() as folder:
        if device == "cpu":
            try:
                from benchmarks import bare_kernel

                native = bare_kernel.build(folder)
            except (ImportError, OSError, RuntimeError) as error:
                note = f"The bare kernel was not measured: {str(error).splitlines()[0]}"
        results = {shape: measure(layers(shape, device, native), device) for shape in PAPER}
    lines = [f"# Host overhead on {device}, float32", "", *(f"- {k}: {v}" for k, v in facts.items()), "", note]
    for shape, samples in results.items():
        lines += ["", f"## {shape[0]} x {shape[1]}", "", *table(samples)]
    print("\n".join(lines))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"overhead-{device}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    medians = {str(shape): {n: statistics.median(v) for n, v in samples.items()} for shape, samples in results.items()}
    record = {"facts": facts, "note": note, "median_us": medians}
    (options.out / f"overhead-{device}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
