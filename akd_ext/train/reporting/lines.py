"""The lines of the log: short enough for 100 columns, one beside the other readable as a table. Epochs count from 1."""

from __future__ import annotations

from typing import Any

LEGEND = "val: validation data; *: the best epoch of its stage so far; left: h:mm:ss to the end of the run"


def epoch_line(entry: dict[str, Any], epochs: int, score: str, *, best: bool, speed: str, left: str) -> str:
    """A finished epoch.

    >>> entry = {"epoch": 3, "stage": 1, "T": 2, "phi": 0.5, "train_loss": 0.25, "loss_terms": {"akd": 0.25}}
    >>> epoch_line(entry, 20, "71.25 %", best=True, speed="900 images/s", left="0:00:21")
    'epoch  3/20  stage 1  T 2  Phi 0.500  loss 0.25  val 71.25 % *  900 images/s  left 0:00:21'

    Args:
        entry: of ``results.json``.
        epochs: how many the run has.
        score: on the validation data.
        best: whether it is the best epoch of its stage so far.
        speed, left: as they are shown.
    """
    annealing = "" if entry["phi"] is None else f"  T {entry['T']}  Phi {entry['phi']:.3f}"
    return (
        f"epoch {of(entry['epoch'], epochs)}  stage {entry['stage']}{annealing}  "
        f"loss {format_loss(entry['train_loss'], entry['loss_terms'])}  val {score} {'*' if best else ' '}  "
        f"{speed}  left {left}"
    )


def format_loss(loss: float, terms: dict[str, float]) -> str:
    """The sum, and its terms where there are several.

    >>> format_loss(0.5, {"ce": 0.25, "kd": 0.25}), format_loss(0.5, {"akd": 0.5})
    ('0.5 (ce 0.25, kd 0.25)', '0.5')
    """
    listed = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
    return f"{loss:.4g} ({listed})" if len(terms) > 1 else f"{loss:.4g}"


def of(number: int, count: int) -> str:
    """A count as wide as its last value, so that lines stand below each other."""
    return f"{number:>{len(str(count))}}/{count}"
