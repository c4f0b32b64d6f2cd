"""A results table from the accuracies of several seeds: summary, Markdown, plot, JSON."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from akd_ext.filesystem import replacing


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


def mean_and_std(values) -> dict[str, float | None]:
    """Mean and sample standard deviation (n - 1); the latter is None for one value."""
    values = list(values)
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else None}


def welch_difference(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Mean of ours - mean of theirs, and half the width of Welch's 95 % confidence interval; None without two of each.

    Unpaired: equal seeds mean equal initial weights only for methods that build the same teacher, because building one
    uses up random numbers. Where that makes two methods' results alike, the interval is too wide, not too narrow.

    Example:
        >>> welch_difference([92.0], [90.0])
        {'mean': 2.0, 'half_width': None}
    """
    half = None
    if min(len(ours), len(theirs)) > 1:
        from scipy.stats import t

        a, b = (statistics.variance(values) / len(values) for values in (ours, theirs))
        freedom = (a + b) ** 2 / (a**2 / (len(ours) - 1) + b**2 / (len(theirs) - 1)) if a + b else 1.0
        half = float(t.ppf(0.975, freedom)) * (a + b) ** 0.5
    return {"mean": statistics.fmean(ours) - statistics.fmean(theirs), "half_width": half}


def markdown(summary: list[dict[str, Any]], baseline_title: str) -> str:
    """The table as Markdown, which also reads well on a terminal; columns are aligned."""
    header = ["method", "parameters", "epochs", "n", "best", "last", f"best - {baseline_title}"]
    cells = [
        [
            row["title"],
            f"{row['parameters']:,}",
            str(row["epochs"] or ""),
            str(row["n"]),
            _plus_minus(row["best"]["mean"], row["best"]["std"]),
            _plus_minus(row["last"]["mean"], row["last"]["std"]),
            _difference(row["difference"]),
        ]
        for row in summary
    ]
    if any(row["paper"] is not None for row in summary):
        header.append("paper")
        for row, cell in zip(summary, cells, strict=True):
            cell.append("" if row["paper"] is None else f"{row['paper']:.2f}")
    return aligned([header, *cells])


def aligned(lines: list[list[str]]) -> str:
    """A Markdown table whose first line is the header: the first column to the left, the others to the right.

    >>> print(aligned([["a", "b"], ["long", "1"]]), end="")
    | a    | b |
    |------|--:|
    | long | 1 |
    """
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]

    def shown(line):
        cells = [v.ljust(w) if i == 0 else v.rjust(w) for i, (v, w) in enumerate(zip(line, widths, strict=True))]
        return "| " + " | ".join(cells) + " |"

    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([shown(lines[0]), rule, *map(shown, lines[1:])]) + "\n"


def _plus_minus(mean: float, std: float | None) -> str:
    return f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"


def _difference(difference: dict[str, Any] | None) -> str:
    if difference is None:
        return ""
    mean, half = difference["mean"], difference["half_width"]
    return f"{mean:+.2f}" if half is None else f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]"


def plot(summary: list[dict[str, Any]], path: Path, title: str, reference_lines: dict[str, float]) -> None:
    """Draw every seed as a dot, the mean with its standard deviation as a bar, and the teachers as vertical lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 1.4 + 0.6 * len(summary)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for kind, offset, colour in (("best", -0.13, "tab:blue"), ("last", 0.13, "tab:orange")):
        for place, row in enumerate(summary):
            seeds = [accuracies[kind] for accuracies in row["seeds"].values()]
            axes.plot(seeds, [place + offset] * len(seeds), "o", color=colour, alpha=0.4, markersize=5)
            label = f"{kind}: mean ± std" if place == 0 else None
            axes.errorbar(
                row[kind]["mean"], place + offset, xerr=row[kind]["std"] or 0.0,
                fmt="|", color=colour, markersize=12, capsize=3, label=label,
            )  # fmt: skip
    for (name, value), style in zip(reference_lines.items(), ("--", ":", "-."), strict=False):
        axes.axvline(value, color="0.4", linestyle=style, linewidth=1, label=f"{name}: {value:.2f}")
    axes.set_yticks(range(len(summary)), [row["title"] for row in summary])
    axes.invert_yaxis()
    axes.set_xlabel("test accuracy (%)")
    axes.set_title(title)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
