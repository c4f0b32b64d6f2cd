"""The study of `benchmarks.language_model` as JSON, as tables and as a picture."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from akd_ext.filesystem import replacing

METRICS = ("kl", "agreement", "perplexity")
BASE = "KL, all logits"  # what the others are compared with
SECONDS, STEPS = "CPU seconds", "steps"
Interval = tuple[float, float | None]  # mean, half of the 95 % interval


def conditions(setting: dict[str, Any], length: int) -> dict[str, str]:
    """Facts that are the same for all runs."""
    return {
        "a step": f"{setting['batch']} blocks of {length} tokens, float32, one thread; AdamW (0.9, 0.98), no decay, learning "
                  f"rate {setting['learning_rate']:g} for every loss, {setting['warm_up']} steps of warm-up, then cosine to 0 "
                  "over the budget",
        "budgets": f"as many steps as cost {setting['seconds']:g} CPU seconds (medians of rounds in which the losses took turns), and {setting['steps']} steps "
                   f"({setting['steps'] * setting['batch'] * length:,} tokens), each in runs of its own",
    }  # fmt: skip


def write(record: dict[str, Any], path: Path) -> list[str]:
    """JSON and the tables beside it; returns the tables' lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = markdown(record)
    for target, text in ((path, json.dumps(record, indent=1)), (path.with_suffix(".md"), "\n".join(lines))):
        with replacing(target) as temporary:
            Path(temporary).write_text(text + "\n", encoding="utf-8")
    return lines


def interval(values: list[float]) -> Interval:
    """Mean, and half the width of its 95 % confidence interval (Student's t); None for one value.

    >>> interval([1.0])
    (1.0, None)
    """
    if len(values) < 2:
        return values[0], None
    from scipy.stats import t

    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.fmean(values), float(half)


def ends(record: dict[str, Any], budget: str) -> dict[str, dict[int, dict[str, float]]]:
    """By contender and seed: what a run came to. Seeds that every contender has, where there is one."""
    runs = [run for run in record["runs"] if run["budget"] == budget]
    found: dict[str, dict[int, dict[str, float]]] = {}
    for run in runs:
        found.setdefault(run["contender"], {})[run["seed"]] = run["curve"][-1]
    whole = set.intersection(*(set(seeds) for seeds in found.values())) if found else set()
    return {name: {s: seeds[s] for s in sorted(whole)} for name, seeds in found.items()} if whole else found


def summary(record: dict[str, Any], budget: str) -> list[dict[str, Any]]:
    """A row per contender, the lowest KL first; ``less``: KL less that of BASE, seed by seed."""
    found, rows = ends(record, budget), []
    for name, seeds in found.items():
        row: dict[str, Any] = {"name": name, "seeds": len(seeds)}
        for metric in (*METRICS, "steps", "cpu_seconds"):
            row[metric] = interval([end[metric] for end in seeds.values()])
        shared = [seed for seed in seeds if seed in found.get(BASE, {})]
        row["less"] = interval([seeds[s]["kl"] - found[BASE][s]["kl"] for s in shared]) if shared else None
        rows.append(row)
    return sorted(rows, key=lambda row: row["kl"][0])


def said(value: Interval | None, digits: int, sign: str = "") -> str:
    if value is None:
        return ""
    mean, half = value
    return f"{mean:{sign}.{digits}f}" + ("" if half is None else f" ± {half:.{digits}f}")


def table(record: dict[str, Any], budget: str) -> list[str]:
    counted = "steps" if budget == SECONDS else "cpu_seconds"
    lines = [
        f"| loss | {'steps' if budget == SECONDS else 'CPU seconds'} | KL to the teacher | less that of *{BASE}* "
        "| top-1 agreement | perplexity |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in summary(record, budget):
        less = "" if row["name"] == BASE else said(row["less"], 3, "+")
        lines.append(
            f"| {row['name']} | {row[counted][0]:.0f} | {said(row['kl'], 3)} | {less} | {said(row['agreement'], 3)} "
            f"| {said(row['perplexity'], 0)} |"
        )
    return lines


def markdown(record: dict[str, Any]) -> list[str]:
    lines = [
        "# A language model's student by every loss, on cpu",
        "",
        *(f"- {k}: {v}" for k, v in record["facts"].items()),
    ]
    start = record["start"]
    lines += [
        "",
        f"Before training: KL {start['kl']:.3f}, top-1 agreement {start['agreement']:.3f}, perplexity "
        f"{start['perplexity']:,.0f}. Mean and 95 % interval over the seeds (Student's t); a seed is an order of the batches, "
        "the same for every loss, so differences are taken seed by seed. All on held-out documents; KL in nats.",
    ]
    for budget, title in ((SECONDS, "Equal CPU time"), (STEPS, "Equal tokens")):
        rows = summary(record, budget)
        if rows:
            counts = sorted({row["seeds"] for row in rows})
            lines += ["", f"## {title}", "", f"Seeds: {', '.join(map(str, counts))}.", "", *table(record, budget)]
    return lines


def plot(record: dict[str, Any], path: Path) -> None:
    """Held-out KL and agreement against CPU seconds; mean of the seeds, lowest to highest shaded."""
    from akd_ext.train.reporting import style

    runs: dict[str, list[list[dict[str, float]]]] = {}
    for run in record["runs"]:
        if run["budget"] == SECONDS:
            runs.setdefault(run["contender"], []).append(run["curve"])
    if BASE not in runs:
        return
    figure = style.new_figure(10, 7.2)
    panels = figure.subplots(2, 2, sharex=True, sharey="row")
    groups = (
        ("all logits", [name for name in runs if not name.startswith("top")]),
        ("the teacher's top k", [BASE, *(name for name in runs if name.startswith("top"))]),
    )
    for column, (title, names) in enumerate(groups):
        for axis, metric in zip(panels[:, column], ("kl", "agreement"), strict=True):
            style.plain(axis)
            for name in sorted(names, key=list(LOOKS).index):
                _curve(axis, name, [record["start"], *runs[name]], metric)
        style.heading(panels[0, column], title, 10)
        panels[1, column].set_xlabel("CPU seconds of training")
        handles, labels = panels[0, column].get_legend_handles_labels()
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2)}
        panels[1, column].legend(handles, labels, fontsize=7.5, frameon=False, ncols=3, **below)
    panels[0, 0].set_yscale("log")
    for axis in panels[0]:
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:g}")
    panels[0, 0].set_ylabel("held-out KL to the teacher (log scale)")
    panels[1, 0].set_ylabel("top-1 agreement with the teacher")
    figure.suptitle("The same student by every loss: mean of the seeds, lowest to highest shaded", x=0.01, ha="left",
                    fontsize=11)  # fmt: skip
    style.save(figure, path)


def _looks() -> dict[str, tuple[str, str]]:
    from akd_ext.train.reporting.style import BLUE, DARK, GREEN, GREY, ORANGE

    looks = {
        BASE: (DARK, "-"), "TAID, all logits": (GREEN, "-"), "cross-entropy": (GREY, "-"),
        "squared error, then KL": (BLUE, "-"), "squared error, Phi = 1": (ORANGE, "-"),
        "squared error, Phi 0.1 to 1": (ORANGE, "--"),
    }  # fmt: skip
    for k, line in ((8, "--"), (64, "-")):
        looks |= {f"top {k}": (GREY, line), f"top {k} + 0.1 anchor": (GREEN, line),
                  f"top {k} + 0.3 anchor": (BLUE, line), f"top {k} + 1 anchor": (ORANGE, line)}  # fmt: skip
    return looks


LOOKS = _looks()


def _curve(axis, name: str, found: list, metric: str) -> None:
    start, *curves = found
    color, line = LOOKS[name]
    together = list(zip(*curves, strict=False))
    x = [0.0, *(statistics.fmean(point["cpu_seconds"] for point in points) for points in together)]
    values = [[start[metric]], *([point[metric] for point in points] for points in together)]
    axis.fill_between(x, [min(v) for v in values], [max(v) for v in values], color=color, alpha=0.15, lw=0)
    axis.plot(x, [statistics.fmean(v) for v in values], color=color, ls=line, lw=1.6, label=name)
