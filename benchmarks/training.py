"""A training step from one YAML, in a loop like that of torchdistill's script and in akd-train's.

    python -m benchmarks.training --data_dir DIR                # DIR holds torchvision's CIFAR-10; about 12 minutes
    python -m benchmarks.training --data_dir DIR --rounds 2     # shorter

The student is plain_cnn2, the teacher ResNet-56, as in torchdistill_configs/cifar10/cpu/annealing_kd.yaml; without
``--teacher_ckpt`` its weights are random, which changes no time. torchdistill's loop reads torchvision's CIFAR10 with
its transforms, sample by sample in two worker processes, reads the loss at every step and runs the teacher at every
step; ours is what akd-train does with the YAML. Each has a process of its own and they take turns, in random order,
within every round. Writes ``benchmarks/results/training-cpu.{md,json}``. Asserts no time.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from akd_ext.reproduce.recipes import config_dir
from benchmarks import machine
from benchmarks.kernels import RESULTS
from benchmarks.training_loops import CASES, OURS, PLAIN, SKIPPED, WARM, Case, Options, serve, yaml_changes

EPOCHS = 20  # stage I of the shipped YAML, over which filling the cache is spread
STAGE_1, AUGMENTED = CASES[:2]
# The aims, ours against ...
AIMS = ((STAGE_1, PLAIN, 12.0), (AUGMENTED, PLAIN, 1.5), *((case, SKIPPED, 1.5) for case in CASES[2:]))
FIRST_STEP_SECONDS = 10.0


@dataclasses.dataclass
class Samples:
    """One contender in one case: seconds a step and images a second, an entry a round."""

    step: list[float] = dataclasses.field(default_factory=list)
    speed: list[float] = dataclasses.field(default_factory=list)
    epoch_steps: int = 0

    @property
    def epoch(self) -> float:
        """Seconds of an epoch, extrapolated from the steps."""
        return statistics.median(self.step) * self.epoch_steps


Results = dict[Case, dict[str, Samples]]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, metavar="DIR", help="folder with torchvision's CIFAR-10")
    parser.add_argument("--teacher_ckpt", metavar="FILE", help="weights of the ResNet-56 with option-A shortcuts")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=60, help="timed steps a round; a sixth where the teacher runs")
    parser.add_argument("--teacher_depth", type=int, default=56, help="another depth is for trying this out")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args(argv)
    facts, notes = machine.describe("cpu"), []
    if os.getloadavg()[0] > 0.5:
        notes.append(f"The machine was not idle: load average {os.getloadavg()[0]:.2f} before the run.")
    with tempfile.TemporaryDirectory() as cache_dir:
        setup = Options(
            os.path.abspath(options.data_dir), cache_dir, options.teacher_ckpt, options.teacher_depth,
            options.batch_size, torch.get_num_threads(),
        )  # fmt: skip
        results, fill = measure(setup, options.rounds, options.steps)
        first_step = seconds_to_first_step(setup, rounds=3)
    lines = markdown(results, fill, first_step, facts, notes, options.steps)
    print("\n".join(lines))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "training-cpu.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    record = as_record(results, fill, first_step, facts, notes)
    (options.out / "training-cpu.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


def measure(setup: Options, rounds: int, steps: int) -> tuple[Results, float]:
    """The samples of every contender in every case, and the seconds of filling the cache."""
    results: Results = {}
    with served(PLAIN, setup) as plain, served(OURS, setup) as ours:
        server = {PLAIN: plain, SKIPPED: plain, OURS: ours}
        for case in CASES:
            names = (PLAIN, OURS) if case.stage == 1 else (PLAIN, SKIPPED, OURS)
            results[case] = {name: Samples() for name in names}
        pairs = [(case, name) for case, row in results.items() for name in row]
        before = {(case, name): server[name]((name, case, 0))[0] for case, name in pairs}
        shuffle = random.Random(0).shuffle
        for number in range(rounds):
            shuffle(pairs)
            for case, name in pairs:
                count = max(1, steps // 6) if case.runs_teacher(name) else steps
                seconds, images, epoch_steps = server[name]((name, case, count))
                samples = results[case][name]
                samples.step.append(seconds / count)
                samples.speed.append(images / seconds)
                samples.epoch_steps = epoch_steps
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return results, before[STAGE_1, OURS]


@contextlib.contextmanager
def served(contender: str, setup: Options) -> Iterator[Any]:
    """A function that sends a request to ``serve`` in a new process and returns the answer."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=serve, args=(there, contender, setup))
    process.start()
    there.close()  # so that the end of the process is the end of the pipe

    def ask(request: Any) -> Any:
        here.send(request)
        answer = here.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    try:
        yield ask
    finally:
        with contextlib.suppress(OSError):
            here.send(None)
        process.join()


def seconds_to_first_step(setup: Options, rounds: int) -> list[float]:
    """From starting ``akd-train`` with augmented stage I to the line that it logs after its first training step."""
    changes = [*yaml_changes(setup, AUGMENTED), "train.log_freq=1"]
    command = [sys.executable, "-m", "akd_ext.train.cli", "--config",
               str(config_dir() / "cifar10" / "cpu" / "annealing_kd.yaml"), "--device", "cpu",
               "--output_dir", os.path.join(setup.cache_dir, "run")]  # fmt: skip
    command += [part for change in changes for part in ("--set", change)]
    found = []
    for _ in range(rounds):
        begin, said = time.perf_counter(), []
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, encoding="utf-8")
        for line in process.stderr:
            said.append(line)
            if "step 1/" in line:
                found.append(time.perf_counter() - begin)
                break
        else:
            raise RuntimeError(f"akd-train made no step: {''.join(said[-3:])}")
        process.kill()
        process.communicate()
    return found


def quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    first, median, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, median, third


def ratios(row: dict[str, Samples], other: str) -> tuple[float, float, float]:
    """How many times faster than ``other`` ours is: quartiles of the ratios within the rounds."""
    return quartiles([a / b for a, b in zip(row[other].step, row[OURS].step, strict=True)])


def whole_run(results: Results, fill: float) -> tuple[float, float]:
    """Seconds of stage I without augmentation, EPOCHS epochs: torchdistill's, and ours with the cache filled first."""
    row = results[STAGE_1]
    return EPOCHS * row[PLAIN].epoch, fill + EPOCHS * row[OURS].epoch


def aims(results: Results, fill: float, first_step: list[float]) -> list[tuple[str, bool, str]]:
    found = []
    for case, other, least in AIMS:
        first, median, third = ratios(results[case], other)
        text = f"{case}, against {other}: >= {least:g}"
        found.append((text, median >= least, f"{median:.2f} [{first:.2f}, {third:.2f}]"))
    slowest = max(first_step)
    found.append((f"akd-train, start to first step: < {FIRST_STEP_SECONDS:g} s", slowest < FIRST_STEP_SECONDS,
                  f"{statistics.median(first_step):.1f} s, slowest {slowest:.1f} s"))  # fmt: skip
    return found


def markdown(results: Results, fill: float, first_step: list[float], facts, notes: list[str], steps: int) -> list[str]:
    lines = ["# Training on cpu", "", *(f"- {label}: {value}" for label, value in facts.items()), ""]
    lines += [f"> {note}\n" for note in notes]
    lines += ["## Aims", "", "| aim | met | measured |", "|---|---|---|"]
    lines += [f"| {text} | {'yes' if met else 'no'} | {said} |" for text, met, said in aims(results, fill, first_step)]
    theirs, ours = whole_run(results, fill)
    lines += [
        "",
        f"Filling the cache took {fill:.1f} s, once. {EPOCHS} epochs of {STAGE_1} take {theirs:.0f} s in torchdistill's "
        f"loop and {ours:.0f} s in ours, the cache included: **{theirs / ours:.1f} times** less. Validation is in "
        "neither.",
        "",
        "## Measurements",
        "",
        f"Medians over {len(next(iter(results[STAGE_1].values())).step)} rounds, quartiles in brackets. A round times "
        f"{steps} steps of every contender ({max(1, steps // 6)} where the teacher runs), after {WARM} that are not "
        "timed; the epoch is extrapolated from them. A ratio is taken within each round. *teacher skipped* is "
        "torchdistill's loop with `skip_forward` in the YAML, which is ours, too.",
    ]
    for case, row in results.items():
        lines += ["", f"### {case}", "", "| contender | images/s | epoch, s | ours is faster by |", "|---|---|---|---|"]
        for name, samples in row.items():
            first, median, third = quartiles(samples.speed)
            ratio = "" if name == OURS else "{1:.2f} [{0:.2f}, {2:.2f}]".format(*ratios(row, name))
            speed = f"{median:,.0f} [{first:,.0f}, {third:,.0f}]"
            lines.append(f"| {name} | {speed} | {samples.epoch:.1f} | {ratio} |")
    return lines


def as_record(results: Results, fill: float, first_step: list[float], facts, notes: list[str]) -> dict[str, Any]:
    theirs, ours = whole_run(results, fill)
    return {
        "facts": facts,
        "notes": notes,
        "aims": [dict(zip(("text", "met", "measured"), aim, strict=True)) for aim in aims(results, fill, first_step)],
        "fill_cache_seconds": fill,
        f"seconds_of_{EPOCHS}_epochs": {PLAIN: theirs, OURS: ours},
        "start_to_first_step_seconds": first_step,
        "results": [
            {
                "case": str(case), "contender": name, "seconds_per_step": samples.step,
                "images_per_second": samples.speed, "steps_per_epoch": samples.epoch_steps,
                "ours_is_faster_by": None if name == OURS else ratios(row, name),
            }
            for case, row in results.items()
            for name, samples in row.items()
        ],
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
