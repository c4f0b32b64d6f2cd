"""The tables of images: Tables 1 and 2 of the paper, digits, CIFAR-10 on a CPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .experiments import Experiment
from .jobs import Job, Options
from .plots import plot_curves, plot_table
from .report import Table, aligned, mean_and_std, plus_minus, welch_difference


def footnote(baseline: str, *, best_on_test: bool, epochs_scale: float, paper: bool = False) -> str:
    """What the columns of `markdown` mean, and what was not done as it should be."""
    chosen = (
        "*best*: the epoch with the best test accuracy, as in the paper, so it is optimistic"
        if best_on_test
        else "*best*: the epoch with the best validation accuracy, the first of them on a tie"
    )
    apart = "" if best_on_test else "The test split plays no part in either choice. "
    published = (
        " *paper*: as published, whether with augmentation it does not say; Continuation-KD by its own paper (2022)."
        if paper
        else ""
    )
    short = "" if epochs_scale == 1 else f"\n\n**Shortened protocol: every stage has {epochs_scale:g} of its epochs.**"
    return (
        "Test accuracy in per cent, mean ± sample standard deviation over n seeds of the student. "
        f"{chosen}; *last*: the last epoch. {apart}"
        f"*best - {baseline}*: the difference of the means, with its 95 % confidence interval over seeds (Welch's t)."
        f"{published}{short}"
    )


@dataclass(frozen=True)
class Row:
    """What one method reached: test accuracy in per cent by seed."""

    title: str
    parameters: int
    epochs: int
    best: dict[int, float]
    last: dict[int, float]
    paper: float | None = None


def summarize(rows: dict[str, Row], baseline: str) -> list[dict[str, Any]]:
    """Return a dict per row: n, mean and standard deviation of best and last, difference to a baseline.

    Standard deviations are None for one seed. Differences are None for the baseline and for another network than the
    baseline's; their interval is None when either row has one seed.

    Example:
        >>> rows = {"kd": Row("KD", 9, 1, {0: 90.0, 1: 92.0}, {0: 90.0, 1: 91.0})}
        >>> summarize(rows, "kd")[0]["best"]
        {'mean': 91.0, 'std': 1.4142135623730951}
    """

    def difference(name: str, row: Row) -> dict[str, Any] | None:
        other = rows.get(baseline)
        if name == baseline or other is None or row.parameters != other.parameters:
            return None
        return welch_difference(list(row.best.values()), list(other.best.values()))

    return [
        {
            "name": name,
            "title": row.title,
            "parameters": row.parameters,
            "epochs": row.epochs,
            "n": len(row.best),
            "best": mean_and_std(row.best.values()),
            "last": mean_and_std(row.last.values()),
            "difference": difference(name, row),
            "paper": row.paper,
            "seeds": {str(seed): {"best": row.best[seed], "last": row.last[seed]} for seed in sorted(row.best)},
        }
        for name, row in rows.items()
    ]


def markdown(summary: list[dict[str, Any]], baseline_title: str) -> str:
    """The table as Markdown, which also reads well on a terminal; columns are aligned."""
    header = ["method", "parameters", "epochs", "n", "best", "last", f"best - {baseline_title}"]
    cells = [
        [
            row["title"],
            f"{row['parameters']:,}",
            str(row["epochs"] or ""),
            str(row["n"]),
            plus_minus(row["best"]["mean"], row["best"]["std"]),
            plus_minus(row["last"]["mean"], row["last"]["std"]),
            _difference(row["difference"]),
        ]
        for row in summary
    ]
    if any(row["paper"] is not None for row in summary):
        header.append("paper")
        for row, cell in zip(summary, cells, strict=True):
            cell.append("" if row["paper"] is None else f"{row['paper']:.2f}")
    return aligned([header, *cells])


def _difference(difference: dict[str, Any] | None) -> str:
    if difference is None:
        return ""
    mean, half = difference["mean"], difference["half_width"]
    return f"{mean:+.2f}" if half is None else f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]"


def rows(experiment: Experiment, results: dict[Job, dict], options: Options) -> dict[str, Row]:
    """The rows of the table by run, in the table's order; runs without results are left out."""
    table = {}
    for name, row in experiment.rows.items():
        found = {job.seed: result for job, result in results.items() if job.run == name}
        if found:
            pretrained = options.pretrained if any(job.pretrained for job in results if job.run == name) else None
            table[name] = Row(
                title=f"{row.title} (given)" if pretrained else row.title,
                parameters=pretrained.parameters if pretrained else row.parameters,
                epochs=max(len(result["epochs"]) for result in found.values()),
                best={seed: result["best"]["test_accuracy"] for seed, result in found.items()},
                last={seed: result["last"]["test_accuracy"] for seed, result in found.items()},
                paper=row.paper,
            )
    return table


def build(experiment: Experiment, results: dict[Job, dict], options: Options) -> Table:
    """The table from what the runs reached."""
    baseline = experiment.rows[experiment.baseline].title
    summary = summarize(rows(experiment, results, options), experiment.baseline)
    note = footnote(
        baseline,
        best_on_test=experiment.best_on_test,
        epochs_scale=options.epochs_scale,
        paper=any(row["paper"] is not None for row in summary),
    )
    return Table(
        text=markdown(summary, baseline) + "\n" + note + "\n",
        head=f"{experiment.source[0].upper()}{experiment.source[1:]}.\n\n",
        data={"source": experiment.source, "epochs_scale": options.epochs_scale, "rows": summary},
    )


def draw(experiment: Experiment, table: Table, results: dict[Job, dict], output_dir: Path) -> None:
    """Write ``table.png`` and ``curves.png``, if there are students."""
    summary, title = table.data["rows"], f"akd-reproduce {experiment.name}"
    students = [row for row in summary if row["name"] not in experiment.teachers]
    if students:
        teachers = {row["title"]: row["best"]["mean"] for row in summary if row not in students}
        plot_table(students, output_dir / "table.png", title, teachers, experiment.baseline)
        curves = {
            row["title"]: [found["epochs"] for job, found in results.items() if job.run == row["name"]]
            for row in students
        }
        baseline = experiment.rows[experiment.baseline].title
        plot_curves(curves, output_dir / "curves.png", title, on_test=experiment.best_on_test, baseline=baseline)
