"""What all results tables share: means and intervals over seeds, Markdown, the two files."""

from __future__ import annotations

import json
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from akd_ext.filesystem import write_text

from .jobs import Job


@dataclass(frozen=True)
class Table:
    """What a table's module knows: the Markdown to show, what follows it in the file, its JSON."""

    text: str
    head: str = ""  # before it in table.md
    tail: str = ""  # after it
    data: dict[str, Any] = field(default_factory=dict)


def write_table(name: str, table: Table, results: dict[Job, dict], output_dir: Path) -> None:
    """Write ``table.md`` and ``table.json``, with the versions and the commands of the runs."""
    versions = next((found["versions"] for found in results.values() if found["versions"]), {})
    about = ", ".join(f"{package} {version}" for package, version in versions.items())
    text = f"# akd-reproduce {name}\n\n{table.head}{table.text}\n{table.tail}Measured with {about}.\n"
    write_text(output_dir / "table.md", text)
    commands = {job.label: ["akd-train", *job.arguments()] for job in results}
    data = {"experiment": name, **table.data, "versions": versions, "commands": commands}
    write_text(output_dir / "table.json", json.dumps(data, indent=1) + "\n")


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
        from scipy.stats import ttest_ind

        with warnings.catch_warnings():  # equal values are no loss of precision
            warnings.simplefilter("ignore", RuntimeWarning)
            interval = ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
        constant = len({*ours}) == len({*theirs}) == 1
        half = 0.0 if constant else float(interval.high - interval.low) / 2
    return {"mean": statistics.fmean(ours) - statistics.fmean(theirs), "half_width": half}


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


def plus_minus(mean: float, std: float | None) -> str:
    return f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"
