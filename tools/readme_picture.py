"""Draws docs/annealing.png, the README's picture: python tools/readme_picture.py (needs `.[experiments]`; seconds).

Left, a real run: one image of scikit-learn's digits, the teacher's logits times Phi(T) and the student that follows them.
Right, where the time goes: figures of benchmarks/results/, whose files say the machine and the command. The text runs had three
steps each, so their 20 epochs are worked out from those; the teacher's pass is what its absence spares in one epoch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))

import digits  # noqa: E402

import akd_ext  # noqa: E402

EPOCHS, TAU_MAX, SHOWN = 60, 10, 3
COLOURS = ("#0b6e99", "#d9730d", "#6b7280")
OURS, OTHERS = "#0b6e99", "#c9ced6"


def annealed_run() -> tuple[list[int], torch.Tensor, torch.Tensor]:
    """Stage I on digits: the classes shown, Phi by epoch, and per epoch [teacher's scaled, student's] logits of one image."""
    torch.manual_seed(0)
    train, val, test = digits.data()
    teacher = digits.fit(digits.MLP(256), train, val, EPOCHS).eval()
    student, criterion = digits.MLP(8), akd_ext.AnnealingKDLoss(tau_max=TAU_MAX)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
    image = test[0][:1]
    with torch.no_grad():
        logits, told = teacher(train[0]), teacher(image)[0]
    classes = [int(c) for c in (told.argmax(), told.topk(2).indices[1], told.argmin())][:SHOWN]
    phis, curves = [], []
    for epoch in range(EPOCHS):
        criterion.set_epoch(epoch, EPOCHS)
        for batch in torch.randperm(len(logits)).split(32):
            optimizer.zero_grad()
            criterion(student(train[0][batch]), logits[batch]).backward()
            optimizer.step()
        with torch.no_grad():
            phi = float(criterion.phi)
            phis.append(phi)
            curves.append(torch.stack([phi * told[classes], student(image)[0, classes]]))
    return classes, torch.tensor(phis), torch.stack(curves)


def draw_run(axes, classes: list[int], phis: torch.Tensor, curves: torch.Tensor) -> None:
    epochs = range(1, len(phis) + 1)
    for n, colour in enumerate(COLOURS):
        axes.step(epochs, curves[:, 0, n], where="mid", color=colour, linewidth=7, alpha=0.25)
        axes.plot(epochs, curves[:, 1, n], color=colour, linewidth=1.8)
        axes.annotate(
            f"class {classes[n]}", (epochs[-1] + 0.8, curves[-1, 0, n]), color=colour, va="center", fontsize=9
        )
    axes.set_xlim(0, len(phis) + 9)
    axes.set_xlabel("epoch of stage I")
    axes.set_title("Annealing: the target grows, the student follows", loc="left", fontsize=11, fontweight="bold")
    axes.text(0.02, 0.97, "broad: Phi(T) x teacher's logit, Phi = 0.1 ... 1\nthin: the student's logit",
              transform=axes.transAxes, va="top", fontsize=9)  # fmt: skip
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.3 * (high - low))
    axes.set_ylabel("logits of one test image (digits)")


def times() -> list[tuple[str, list[tuple[str, float, str]]]]:
    """By group: (who, seconds, how it is written)."""
    results = ROOT / "benchmarks" / "results"
    images = json.loads((results / "training-cpu.json").read_text())["seconds_of_20_epochs"]
    text = json.loads((results / "text-cpu.json").read_text())
    steps = text["seconds_per_step"]["RoBERTa-large, DistilRoBERTa"]
    epoch = {who: statistics.median(seconds) * text["steps_per_epoch"] for who, seconds in steps.items()}
    once = epoch["without the cache"] - epoch["cached"]  # the teacher's pass
    cola = {who: 20 * seconds + once * who.startswith("cached") for who, seconds in epoch.items()}
    return [
        ("20 epochs of stage I, CIFAR-10, ResNet-56 to plain CNN-2", [
            ("torchdistill's loop", images["torchdistill"], _minutes(images["torchdistill"])),
            ("akd-train, teacher run once", images["ours"], _minutes(images["ours"])),
        ]),
        ("20 epochs of stage I, CoLA, RoBERTa-large to DistilRoBERTa", [
            ("torchdistill's loop", cola["torchdistill"], _minutes(cola["torchdistill"])),
            ("akd-train, teacher run once", cola["cached"], _minutes(cola["cached"])),
            ("the same, length buckets", cola["cached, length buckets"], _minutes(cola["cached, length buckets"])),
        ]),
        ("The loss alone, 2048 x 32000 float32, forward + backward", [
            (who, 1000 * value, f"{1000 * value:.0f} ms") for who, value in loss_times(results).items()
        ]),
    ]  # fmt: skip


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min"


def loss_times(results: Path) -> dict[str, float]:
    """Seconds of the loss at one large shape, from kernels-cpu.json."""
    names = {"eager": "PyTorch", "torch.compile": "torch.compile", "ours, float phi": "akd_ext"}
    found = {}
    for case in json.loads((results / "kernels-cpu.json").read_text())["results"]:
        wanted = ([2048, 32000], "float32", "forward+backward")
        if (case["shape"], case["dtype"], case["direction"]) == wanted and case["contender"] in names:
            found[names[case["contender"]]] = case["median_seconds"]
    return {name: found[name] for name in names.values()}


def draw_times(axes, groups: list[tuple[str, list[tuple[str, float, str]]]]) -> None:
    y, width = 0.0, 0.72
    for title, bars in groups:
        longest = max(value for _, value, _ in bars)
        axes.text(0, y + 0.3, title, fontsize=9, fontweight="bold", va="bottom")
        for who, value, written in bars:
            y += 0.8
            ours = who.startswith(("akd", "the same"))
            axes.barh(y, value / longest, height=width, color=OURS if ours else OTHERS)
            inside = value / longest > 0.6
            axes.text(0.01 if inside else value / longest + 0.01, y, f"{who}: {written}", va="center", fontsize=9,
                      fontweight="bold" if ours else None)  # fmt: skip
        y += 1.25
    axes.set_ylim(y - 0.6, -0.8)
    axes.set_xlim(0, 1.02)
    axes.set_axis_off()
    axes.set_title("Where the time goes (two CPU cores; shorter is better)", loc="left", fontsize=11, fontweight="bold")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "annealing.png")
    path = parser.parse_args().out
    torch.set_num_threads(1)
    figure = Figure(figsize=(11.5, 4.3), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.05))
    left.spines[["top", "right"]].set_visible(False)
    draw_run(left, *annealed_run())
    draw_times(right, times())
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
