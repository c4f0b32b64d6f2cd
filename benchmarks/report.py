"""The results as a table, as JSON and as a picture, and what they say about the aims."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.cases import (
    AUTOGRAD,
    BOTH,
    COMPILE,
    EAGER,
    FLOOR,
    OP_ALONE,
    OURS,
    Case,
)
from benchmarks.measure import Result, ratios

Results = dict[Case, dict[str, Result]]

# Issue: forward + backward, at least this.
AIMS = {
    "cpu": {("large", EAGER): 3.5, ("large", COMPILE): 1.5, ("large", FLOOR): 0.85,
            ("paper", EAGER): 1.5, ("paper", COMPILE): 2.0},
    "cuda": {("large", EAGER): 2.8, ("large", COMPILE): 1.5, ("large", FLOOR): 0.90,
             ("paper", EAGER): 2.5, ("paper", COMPILE): 1.3},
}  # fmt: skip

PREDICTION = """\
## Bytes, counted before measuring

N elements of e bytes. Student and teacher must be read (2 N e); a gradient must be written (N e). Nothing else grows with N.

| | forward | forward + backward | upstream gradient not 1 | predicted time against ours |
|---|---|---|---|---|
| ours | 2 N | 3 N | 5 N (the gradient is scaled where it lies) | 1 |
| eager, `mse_loss(s, phi * t)` | about 5 N | about 9 N | about 9 N | 3.0x |
| torch.compile | 2 N | 5 N (reads both tensors again in backward) | 5 N | 1.67x |
| floor, `torch.add(s, t)` | 3 N | 3 N | 3 N | 1 |

float16 is the exception: its gradient is normalised in the backward pass (csrc/README.md says why), so ours moves 5 N there even for an
upstream gradient of 1, and 3/5 of the floor's speed is what to expect where memory alone decides.

So on large tensors forward + backward should take the floor's time, a third of eager's and 3/5 of torch.compile's; forward alone 2/3 of the floor's.
On the CPU eager may lose more: it has three fresh tensors (phi * t, the gradient, one temporary), and the system has to hand out and
clear every page of them.
The floor has one fresh tensor too; ours asks for huge pages for it (from 32 MiB on), so on a system that grants them it can be faster
than the floor. Under `THP_MEM_ALLOC_ENABLE=1`, PyTorch's own switch, the floor has them as well. On a virtual machine whose free memory
goes back to the host, any contender's call can take several times longer after a pause: the pages have to come from the host again.
At the paper's shapes N is a few kilobytes: there only the cost of the calls counts.
"""


@dataclasses.dataclass
class Aim:
    text: str
    met: bool | None
    measured: str


def aims(results: Results, device: str) -> list[Aim]:
    found = []
    for (size, other), least in AIMS[device].items():
        values = {}
        for case, row in results.items():
            wanted = case.is_large if size == "large" else case.is_paper
            if wanted and case.direction == BOTH and _ran(row, OURS) and _ran(row, other):
                values[case] = ratios(row[other], row[OURS])[1]
        what = {FLOOR: "fraction of the floor"}.get(other, f"against {other}")
        text = f"{'large' if size == 'large' else 'the paper’s'} shapes, {what}: >= {least:g}"
        if not values:
            found.append(Aim(text, None, "not measured"))
            continue
        met = sum(value >= least for value in values.values())
        worst, best = min(values, key=values.get), max(values, key=values.get)
        measured = (
            f"{met} of {len(values)} cases; worst {values[worst]:.2f} ({_name(worst)}), "
            f"best {values[best]:.2f} ({_name(best)})"
        )
        if met < len(values) and size == "paper" and (reason := _autograd_share(results, other, least)):
            measured += "; " + reason
        found.append(Aim(text, met == len(values), measured))
    beyond = {
        case: row[OURS].peak_bytes / case.tensor_bytes
        for case, row in results.items()
        if case.is_large and case.direction == BOTH and _ran(row, OURS)
    }
    if beyond:
        worst = max(beyond.values())
        found.append(
            Aim("large shapes, peak memory beyond the inputs: one gradient", worst < 1.01, f"{worst:.3f} gradients")
        )
    return found


def _autograd_share(results: Results, other: str, least: float) -> str:
    """What a node without any work, and one with the op alone, reach against ``other``: no loss in Python can do better."""
    reached = []
    for what, node in (("that does nothing", AUTOGRAD), ("with the op and nothing else", OP_ALONE)):
        bounds = [ratios(row[other], row[node])[1] for row in results.values() if _ran(row, node) and _ran(row, other)]
        if bounds:
            reached.append(f"one {what} {min(bounds):.2f} to {max(bounds):.2f}")
    return f"of autograd.Functions, {', '.join(reached)}" if reached else ""


def markdown(results: Results, facts: dict[str, str], device: str, notes: list[str]) -> str:
    lines = [f"# Kernels on {device}", ""]
    lines += [f"- {label}: {value}" for label, value in facts.items()]
    lines += ["", *(f"> {note}\n" for note in notes), PREDICTION, "## Aims (forward + backward)", ""]
    lines += ["| aim | met | measured |", "|---|---|---|"]
    verdict = {True: "yes", False: "no", None: "-"}
    lines += [f"| {aim.text} | {verdict[aim.met]} | {aim.measured} |" for aim in aims(results, device)]
    lines += ["", f"![speed against eager](kernels-{device}.png)", "", "## Measurements", "", EXPLANATION, ""]
    for case, row in results.items():
        lines += [f"### {case}", "", *_table(case, row), ""]
    return "\n".join(lines)


EXPLANATION = (
    "Median over the repetitions; in brackets the quartiles. A ratio is taken within each repetition, then the median: "
    "`vs eager` and `of floor` above 1 are faster than eager and than `torch.add(s, t)`. GB/s counts the fewest bytes the "
    "case can move (2 N, 3 N, or 5 N with an upstream gradient that is not 1), whatever the contender really moves. "
    "`memory` is the peak beyond the inputs, in tensors of N elements. `floor of autograd` is an autograd.Function that "
    "allocates a loss and a gradient and computes nothing; `op in a bare autograd node` adds our op to it and no more: no "
    "argument is checked, nothing is saved for a second-order gradient, the upstream gradient counts as 1."
)


def _table(case: Case, row: dict[str, Result]) -> Iterator[str]:
    yield "| contender | time, us | vs eager | of floor | GB/s | memory |"
    yield "|---|---|---|---|---|---|"
    for name, result in row.items():
        if result.failure:
            yield f"| {name} | did not run: {result.failure.replace('|', '/')} | | | | |"
            continue
        first, third = (q * 1e6 for q in result.quartiles)
        yield (
            f"| {name} | {_digits(result.median * 1e6)} [{_digits(first)}, {_digits(third)}] "
            f"| {_ratio(row, EAGER, name)} | {_ratio(row, FLOOR, name)} "
            f"| {case.moved_bytes / result.median / 1e9:.2f} | {result.peak_bytes / case.tensor_bytes:.2f} |"
        )


def as_json(results: Results, facts: dict[str, str], device: str, notes: list[str]) -> str:
    records: list[dict[str, Any]] = []
    for case, row in results.items():
        for name, result in row.items():
            record: dict[str, Any] = {
                "shape": case.shape, "dtype": str(case.dtype).removeprefix("torch."), "direction": case.direction,
                "contender": name, "failure": result.failure,
            }  # fmt: skip
            if result.seconds:
                record |= {
                    "median_seconds": result.median, "quartiles_seconds": result.quartiles,
                    "min_seconds": min(result.seconds), "repetitions": len(result.seconds),
                    "peak_bytes_beyond_inputs": result.peak_bytes, "fewest_bytes_moved": case.moved_bytes,
                    "times_eager": _quartiles(row, EAGER, name), "fraction_of_floor": _quartiles(row, FLOOR, name),
                }  # fmt: skip
            records.append(record)
    whole = {
        "device": device,
        "facts": facts,
        "notes": notes,
        "aims": [dataclasses.asdict(aim) for aim in aims(results, device)],
        "results": records,
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def plot(whole: dict[str, Any], path: Path) -> None:
    """Speed against eager PyTorch, forward + backward: ours and torch.compile, a panel a dtype, a group a shape.

    Args:
        whole: what `as_json` wrote, so that a committed result can be drawn again.
        path: where the PNG goes.
    """
    from akd_ext.train.reporting import style

    chosen = [r for r in whole["results"] if r["direction"] == BOTH and r.get("times_eager")]
    dtypes = list(dict.fromkeys(r["dtype"] for r in chosen))
    if not chosen:
        return
    figure = style.new_figure(10, 0.8 + 1.9 * len(dtypes))
    panels = figure.subplots(len(dtypes), 1, squeeze=False, sharex=True, sharey=True)[:, 0]
    for axis, dtype in zip(panels, dtypes, strict=True):
        shapes = sorted({tuple(r["shape"]) for r in chosen if r["dtype"] == dtype}, key=lambda shape: shape[1])
        for offset, name, color in ((-0.2, COMPILE, style.GREY), (0.2, OURS, style.BLUE)):
            found = {
                tuple(r["shape"]): r["times_eager"] for r in chosen if (r["dtype"], r["contender"]) == (dtype, name)
            }
            first, median, third = zip(*(found.get(shape, (0.0, 0.0, 0.0)) for shape in shapes), strict=True)
            places = [x + offset for x in range(len(shapes))]
            axis.bar(places, median, 0.36, color=color, label="akd_ext" if name == OURS else name)
            spread = [[m - low for m, low in zip(median, first, strict=True)],
                      [high - m for m, high in zip(median, third, strict=True)]]  # fmt: skip
            axis.errorbar(places, median, yerr=spread, fmt="none", ecolor=style.DARK, elinewidth=0.8)
            for place, value, top in zip(places, median, third, strict=True):
                # Above the whisker; the white lets the line at 1 end beside the number.
                box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
                axis.annotate(f"{value:.1f}x", (place, top), (0, 3), textcoords="offset points", ha="center", fontsize=8,
                              bbox=box)  # fmt: skip
        axis.axhline(1, color=style.DARK, lw=0.8, zorder=0.9)
        style.plain(axis)
        style.heading(axis, dtype, 10)
        axis.margins(y=0.18)
        axis.set_xticks(range(len(shapes)), [f"{rows} x {classes}" for rows, classes in shapes])
    panels[-1].set_xlabel("rows x classes")
    panels[0].legend(fontsize=9, frameon=False, loc="upper left")
    figure.supylabel("speed, eager PyTorch = 1 (higher is better)", fontsize=9)
    figure.suptitle(
        f"The loss on {whole['device']}, forward + backward; whiskers: quartiles", x=0.01, ha="left", fontsize=11
    )
    style.save(figure, path)


def _ran(row: dict[str, Result], name: str) -> bool:
    return name in row and bool(row[name].seconds)


def _quartiles(row: dict[str, Result], base: str, name: str) -> tuple[float, float, float] | None:
    return ratios(row[base], row[name]) if _ran(row, base) and _ran(row, name) else None


def _ratio(row: dict[str, Result], base: str, name: str) -> str:
    values = _quartiles(row, base, name)
    return "" if values is None else f"{values[1]:.2f} [{values[0]:.2f}, {values[2]:.2f}]"


def _digits(value: float) -> str:
    return f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def _name(case: Case) -> str:
    return f"{case.shape[0]}x{case.shape[1]} {str(case.dtype).removeprefix('torch.')}"
