"""The pictures of a results table: who is better by how much, and how each of them got there."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

from akd_ext.train.reporting.style import BLUE, DARK, GREY, ORANGE, heading, new_figure, plain, save


def plot_table(
    students: list[dict[str, Any]], path: Path, title: str, teachers: dict[str, float], baseline: str
) -> None:
    """Draw a line per student: its mean with the standard deviation, and every seed as a faint dot.

    Args:
        students: rows of the table, see `image_table.summarize`.
        path: where the PNG goes.
        title: above it.
        teachers: their accuracies. They stand in the title: on the axis they would squeeze what is compared.
        baseline: the name of the row that the others are compared with.
    """
    figure = new_figure(7.2, 1.5 + 0.42 * len(students))
    axis = figure.subplots()
    plain(axis, grid="x")
    for place, row in enumerate(students):
        own = ORANGE if row["name"] == baseline else BLUE
        best, last = row["best"], row["last"]
        axis.plot([seed["best"] for seed in row["seeds"].values()], [place] * row["n"], "o", color=own, alpha=0.3, ms=4)
        axis.errorbar(best["mean"], place, xerr=best["std"] or 0.0, fmt="o", color=own, ms=7, capsize=4, lw=1.8,
                      label="best epoch: mean ± std, each seed faint" if place == 0 else None)  # fmt: skip
        axis.plot(last["mean"], place, "D", mfc="white", mec=GREY, ms=5, label=None if place else "last epoch: mean")
        axis.annotate(f"{best['mean']:.2f}", (best["mean"], place), xytext=(0, 7), textcoords="offset points", ha="center",
                      fontsize=8, color=DARK)  # fmt: skip
        if row["name"] == baseline:
            axis.axvline(best["mean"], color=ORANGE, lw=1, ls=(0, (4, 3)), zorder=0)
    axis.set_yticks(range(len(students)), [row["title"] for row in students])
    axis.set_ylim(len(students) - 0.5, -0.7)
    axis.margins(x=0.08)
    axis.set_xlabel("test accuracy (%), better to the right →")
    heading(axis, title + "".join(f"; {name} {value:.2f} %" for name, value in teachers.items()))
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    save(figure, path)


def plot_curves(
    runs: dict[str, list[list[dict[str, Any]]]], path: Path, title: str, *, on_test: bool, baseline: str
) -> None:
    """Draw a panel per student: its accuracy over its epochs, mean and worst to best seed, with the baseline behind it.

    Args:
        runs: by the row's title, one list of the ``epochs`` of ``results.json`` per seed.
        path: where the PNG goes.
        title: above it.
        on_test: whether the best epoch is chosen on the test split, as in the paper.
        baseline: the title of the row that the others are compared with.
    """
    curves = {name: curve for name, seeds in runs.items() if (curve := _mean_and_range(seeds))}
    if not curves:
        return
    columns = min(4, len(curves))
    lines = math.ceil(len(curves) / columns)
    figure = new_figure(2.3 * columns + 0.8, 2.1 * lines + 0.9)
    axes = list(figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat)
    # The first tenth would squeeze what is of interest.
    lowest = min(min(low[len(low) // 10 :]) for _, _, low, _, _ in curves.values())
    highest = max(max(high) for _, _, _, high, _ in curves.values())
    for axis, (name, (x, mean, low, high, border)) in zip(axes, curves.items(), strict=False):
        plain(axis)
        heading(axis, name, size=9)
        if baseline in curves and name != baseline:
            axis.plot(*curves[baseline][:2], color=ORANGE, lw=1, alpha=0.8)
        own = ORANGE if name == baseline else BLUE
        axis.fill_between(x, low, high, color=own, alpha=0.25, lw=0)
        axis.plot(x, mean, color=own, lw=1.4)
        if border is not None:
            axis.axvline(border, color=GREY, lw=1, ls=(0, (2, 2)))
            axis.annotate("stage 2", (border, 0.03), xycoords=("data", "axes fraction"), xytext=(3, 0),
                          textcoords="offset points", fontsize=7, color=GREY)  # fmt: skip
    for axis in axes[len(curves) :]:
        axis.set_visible(False)
    room = max(0.05 * (highest - lowest), 0.1)
    axes[0].set_ylim(lowest - room, highest + room)
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel(f"{'test' if on_test else 'validation'} accuracy (%)", fontsize=9)
    about = f"; orange: {baseline}" if baseline in curves else ""
    figure.suptitle(f"{title}: mean of the seeds, worst to best shaded{about}", fontsize=10, color=DARK)
    save(figure, path)


def _mean_and_range(seeds: list[list[dict[str, Any]]]) -> tuple | None:
    """Epochs from 1, mean, lowest and highest accuracy, and where stage 2 begins."""
    together = [entries for entries in zip(*seeds, strict=False) if all(e["val_accuracy"] is not None for e in entries)]
    if not together:
        return None
    values = [[entry["val_accuracy"] for entry in entries] for entries in together]
    epochs = range(1, len(together) + 1)
    second = next((epoch for epoch, entries in zip(epochs, together, strict=True) if entries[0]["stage"] == 2), None)
    return (
        list(epochs),
        [statistics.fmean(found) for found in values],
        [min(found) for found in values],
        [max(found) for found in values],
        None if second is None else second - 0.5,
    )
