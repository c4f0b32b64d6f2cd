"""``results.json``: what a run reached, epoch by epoch."""

from __future__ import annotations

import json
import logging
import math
import os
from typing import Any

from akd_ext.filesystem import write_text

logger = logging.getLogger(__name__)


def better(new: float, best: float | None) -> bool:
    """True if ``new`` beats ``best``. The first value always does, even 0 or NaN, and any number beats NaN."""
    return best is None or new > best or (math.isnan(best) and not math.isnan(new))


class Results:
    """Collects the numbers of one run and, given a path, keeps ``results.json`` up to date.

    The file is replaced as a whole after every epoch; ``complete`` turns true only when all of it is there. NaN is
    written as null, which JSON can say.
    """

    def __init__(
        self, path: str | os.PathLike | None, *, config: str, seed: int | None, device: str, versions: dict[str, str]
    ):
        self._path = path
        self.data: dict[str, Any] = {
            "config": config,
            "seed": seed,
            "device": device,
            "complete": False,
            "versions": versions,
            "epochs": [],
            "best_per_stage": {},
            "best": None,
            "last": None,
            "teacher": None,
        }
        self.write()

    def state_dict(self) -> dict[str, Any]:
        return json.loads(json.dumps(self.data, default=float))  # NumPy's numbers as Python's

    def load_state_dict(self, data: dict[str, Any]) -> None:
        """Goes on with a run that was stopped. Versions stay those it began with."""
        changed = [f"{name} {version}" for name, version in self.data["versions"].items()
                   if data["versions"].get(name) != version]  # fmt: skip
        if changed or self.data["device"] != data["device"]:
            logger.warning("the run began on %s and goes on on %s%s: it may end a little differently",
                           data["device"], self.data["device"], "".join(f", with {name}" for name in changed))  # fmt: skip
        self.data = data
        self.write()

    def add_epoch(self, **entry: Any) -> tuple[bool, bool]:
        """Adds an epoch (see the schema in `write`). Returns whether it is the best of its stage and of the run.

        The file waits for `write`: it must not speak of a student that a full disk did not take.
        """
        self.data["epochs"].append(entry)
        stage, accuracy = str(entry["stage"]), entry["val_accuracy"]
        mark = {"epoch": entry["epoch"], "stage": entry["stage"], "val_accuracy": accuracy, "test_accuracy": None}
        of_stage, best = self.data["best_per_stage"].get(stage), self.data["best"]
        best_of_stage = better(accuracy, of_stage and of_stage["val_accuracy"])
        best_of_run = better(accuracy, best and best["val_accuracy"])
        if best_of_stage:
            self.data["best_per_stage"][stage] = {"epoch": entry["epoch"], "val_accuracy": accuracy}
        if best_of_run:
            self.data["best"] = dict(mark)
        self.data["last"] = dict(mark)
        return best_of_stage, best_of_run

    def finish(self, *, best: float, last: float, teacher: float | None) -> None:
        """Adds the test accuracies and declares the run complete."""
        self.data["best"]["test_accuracy"] = best
        self.data["last"]["test_accuracy"] = last
        self.data["teacher"] = None if teacher is None else {"test_accuracy": teacher}
        self.data["complete"] = True
        self.write()

    def write(self) -> None:
        """Writes the file: config, seed, device, complete, versions, epochs (epoch, stage, T, phi, train_loss,
        loss_terms, val_accuracy, seconds), best_per_stage, best, last, teacher. Epochs count from 1, over all stages."""
        if self._path is not None:
            os.makedirs(os.path.dirname(self._path) or ".", exist_ok=True)
            write_text(self._path, json.dumps(_no_nan(self.data), indent=1) + "\n")


def _no_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _no_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_no_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
