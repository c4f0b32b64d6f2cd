"""Time and memory of the contenders of one case.

Time: one process, one repetition = every contender once, in a fresh random order, so that a machine that slows down
slows all of them; a ratio is taken within a repetition, then the median of the ratios. Short calls run in batches of
about a millisecond, after a few that do not count: those find the caches full of the contender before. Large inputs
exist several times and take turns, so that no call finds its inputs in the cache.

Memory: the highest sum of live allocations over one step, beyond what was there before it. On CUDA that is
``torch.cuda.max_memory_allocated``; on the CPU every allocation and release that PyTorch's allocator reports to the
profiler, added up in order (exact bytes, and independent of when the system hands out the pages).
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import itertools
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import torch

from benchmarks.cases import (
    COMPILE,
    FORWARD,
    REDUCE_OVERHEAD,
    Case,
    Inputs,
    contenders,
    floors,
    make_inputs,
    step,
)
from benchmarks.machine import llc_bytes

Step = Callable[[Inputs], None]
BATCH_SECONDS = 1e-3
WARM_CALLS = 3
MIN_REPETITIONS, MAX_REPETITIONS = 5, 300


@dataclasses.dataclass
class Result:
    """Seconds per call, one entry a repetition; repetition i of all contenders of a case belongs together."""

    seconds: list[float] = dataclasses.field(default_factory=list)
    peak_bytes: int | None = None
    failure: str | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        first, _, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return first, third


def ratios(numerator: Result, denominator: Result) -> tuple[float, float, float]:
    """First quartile, median, third quartile of the ratios within the repetitions."""
    pairs = [a / b for a, b in zip(numerator.seconds, denominator.seconds, strict=True)]
    first, median, third = statistics.quantiles(pairs, n=4, method="inclusive")
    return first, median, third


def measure(case: Case, device: str, seconds: float, compiled: bool = True) -> dict[str, Result]:
    """Every contender of ``case`` for about ``seconds`` in all (compiling not counted)."""
    sets = input_sets(case, device)
    inputs = make_inputs(case, device, sets)
    results, steps = {}, {}
    expected = None
    torch.compiler.reset()  # a fresh graph for this shape, not a dynamic one after several
    for name, loss_of in contenders(case, device, compiled):
        results[name] = Result()
        try:
            with torch.set_grad_enabled(case.direction != FORWARD):
                loss = float(loss_of(inputs[0]).detach())
            expected = loss if expected is None else expected
            if not math.isclose(loss, expected, rel_tol=0.02):
                raise ValueError(f"wrong loss {loss}, expected {expected}")
            one = step(case, device, loss_of)
            for warm in range(3 if name in (COMPILE, REDUCE_OVERHEAD) else 1):
                one(inputs[warm % sets])
            results[name].peak_bytes = peak_bytes(one, inputs[0], device)
            steps[name] = one
        except Exception as error:  # a contender that does not run here must not hide the others
            results[name].failure = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
            _release(inputs, device)
    for name, one in floors(case, device):
        results[name] = Result(peak_bytes=peak_bytes(one, inputs[0], device))
        steps[name] = one
    _time(steps, results, itertools.cycle(inputs), device, seconds)
    return results


def input_sets(case: Case, device: str) -> int:
    """How many copies of the inputs it takes to fill the last-level cache twice over (large shapes only)."""
    if not case.is_large:
        return 1
    return min(16, max(2, math.ceil(2 * llc_bytes(device) / (2 * case.tensor_bytes))))


def peak_bytes(one: Step, inputs: Inputs, device: str) -> int:
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        one(inputs)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with _quiet_stderr(), torch.autograd.profiler.profile(profile_memory=True) as profile:
        one(inputs)
    changes = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate((event.nbytes() for event in changes), initial=0))


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """The profiler's library writes two lines at every start, from C++; here it starts hundreds of times."""
    sys.stderr.flush()
    saved = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _time(steps: dict[str, Step], results: dict[str, Result], inputs, device: str, seconds: float) -> None:
    batch = {name: _batch(one, inputs, device) for name, one in steps.items()}
    names = list(steps)
    shuffle = random.Random(0).shuffle
    collecting = gc.isenabled()
    gc.disable()  # a collection in the middle of a batch would be charged to whoever runs just then
    gc.freeze()  # and between repetitions only what the contenders left needs looking at
    try:
        start = time.perf_counter()
        for repetition in range(MAX_REPETITIONS):
            if repetition >= MIN_REPETITIONS and time.perf_counter() - start > seconds:
                break
            shuffle(names)
            for name in names:
                if batch[name] > WARM_CALLS:
                    _once(steps[name], inputs, WARM_CALLS, device)
                results[name].seconds.append(_once(steps[name], inputs, batch[name], device) / batch[name])
            gc.collect()
    finally:
        gc.unfreeze()
        if collecting:
            gc.enable()


def _batch(one: Step, inputs, device: str) -> int:
    """How many calls of a warm contender last about BATCH_SECONDS."""
    seconds = _once(one, inputs, 1, device)
    if seconds < 10 * BATCH_SECONDS:
        seconds = min(seconds, _once(one, inputs, WARM_CALLS, device) / WARM_CALLS)
    return max(1, round(BATCH_SECONDS / seconds))


def _once(one: Step, inputs, count: int, device: str) -> float:
    """Seconds for ``count`` calls, on the device's own clock where it has one."""
    if device == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        for _ in range(count):
            one(next(inputs))
        end.record()
        end.synchronize()
        return max(begin.elapsed_time(end) / 1e3, 1e-7)
    begin = time.perf_counter()
    for _ in range(count):
        one(next(inputs))
    return max(time.perf_counter() - begin, 1e-7)


def _release(inputs: list[Inputs], device: str) -> None:
    for each in inputs:
        each.student.grad = None
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
