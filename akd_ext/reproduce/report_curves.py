"""The curves behind a results table."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from akd_ext.filesystem import replacing


def plot_curves(runs: dict[str, list[list[dict[str, Any]]]], path: Path, title: str) -> None:
    """Draw the validation accuracy of every method over its epochs: mean over seeds, and a band from worst to best.

    Args:
        runs: by method, one list of the ``epochs`` of ``results.json`` per seed.
        path: where the PNG goes.
        title: above it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    lowest = []
    for name, seeds in runs.items():
        by_epoch = list(zip(*([entry["val_accuracy"] for entry in epochs] for epochs in seeds), strict=False))
        by_epoch = [values for values in by_epoch if None not in values]
        if not by_epoch:
            continue
        x = range(1, len(by_epoch) + 1)
        line = axes.plot(x, [statistics.fmean(values) for values in by_epoch], label=name, linewidth=1.4)[0]
        axes.fill_between(x, list(map(min, by_epoch)), list(map(max, by_epoch)), color=line.get_color(), alpha=0.15)
        lowest += [min(values) for values in by_epoch[len(by_epoch) // 10 :]]
    if lowest:
        axes.set_ylim(bottom=min(lowest) - 1)  # the first tenth would squeeze what is of interest
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation accuracy (%)")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="lower right")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
