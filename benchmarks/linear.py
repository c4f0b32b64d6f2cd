"""The squared error over a large vocabulary, every exact way: seconds, peak memory, error.

    python -m benchmarks.linear           # about 20 minutes on two idle cores; goes on where it was stopped
    python -m benchmarks.linear --quick   # a minute, tiny shapes

The contenders take turns, in random order, within every round; forward and backward. Peak memory is that of a process of
its own, beyond the inputs. The error is that of the gradient by 64 hidden states, against float64. Writes
``benchmarks/results/linear-cpu.{md,json}``; a row, or peak, that the JSON has already is not measured again. Liger Kernel's own code is a
contender where ``pip install --no-deps liger-kernel`` is. Asserts no time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

import akd_ext
from akd_ext.linear import costs
from benchmarks import liger, machine
from benchmarks.kernels import RESULTS

PLAIN, COMPILED, LIGER, PACKAGE = (
    "plain",
    "torch.compile",
    "chunked, Liger's scheme",
    "chunked, the package liger-kernel",
)
CHUNKED, GRAM, AUTO = "ours, chunked", "ours, Gram", "ours, auto"
CONTENDERS = (PLAIN, COMPILED, LIGER, PACKAGE, CHUNKED, GRAM, AUTO)
OURS = (CHUNKED, GRAM, AUTO)
PHI, PROBED = 0.7, 64


class Row(NamedTuple):
    tokens: int
    hidden: int
    teacher_hidden: int
    classes: int
    head: str = "learns"  # or "frozen"
    micro_batches: int = 1
    peak: bool = False

    def __str__(self) -> str:
        parts = f", {self.micro_batches} micro-batches" if self.micro_batches > 1 else ""
        return f"{self.tokens:,} tokens, H {self.hidden}, Ht {self.teacher_hidden}, V {self.classes:,}, head {self.head}{parts}"


ROWS = (
    Row(128, 512, 512, 65536),
    Row(512, 512, 1024, 65536),
    Row(2048, 512, 512, 65536),
    Row(2048, 256, 256, 65536, peak=True),
    Row(8192, 512, 512, 65536),
    Row(8192, 512, 1024, 65536, peak=True),
    Row(8192, 512, 1024, 65536, micro_batches=8),
    Row(1024, 512, 512, 65536, head="frozen"),
    Row(8192, 256, 512, 32768, head="frozen", micro_batches=8),
    Row(32768, 256, 256, 32768),
    Row(512, 1024, 1024, 131072),
    Row(1024, 1024, 1024, 262144),
    Row(256, 2048, 2048, 131072),
)
QUICK = (Row(64, 32, 48, 1000), Row(512, 32, 32, 1000), Row(512, 32, 48, 1000, "frozen", 8))


class Inputs:
    def __init__(self, row: Row) -> None:
        generator = torch.Generator().manual_seed(0)

        def made(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        self.row = row
        self.hidden = made(row.tokens, row.hidden).requires_grad_()
        self.weight = (made(row.classes, row.hidden) / row.hidden**0.5).requires_grad_(row.head == "learns")
        self.teacher_hidden = made(row.tokens, row.teacher_hidden)
        self.teacher_weight = made(row.classes, row.teacher_hidden) / row.teacher_hidden**0.5
        self.modules: dict[str, akd_ext.LinearAnnealingKDLoss] = {}

    def parts(self) -> list[slice]:
        size = self.row.tokens // self.row.micro_batches
        return [slice(start, start + size) for start in range(0, self.row.tokens, size)]


def plain(hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor) -> Tensor:
    with torch.no_grad():
        target = F.linear(teacher_hidden, teacher_weight)
    return F.mse_loss(F.linear(hidden, weight), PHI * target, reduction="sum")


class Liger(torch.autograd.Function):
    """Liger's scheme: logits of 256 tokens at a time, the gradients made in forward."""

    @staticmethod
    def forward(ctx, hidden, weight, teacher_hidden, teacher_weight):
        loss, by_hidden = hidden.new_zeros(()), torch.empty_like(hidden)
        by_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for start in range(0, hidden.shape[0], 256):
            part = slice(start, start + 256)
            difference = F.linear(hidden[part], weight)
            difference.sub_(F.linear(teacher_hidden[part], teacher_weight), alpha=PHI)
            loss += difference.square().sum()
            difference.mul_(2.0)
            torch.mm(difference, weight, out=by_hidden[part])
            if by_weight is not None:
                by_weight.addmm_(difference.t(), hidden[part])
        ctx.gradients = by_hidden, by_weight
        return loss

    @staticmethod
    def backward(ctx, upstream):
        gradients, ctx.gradients = ctx.gradients, None
        if upstream.item() != 1.0:
            gradients = [None if x is None else x.mul_(upstream) for x in gradients]
        return *gradients, None, None


def functions() -> dict[str, Any]:
    others = {PLAIN: plain, COMPILED: torch.compile(plain), LIGER: Liger.apply, PACKAGE: liger.linear_mse(PHI)}
    return {name: function for name, function in others.items() if function is not None}


def step(contender: str, inputs: Inputs, others: dict[str, Any]) -> None:
    """One optimizer step's loss and gradients."""
    inputs.hidden.grad = inputs.weight.grad = None
    if contender in OURS:
        _our_step(contender, inputs)
        return
    function = others[contender]
    for part in inputs.parts():
        loss = function(inputs.hidden[part], inputs.weight, inputs.teacher_hidden[part], inputs.teacher_weight)
        (loss / inputs.row.tokens).backward()


def _our_step(contender: str, inputs: Inputs) -> None:
    way = {CHUNKED: "chunked", GRAM: "gram", AUTO: "auto"}[contender]
    if way not in inputs.modules:  # a frozen teacher's matrix, and a frozen student's, are made once
        loss = akd_ext.LinearAnnealingKDLoss(
            10, lambda t, tau: PHI if t > 1 else 1.0, teacher_weight=inputs.teacher_weight, reduction="batchmean",
            implementation=way,
        )  # fmt: skip
        inputs.modules[way] = loss
    loss, row = inputs.modules[way], inputs.row
    block = loss.accumulate(inputs.weight, row.tokens) if row.micro_batches > 1 else contextlib.nullcontext()
    with block:
        for part in inputs.parts():
            loss(inputs.hidden[part], inputs.weight, inputs.teacher_hidden[part]).backward()


def gradient_error(inputs: Inputs) -> float:
    """Of the gradient by the first hidden states, relative, against float64."""
    some = slice(0, PROBED)
    student, teacher = inputs.weight.detach().double(), inputs.teacher_weight.double()
    difference = inputs.hidden[some].detach().double() @ student.t()
    difference -= float(torch.tensor(PHI)) * (inputs.teacher_hidden[some].double() @ teacher.t())
    exact = 2 / inputs.row.tokens * (difference @ student)
    return float((inputs.hidden.grad[some].double() - exact).norm() / exact.norm())


def fits(contender: str, row: Row) -> bool:
    """Whether the whole logits have room: plain has five such tensors at its peak."""
    if contender not in (PLAIN, COMPILED):
        return True
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 5 * 4 * row.tokens // row.micro_batches * row.classes < 0.8 * available


def measure(row: Row, rounds: int) -> dict[str, dict[str, Any]]:
    inputs, others = Inputs(row), functions()
    found: dict[str, dict[str, Any]] = {}
    order, shuffle = (
        [name for name in CONTENDERS if fits(name, row) and (name in others or name in OURS)],
        random.Random(0).shuffle,
    )
    for name in order:  # not timed
        step(name, inputs, others)
        found[name] = {"seconds": [], "gradient_error": gradient_error(inputs)}
    for number in range(rounds):
        shuffle(order)
        for name in order:
            begin = time.perf_counter()
            step(name, inputs, others)
            found[name]["seconds"].append(time.perf_counter() - begin)
        print(f"{row}: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return found


def peak_in_a_process(contender: str, row: Row) -> float:
    """With freed tensors given back at once: else the peak has up to 40 MiB of them, other ones in every process."""
    command = [sys.executable, "-m", "benchmarks.linear", "--peak_of", contender, json.dumps(row)]
    at_once = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=machine.ROOT, env=at_once)
    return float(done.stdout.split()[-1])


def peak(contender: str, row: Row) -> float:
    """MiB beyond the inputs, at the highest, in one step."""
    inputs, others = Inputs(row), functions()
    warm = (contender, GRAM) if contender == AUTO else (contender,)  # so few tokens are logits' for auto
    for name in warm:  # libraries, not matrices
        step(name, Inputs(row._replace(tokens=row.micro_batches * 8)), others)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    step(contender, inputs, others)
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def ratio(found: dict[str, dict[str, Any]], other: str, name: str = AUTO) -> float | None:
    """How many times faster ``name`` is, the median of the ratios within the rounds."""
    if other not in found or name not in found:
        return None
    return statistics.median(
        a / b for a, b in zip(found[other]["seconds"], found[name]["seconds"], strict=True)
    )  # fmt: skip


def aims(results: dict[Row, dict[str, dict[str, Any]]]) -> list[tuple[str, str, str]]:
    """(aim, met, measured)"""
    rows = {row._replace(peak=False): found for row, found in results.items()}
    wanted = [
        (Row(8192, 512, 1024, 65536), PLAIN, 10), (Row(8192, 512, 1024, 65536), COMPILED, 8),
        (Row(2048, 512, 512, 65536), LIGER, 3.5), (Row(8192, 512, 512, 65536), LIGER, 10),
        (Row(1024, 512, 512, 65536, "frozen"), LIGER, 50),
    ]  # fmt: skip
    lines = []
    for row, other, least in wanted:
        value = ratio(rows[row], other) if row in rows else None
        met = "-" if value is None else "yes" if value >= least else "no"
        lines.append((f"{row}: against {other} >= {least:g}", met, "-" if value is None else f"{value:.1f}"))
    for row, found in results.items():
        for other, most in ((PLAIN, 0.1), (LIGER, 0.6)):
            if other in found and "peak_mib" in found[other] and found[other]["peak_mib"] > 0:
                value = found[AUTO]["peak_mib"] / found[other]["peak_mib"]
                met = "yes" if value <= most else "no"
                lines.append((f"{row}: peak memory against {other} <= {most:g}", met, f"{value:.3f}"))
    worst = [(1 / min(r for n in found if (r := ratio(found, n)) is not None), row) for row, found in results.items()]
    if worst:
        value, row = max(worst)
        met = "no" if value > 1.1 else "-" if set(ROWS) - set(results) else "yes"  # not shown before every row is there
        lines.append(("never slower than the best exact way by more than 10 %", met,
                      f"worst: {value:.2f} times the best ({row})"))  # fmt: skip
    return lines


def markdown(
    results: dict[Row, dict[str, dict[str, Any]]], measured: dict[Row, str], facts: dict[str, str], notes: list[str]
) -> list[str]:
    lines = ["# Squared error over a large vocabulary, on cpu", "", *(f"- {k}: {v}" for k, v in facts.items()), ""]
    lines += [f"> {note}\n" for note in notes]
    lines += ["## Aims", "", "| aim | met | measured |", "|---|---|---|"]
    lines += [f"| {aim} | {met} | {measured} |" for aim, met, measured in aims(results)]
    lines += ["", "## Measurements", "", "float32, forward and backward of one optimizer step. Medians over the rounds, the "
              "fastest and slowest in brackets; a ratio is taken within each round. *Break-even*: tokens from which on `auto` takes "
              "the Gram way. Rows that were measured at an older commit have its choice. Whole logits are left out where five of "
              "them have no room."]  # fmt: skip
    for row, found in results.items():
        frozen = row.head == "frozen"
        basis = "difference" if row.hidden == row.teacher_hidden else "plain"
        even = costs.break_even(
            costs.Problem(
                1, row.hidden, row.teacher_hidden, row.classes, head_gradient=not frozen, basis=basis,
                grams_known=frozen, teacher_gram_known=True,
            )
        )  # fmt: skip
        lines += ["", f"### {row}", "", f"Break-even: {even} tokens. Measured {measured[row]}.", ""]
        lines += [
            "| contender | seconds | ours, auto, is faster by | peak MiB | error of the gradient |",
            "|---|---|---|---|---|",
        ]
        for name, value in found.items():
            seconds = value["seconds"]
            said = f"{statistics.median(seconds):.3f} [{min(seconds):.3f}, {max(seconds):.3f}]"
            memory = f"{value['peak_mib']:.0f}" if "peak_mib" in value else ""
            lines.append(f"| {name} | {said} | {ratio(found, name):.2f} | {memory} | {value['gradient_error']:.1e} |")
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to try this out")
    parser.add_argument("--again", action="store_true", help="measure all rows, also those that are there")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    parser.add_argument("--peak_of", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    if options.peak_of:
        name, row = options.peak_of
        print(peak(name, Row(*json.loads(row))))
        return 0
    facts, notes = machine.describe("cpu"), []
    if os.getloadavg()[0] > 0.5:
        notes.append(f"The machine was not idle: load average {os.getloadavg()[0]:.2f} before the run.")
    path = options.out / "linear-cpu.json"
    results, measured = ({}, {}) if options.again or not path.exists() else read(path)
    options.out.mkdir(parents=True, exist_ok=True)
    for row in QUICK if options.quick else ROWS:
        now = f"{machine.describe('cpu')['date']}, at {facts['commit']}"
        if row not in results:
            measured[row], results[row] = now, measure(row, options.rounds)
        without = [name for name, found in results[row].items() if row.peak and "peak_mib" not in found]
        for name in without:
            results[row][name]["peak_mib"] = peak_in_a_process(name, row)
        if without and measured[row] != now:
            measured[row] += f"; peaks {now}"
        record = [{**key._asdict(), "measured": measured[key], "contenders": results[key]} for key in results]
        lines = markdown(results, measured, facts, notes)
        path.write_text(json.dumps({"facts": facts, "notes": notes, "rows": record}, indent=1) + "\n", encoding="utf-8")
        (options.out / "linear-cpu.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    return 0


def read(path: Path) -> tuple[dict[Row, dict[str, dict[str, Any]]], dict[Row, str]]:
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    keys = [Row(*(row[name] for name in Row._fields)) for row in rows]
    results = {key: row["contenders"] for key, row in zip(keys, rows, strict=True)}
    return results, {key: row["measured"] for key, row in zip(keys, rows, strict=True)}


if __name__ == "__main__":
    sys.exit(main())
