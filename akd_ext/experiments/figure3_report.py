"""Figure 3 in numbers and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import figures
from .landscape import sharpness

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURES = {
    "curvature": "curvature",
    "rise": "rise at radius 1",
    "relative_rise": "rise / loss of the answer 0",
}


def measure(found: dict[int, Tensor], phis: dict[int, float], taught: Tensor, axis: Sequence[float]) -> dict[str, Any]:
    """The surfaces with their sharpness, and whether it grows as the temperature falls, as the paper says.

    Args:
        found: by temperature, hottest first, the loss [n, n] at every pair of points of ``axis``.
        phis: Phi(T) by temperature.
        taught: the teacher's logits.
        axis: n coordinates, see :func:`akd_ext.experiments.landscape.sharpness`.
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
    """The surfaces side by side on one scale, their contours on one set of levels below."""
    axis, by_temperature = torch.tensor(answer["axis"]).numpy(), answer["temperatures"]
    values = {T: torch.tensor(entry["surface"]).numpy() for T, entry in by_temperature.items()}
    top = max(surface.max() for surface in values.values())
    levels = torch.linspace(0, top, 16).numpy()
    columns = len(values)
    figure = figures.new_figure(3.7 * columns + 0.6, 7)
    flat = []
    for column, (T, surface) in enumerate(values.items(), start=1):
        entry = by_temperature[T]
        solid = figure.add_subplot(2, columns, column, projection="3d")
        solid.plot_surface(
            axis[None, :], axis[:, None], surface, cmap="viridis", vmin=0, vmax=top, lw=0.2, edgecolor="0.3"
        )
        solid.set_zlim(0, top)
        solid.set_title(f"T = {T}, $\\Phi$ = {entry['phi']:g}\ncurvature {entry['curvature']:.3g}", fontsize=11)
        below = figure.add_subplot(2, columns, columns + column, aspect="equal")
        shown = below.contourf(axis, axis, surface, levels=levels, cmap="viridis", vmin=0, vmax=top)
        below.contour(axis, axis, surface, levels=levels, colors="white", linewidths=0.5)
        below.plot(0, 0, "+", color="red")
        below.set_title(f"loss {entry['loss']:.3g} at the centre, {entry['rise']:+.3g} at radius 1", fontsize=9)
        flat.append(below)
    figure.colorbar(shown, ax=flat, label="loss of stage I", shrink=0.9)
    figure.suptitle("Loss of stage I along two filter-normalised directions")
    return figure
