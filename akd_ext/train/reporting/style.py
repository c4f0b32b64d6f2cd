"""One look for every picture of `akd-train` and `akd-reproduce`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from akd_ext.filesystem import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY = "#3b6fb6", "#d9822b", "#3a9a6b", "#8a8f98"
DARK = "#22252b"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plain(axis: Axes, grid: str = "y") -> None:
    """Take away what nobody reads, so that the data stands out."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color("#c4c8d0")
    axis.tick_params(colors="#555b66", labelsize=9)
    axis.grid(axis=grid, color="#e3e6ec", lw=0.8)
    axis.set_axisbelow(True)
    axis.xaxis.label.set_color("#3a3f48")
    axis.yaxis.label.set_color("#3a3f48")


def heading(axis: Axes, text: str, size: float = 11) -> None:
    axis.set_title(text, loc="left", fontsize=size, fontweight="bold", color=DARK)


def save(figure: Figure, path: str | os.PathLike) -> None:
    """Write a PNG, whole or not at all."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
