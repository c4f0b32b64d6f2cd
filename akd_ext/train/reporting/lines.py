"""The lines of the log: short enough for 100 columns, one beside the other readable as a table. Epochs count from 1."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

LEGEND = "val: validation data; *: the best epoch of its stage so far; left: h:mm:ss to the end of the run"
_PER_CENT = re.compile(r"-?\d+\.\d\d\b|\bnan\b")


def epoch_line(
    entries: Sequence[dict[str, Any]], epochs: int, stages: int, score: str, *, best: bool, pace: str
) -> str:
    """A finished epoch, in columns as wide as anything that stands in them.

    >>> entry = {"epoch": 3, "stage": 1, "T": 2, "phi": 0.5, "train_loss": 0.25, "loss_terms": {"akd": 0.25}}
    >>> epoch_line([{**entry, "T": 10}, entry], 20, 2, "71.25 %", best=True, pace="900 images/s  left 0:00:21")
    'epoch  3/20  stage 1  T  2  Phi 0.500  loss 0.2500    val  71.25 % *  900 images/s  left 0:00:21'

    Args:
        entries: of ``results.json``, up to this epoch; the first of a stage with annealing has the highest T.
        epochs, stages: how many the run has; of a single stage nothing is said.
        score: on the validation data.
        best: whether it is the best epoch of its stage so far.
        pace: speed and time left, as they are shown.
    """
    entry = entries[-1]
    stage, annealing = f"  stage {entry['stage']}" if stages > 1 else "", ""
    if entry["phi"] is not None:
        width = max(len(str(other["T"])) for other in entries if other["phi"] is not None)
        annealing = f"  T {entry['T']:>{width}}  Phi {entry['phi']:.3f}"
    return (
        f"epoch {of(entry['epoch'], epochs)}{stage}{annealing}  "
        f"loss {format_loss(entry['train_loss'], entry['loss_terms'])}  "
        f"val {_PER_CENT.sub(lambda number: number[0].rjust(6), score)} {'*' if best else ' '}  {pace}"
    )


def format_loss(loss: float, terms: dict[str, float]) -> str:
    """The sum, and its terms where there are several.

    Four digits each; padded to the width of a loss of 0.001, where there are terms to that of 0.01 each.

    >>> format_loss(0.5, {"ce": 0.25, "kd": 0.25}), format_loss(0.5, {"akd": 0.5})
    ('0.5000 (ce 0.2500, kd 0.2500)   ', '0.5000  ')
    """
    listed = ", ".join(f"{name} {value:#.4g}" for name, value in terms.items())
    if len(terms) <= 1:
        return f"{loss:#.4g}".ljust(8)
    return f"{loss:#.4g} ({listed})".ljust(7 * (1 + len(terms)) + 1 + sum(len(name) + 3 for name in terms))


def of(number: int, count: int) -> str:
    """A count as wide as its last value, so that lines stand below each other."""
    return f"{number:>{len(str(count))}}/{count}"
