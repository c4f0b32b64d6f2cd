"""``akd-reproduce figure2``: the toy regression of section 3.1 of the paper.

    f(x) = sin 3 pi x + sin 6 pi x + sin 9 pi x

A teacher with 100 hidden sigmoid neurons learns f from random points; students with 10 learn from the teacher.

What the paper leaves open was chosen on the teacher and on the student without KD, whose mean errors end below 1 % of
f's variance, and not by Annealing-KD's result: 200 points in [0, 1], where 10 neurons can follow f; all of them in
one batch, so that a step is an epoch; Adam with one cosine schedule for the whole training. The students of one seed
have the same points, the same teacher, the same initial weights and the same number of steps.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from akd_ext import AnnealingSchedule, annealed_mse_loss
from akd_ext.annealing_functions import linear
from akd_ext.reproduce import report
from akd_ext.train.reporting.style import BLUE, GREEN, heading, new_figure, plain
from akd_ext.train.system.errors import RunError
from akd_ext.train.system.versions import versions

from . import command as figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS, GRID = 200, 1001
TEACHER_WIDTH, STUDENT_WIDTH = 100, 10
LEARNING_RATE = 0.1
TAU_MAX = 10
SHOWN = (10, 5, 1)  # the temperatures of panels (c), (d) and (e)
KD_LAMBDA = 0.5  # equation 1; in a regression both of its terms are squared errors

ANNEALING, KD, ALONE = "Annealing-KD, T = 1", "regular KD", "without KD"
# For numbers: where the text calls panel (f) one thing, the caption calls it the other.
CONTRADICTION = (
    "Panel (f) is a student trained with regular KD in the paper's text and without KD in its caption. The picture "
    f"shows the caption's; the numbers have both (KD: lambda {KD_LAMBDA}, squared errors to the data and to the teacher)."
)


def f(x: Tensor) -> Tensor:
    """The function to learn.

    >>> f(torch.tensor([0.0, 0.5])).round(decimals=6)
    tensor([0., 0.])
    """
    return sum(torch.sin(k * math.pi * x) for k in (3, 6, 9))


class Networks(nn.Module):
    """One network per seed, side by side: a hidden layer of ``width`` sigmoid neurons, [seeds, n, 1] -> [seeds, n, 1].

    They share no weights: a loss that is a sum over seeds trains each as if it were alone.
    """

    def __init__(self, width: int, generators: list[torch.Generator]):
        super().__init__()

        def uniform(fan_in: int, *shape: int) -> nn.Parameter:  # as nn.Linear begins
            drawn = [torch.rand(shape, generator=generator) for generator in generators]
            return nn.Parameter((2 * torch.stack(drawn) - 1) / math.sqrt(fan_in))

        self.weight1, self.bias1 = uniform(1, 1, width), uniform(1, 1, width)
        self.weight2, self.bias2 = uniform(width, width, 1), uniform(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        standardized = (x - 0.5) * math.sqrt(12)  # mean and variance of the points' distribution
        return torch.baddbmm(self.bias2, torch.sigmoid(standardized * self.weight1 + self.bias1), self.weight2)


def train(networks: Networks, loss: Callable[[int], Tensor], steps: int) -> Iterator[int]:
    """Minimise ``loss(step)``; gives the number of every step when it is done."""
    optimizer = torch.optim.Adam(networks.parameters(), lr=LEARNING_RATE, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        optimizer.zero_grad()
        loss(step).backward()
        optimizer.step()
        schedule.step()
        yield step


@dataclass(frozen=True)
class Curves:
    """The points, and what every network answers on ``grid``: [seeds, n, 1]."""

    points: Tensor
    grid: Tensor
    teacher: Tensor
    annealed: dict[int, Tensor]  # the student of Annealing-KD at the end of each temperature
    kd: Tensor
    alone: Tensor


def curves(seeds: Sequence[int], steps: int) -> Curves:
    """Train a teacher and three students per seed, each for ``steps`` steps.

    Raises:
        RunError: a training diverged.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    x = torch.stack([torch.rand(POINTS, 1, generator=generator) for generator in generators])
    y, grid = f(x), torch.linspace(0, 1, GRID).reshape(1, GRID, 1)
    teacher, student = Networks(TEACHER_WIDTH, generators), Networks(STUDENT_WIDTH, generators)

    def error(networks: Networks, goal: Tensor, phi: float = 1.0) -> Tensor:
        return annealed_mse_loss(networks(x), goal, phi, reduction="sum") / POINTS

    def answers(networks: Networks, name: str) -> Tensor:
        with torch.no_grad():
            answer = networks(grid)
        if not answer.isfinite().all():
            raise RunError(f"the training of '{name}' diverged")
        return answer

    def trained(networks: Networks, loss: Callable[[int], Tensor], name: str) -> Tensor:
        for _ in train(networks, loss, steps):
            pass
        return answers(networks, name)

    taught_curve = trained(teacher, lambda step: error(teacher, y), "teacher")
    with torch.no_grad():
        taught = teacher(x)

    annealed, kd, alone = (copy.deepcopy(student) for _ in range(3))
    schedule = AnnealingSchedule(TAU_MAX, steps)
    by_temperature = {}
    for step in train(annealed, lambda step: error(annealed, taught, schedule.phi(step)), steps):
        if step + 1 == steps or schedule.temperature(step + 1) != schedule.temperature(step):
            by_temperature[schedule.temperature(step)] = answers(annealed, ANNEALING)

    return Curves(
        points=x,
        grid=grid,
        teacher=taught_curve,
        annealed=by_temperature,
        kd=trained(kd, lambda step: (1 - KD_LAMBDA) * error(kd, y) + KD_LAMBDA * error(kd, taught), KD),
        alone=trained(alone, lambda step: error(alone, y), ALONE),
    )


def phi(T: int) -> float:
    """How strongly the teacher counts at temperature T."""
    return linear(T, TAU_MAX)


def errors(c: Curves) -> dict[str, dict[str, list[float]]]:
    """Mean squared errors on the grid by curve, goal and seed. Goals: the teacher, f, and for T > 1 Phi(T) teacher."""

    def mse(curve: Tensor, goal: Tensor) -> list[float]:
        return (curve - goal).square().mean((1, 2)).tolist()

    annealed = {f"Annealing-KD, T = {T}": c.annealed[T] for T in SHOWN}
    found = {
        name: {"teacher": mse(curve, c.teacher), "f": mse(curve, f(c.grid))}
        for name, curve in {"teacher": c.teacher, **annealed, KD: c.kd, ALONE: c.alone}.items()
    }
    for T, name in zip(SHOWN, annealed, strict=True):
        found[name]["annealed teacher"] = mse(c.annealed[T], phi(T) * c.teacher)
    return found


def compare(found: dict[str, dict[str, list[float]]], other: str) -> dict[str, Any]:
    """How much nearer to the teacher Annealing-KD is than another student: negative where it is nearer."""
    ours, theirs = found[ANNEALING]["teacher"], found[other]["teacher"]
    nearer = sum(a < b for a, b in zip(ours, theirs, strict=True))
    return {**report.welch_difference(ours, theirs), "nearer_with": nearer}


def table(found: dict[str, dict[str, list[float]]]) -> str:
    """The numbers for a terminal, and what they say about the paper's claim."""

    def cell(values: list[float]) -> str:
        value = report.mean_and_std(values)
        return f"{value['mean']:.5f}" + ("" if value["std"] is None else f" ± {value['std']:.5f}")

    seeds = len(found["teacher"]["f"])
    lines = [f"{f'mean squared error, {seeds} seeds':<28}{'to the teacher':>20}{'to f':>20}"]
    for name, title in {
        "teacher": "teacher",
        ANNEALING: ANNEALING,
        KD: f"{KD} (text)",
        ALONE: f"{ALONE} (caption)",
    }.items():
        first = "" if name == "teacher" else cell(found[name]["teacher"])
        lines.append(f"{title:<28}{first:>20}{cell(found[name]['f']):>20}")
    lines.append("Does Annealing-KD match the teacher better? (difference and its 95 % interval over seeds)")
    for other in (KD, ALONE):
        difference = compare(found, other)
        mean, half = difference["mean"], difference["half_width"]
        if half is None:
            verdict = f"one seed cannot say: {mean:+.5f}"
        else:
            word = "not shown" if abs(mean) <= half else "yes" if mean < 0 else "no, worse"
            verdict = f"{word}: {mean:+.5f} [{mean - half:+.5f}, {mean + half:+.5f}]"
        lines.append(f"  than {other}: {verdict}, nearer with {difference['nearer_with']} of {seeds} seeds")
    return "\n".join(lines)


def draw(c: Curves, found: dict[str, dict[str, list[float]]], seed: int) -> Figure:
    """The six panels of the paper's figure, for the first of the seeds."""
    figure = new_figure(9.5, 5.6)
    axes = figure.subplots(2, 3, sharex=True, sharey=True)
    points, x = c.points[0].flatten(), c.grid.flatten()
    a, b, *annealed, alone = axes.flat

    def teacher(axis, T: int, **style) -> None:
        axis.plot(x, phi(T) * c.teacher[0].flatten(), color=GREEN, **style)

    def student(axis, curve: Tensor, **style) -> None:
        axis.plot(x, curve[0].flatten(), "--", color=BLUE, **style)

    a.plot(points, f(points), "o", color="0.55", ms=3, label="data")
    teacher(a, 1, label=r"teacher, times $\Phi(T)$ in (b) to (e)")
    heading(a, "(a) data, trained teacher", size=9)
    for T in range(TAU_MAX, 0, -1):
        teacher(b, T, alpha=0.2 + 0.8 * phi(T), lw=1.2)
    heading(b, f"(b) annealed, T = {TAU_MAX} (faint) to 1", size=9)
    for axis, letter, T in zip(annealed, "cde", SHOWN, strict=True):
        teacher(axis, T)
        student(axis, c.annealed[T])
        error = found[f"Annealing-KD, T = {T}"]["annealed teacher"][0]
        heading(axis, f"({letter}) student after T = {T}, MSE {error:.2g}", size=9)
    teacher(alone, 1)
    student(alone, c.alone, label="student")
    heading(alone, f"(f) without KD, MSE {found[ALONE]['teacher'][0]:.2g}", size=9)
    for axis in axes.flat:
        plain(axis, grid="both")
    for axis in axes[1]:
        axis.set_xlabel("x")
    # Below the panels: within them it would cover the curves.
    figure.legend(loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    figure.suptitle(f"Toy regression of section 3.1, seed {seed}; MSE: student to the curve beside it", fontsize=11)
    return figure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``akd-reproduce figure2``."""
    parser.add_argument("--seeds", type=figures.positive, default=3, metavar="N",
                        help="for the numbers, seeds 0 to N-1; the picture shows seed 0 (default 3)")  # fmt: skip
    parser.add_argument("--steps", type=_steps, default=10_000, metavar="N",
                        help="how long every network is trained (default 10000)")  # fmt: skip


def _steps(text: str) -> int:
    value = int(text)
    if value < TAU_MAX:
        raise argparse.ArgumentTypeError(f"{value} is less than one step for each of the {TAU_MAX} temperatures")
    return value


def run(args: argparse.Namespace) -> int:
    """Train, print the table, write ``figure2.png`` and ``figure2.json``."""
    c = curves(range(args.seeds), args.steps)
    found = errors(c)
    print(table(found))
    data = {
        "command": args.command,
        "versions": versions(torch.device("cpu")),
        "note": CONTRADICTION,
        "steps": args.steps,
        "seeds": list(range(args.seeds)),
        "mse": {
            name: {goal: {**report.mean_and_std(values), "by_seed": values} for goal, values in goals.items()}
            for name, goals in found.items()
        },
        "annealing_kd_minus_other_to_teacher": {other: compare(found, other) for other in (KD, ALONE)},
    }
    figures.write(draw(c, found, seed=0), data, args.output_dir, "figure2")
    return 0


def main(argv: Sequence[str]) -> int:
    """Run ``akd-reproduce figure2`` with the given arguments and return its exit code."""
    about = "The toy regression of section 3.1 of the paper: six panels, and how near each student is to its teacher."
    return figures.command("figure2", about, add_arguments, run, argv)
