"""Figure 3 in numbers and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from akd_ext.train.reporting.style import new_figure

from .landscape import sharpness

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURES = {
    "curvature": "curvature",
    "rise": "rise at the ends",
    "relative_rise": "rise / loss of the answer 0",
}


def measure(found: dict[int, Tensor], phis: dict[int, float], taught: Tensor, axis: Sequence[float]) -> dict[str, Any]:
    """The surfaces with their sharpness, and whether it grows as the temperature falls, as the paper says.

    Args:
        found: by temperature, hottest first, the loss [n, n] at every pair of points of ``axis``.
        phis: Phi(T) by temperature.
        taught: the teacher's logits.
        axis: n coordinates, see :func:`akd_ext.reproduce.figures.landscape.sharpness`.
    """
    square = taught.double().square().mean().item()
    by_temperature = {
        str(T): {
            "phi": phis[T],
            "loss": surface[len(axis) // 2, len(axis) // 2].item(),
            **sharpness(surface, axis, scale=phis[T] ** 2 * square),
            "surface": surface.tolist(),
        }
        for T, surface in found.items()
    }
    values = {name: [entry[name] for entry in by_temperature.values()] for name in MEASURES}
    return {
        "axis": list(axis),
        "temperatures": by_temperature,
        "sharper_as_T_falls": {
            name: all(a < b for a, b in zip(column, column[1:], strict=False)) for name, column in values.items()
        },
    }


def table(answer: dict[str, Any]) -> str:
    """The numbers for a terminal, and what they say about the paper's claim."""
    lines = [f"{'T':>3}{'Phi':>6}{'loss':>12}" + "".join(f"{title:>30}" for title in MEASURES.values())]
    for T, entry in answer["temperatures"].items():
        numbers = "".join(f"{entry[name]:>30.5g}" for name in MEASURES)
        lines.append(f"{T:>3}{entry['phi']:>6.2f}{entry['loss']:>12.5g}{numbers}")
    says = {name: "yes" if yes else "no" for name, yes in answer["sharper_as_T_falls"].items()}
    if len(answer["temperatures"]) > 1:
        lines.append("Is the surface flatter the higher T is, as the paper says?")
        lines.append(", ".join(f"by {title}: {says[name]}" for name, title in MEASURES.items()))
    return "\n".join(lines)


def draw(answer: dict[str, Any]) -> Figure:
    """The surfaces side by side on one scale, their contours on one set of levels below.

    The surfaces are cut off at the height of the highest end of an axis: the corners would hide the rest.
    """
    from matplotlib.colors import LogNorm

    axis, by_temperature = np.array(answer["axis"]), answer["temperatures"]
    values = {T: np.array(entry["surface"]) for T, entry in by_temperature.items()}
    middle, radius, columns = len(axis) // 2, axis[-1], len(values)
    cap = max(max(surface[middle, [0, -1]].max(), surface[[0, -1], middle].max()) for surface in values.values())
    top = max(surface.max() for surface in values.values())
    bottom = max(min(surface.min() for surface in values.values()), 1e-6 * top)
    levels, norm = np.geomspace(bottom, top, 21), LogNorm(bottom, top)
    figure = new_figure(3.7 * columns + 0.6, 7)
    flat = []
    for column, (T, surface) in enumerate(values.items(), start=1):
        entry = by_temperature[T]
        solid = figure.add_subplot(2, columns, column, projection="3d")
        solid.plot_surface(
            axis[None, :],
            axis[:, None],
            surface.clip(max=cap),
            cmap="viridis",
            vmin=0,
            vmax=cap,
            lw=0.2,
            edgecolor="0.3",
        )
        solid.set_zlim(0, cap)
        solid.set_title(f"T = {T}, $\\Phi$ = {entry['phi']:g}\ncurvature {entry['curvature']:.3g}", fontsize=11)
        below = figure.add_subplot(2, columns, columns + column, aspect="equal")
        shown = below.contourf(axis, axis, surface.clip(min=bottom), levels=levels, cmap="viridis", norm=norm)
        below.contour(axis, axis, surface, levels=levels, colors="white", linewidths=0.5)
        below.plot(0, 0, "+", color="red")
        below.set_title(
            f"loss {entry['loss']:.3g} at the centre, {entry['rise']:+.3g} at radius {radius:g}", fontsize=9
        )
        flat.append(below)
    bar = figure.colorbar(shown, ax=flat, label="loss of stage I (logarithmic)", shrink=0.9, format="%.3g")
    bar.minorticks_off()
    figure.suptitle(f"Loss of stage I along two filter-normalised directions (above: cut off at {cap:.3g})")
    return figure
