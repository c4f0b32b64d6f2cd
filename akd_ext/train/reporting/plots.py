"""``curves.png``: accuracy, loss and Phi over the epochs."""

from __future__ import annotations

import logging
import math
import os
from typing import Any

from .style import BLUE, GREEN, GREY, ORANGE, heading, new_figure, plain, save

_TERMS = ("#7a5cc0", "#c2517a", "#2f9aa8", "#9a7b2f")
_SHADES = ("#f3f5f9", "#ffffff")


def draw_curves(results: dict[str, Any], path: str) -> bool:
    """Draws the content of results.json as a PNG. Returns False, with a line in the log, without matplotlib."""
    epochs = results["epochs"]
    if not epochs:
        return False
    try:
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        logging.getLogger(__name__).warning("no %s: matplotlib is not installed", os.path.basename(path))
        return False
    x = [entry["epoch"] for entry in epochs]
    annealed = any(entry["phi"] is not None for entry in epochs)
    figure = new_figure(7.2, 7.4 if annealed else 5.4)
    heights = [3, 2.2, 1.2] if annealed else [3, 2.2]
    axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    for axis in axes:
        plain(axis)
        _shade_stages(axis, epochs)
    name = os.path.splitext(os.path.basename(results["config"]))[0]
    seed = "" if results["seed"] is None else f", seed {results['seed']}"
    heading(axes[0], f"{name}{seed}")
    _accuracy(axes[0], x, results)
    _loss(axes[1], x, epochs)
    if annealed:
        _phi(axes[2], x, epochs)
    _name_stages(axes[0], epochs)
    axes[-1].set_xlabel("epoch")
    axes[-1].set_xlim(x[0] - 0.5, x[-1] + 0.5)
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    save(figure, path)
    return True


def _accuracy(axis, x, results) -> None:
    axis.plot(x, [entry["val_accuracy"] for entry in results["epochs"]], color=BLUE, lw=1.6, marker=_dot(x), ms=3)
    metrics = next((list(entry.get("val_metrics", ())) for entry in results["epochs"]), [])
    axis.set_ylabel(f"validation {metrics[0].replace('_', ' ')} (%)" if metrics else "validation accuracy (%)")
    best = results["best"]
    if best and best["val_accuracy"] is not None:
        label = f"best {best['val_accuracy']:.2f} %"
        if best["test_accuracy"] is not None:
            label += f"  (test {best['test_accuracy']:.2f} %, last {results['last']['test_accuracy']:.2f} %)"
        axis.plot(
            [best["epoch"]], [best["val_accuracy"]], "o", ms=7, mfc="white", mec=ORANGE, mew=1.8, label=label, ls=""
        )
        axis.legend(loc="lower right", fontsize=9, frameon=True, framealpha=0.85, edgecolor="none")
    _leave_out_the_beginning(axis, [entry["val_accuracy"] for entry in results["epochs"]], results["teacher"])
    if results["teacher"]:
        level = results["teacher"]["test_accuracy"]
        axis.axhline(level, color=GREY, lw=1, ls=(0, (4, 3)))
        # Below its line and at the right: the names of the stages stand at the top left of each.
        axis.annotate(f"teacher, test {level:.2f} %", (1, level), xycoords=("axes fraction", "data"), ha="right",
                      va="top", xytext=(-4, -14), textcoords="offset points", fontsize=8, color=GREY)  # fmt: skip


def _leave_out_the_beginning(axis, values, teacher) -> None:
    """The first tenth would squeeze what is of interest; the best epoch is shown wherever it is."""
    tenth = len(values) // 10
    known = [(n, value) for n, value in enumerate(values) if value is not None and math.isfinite(value)]
    shown = [value for n, value in known if n >= tenth]
    if shown:
        shown += [teacher["test_accuracy"]] if teacher else []
        shown.append(max(value for _, value in known))
        room = max(0.15 * (max(shown) - min(shown)), 0.5)
        axis.set_ylim(min(shown) - room, max(shown) + room)


def _loss(axis, x, epochs) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    terms = sorted({name for entry in epochs for name in entry["loss_terms"]})
    series = {name: [entry["loss_terms"].get(name) for entry in epochs] for name in terms}
    if not terms or any(len(entry["loss_terms"]) > 1 for entry in epochs):
        series["sum"] = [entry["train_loss"] if len(entry["loss_terms"]) != 1 else None for entry in epochs]
    for color, (name, values) in zip((*_TERMS, ORANGE) * len(series), series.items(), strict=False):
        for index, (_, first, last) in enumerate(
            _stages(epochs)
        ):  # the stages minimise different things: no line across
            part = slice(x.index(first), x.index(last) + 1)
            numbers = [float("nan") if value is None else value for value in values[part]]
            axis.plot(x[part], numbers, color=color, lw=1.6, label=None if index else name, marker=_dot(x), ms=3)
    finite = [entry["train_loss"] for entry in epochs if entry["train_loss"]]
    if finite and min(finite) > 0 and max(finite) > 20 * min(finite):
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(finite) < 1000 * min(finite) else (1,)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_ylabel("training loss")
    # Above the axes: curves that jump with T leave no free corner.
    axis.legend(loc="lower right", bbox_to_anchor=(1, 1), borderpad=0.1, fontsize=9, ncols=len(series), frameon=False)


def _phi(axis, x, epochs) -> None:
    values = [float("nan") if entry["phi"] is None else entry["phi"] for entry in epochs]
    axis.step(x, values, where="mid", color=GREEN, lw=1.6)
    axis.set_ylim(0, 1.08)
    axis.set_ylabel(r"$\Phi(T)$")


def _dot(x) -> str | None:
    return "o" if len(x) <= 40 else None


def _stages(epochs) -> list[tuple[int, int, int]]:
    found: dict[int, list[int]] = {}
    for entry in epochs:
        found.setdefault(entry["stage"], []).append(entry["epoch"])
    return [(stage, members[0], members[-1]) for stage, members in found.items()]


def _shade_stages(axis, epochs) -> None:
    stages = _stages(epochs)
    for index, (_, first, last) in enumerate(stages if len(stages) > 1 else ()):
        axis.axvspan(first - 0.5, last + 0.5, color=_SHADES[index % 2], lw=0, zorder=0)


def _name_stages(axis, epochs) -> None:
    stages = _stages(epochs)
    for stage, first, _ in stages if len(stages) > 1 else ():
        axis.annotate(f"stage {stage}", (first - 0.5, 1), xycoords=("data", "axes fraction"), xytext=(4, -11),
                      textcoords="offset points", fontsize=8, color=GREY)  # fmt: skip
