"""What makes two commands the same run: only then one goes on with the state of the other."""

from __future__ import annotations

import os
from typing import Any

from akd_ext.logit_cache import describe_teacher
from akd_ext.train.config.document import Tagged
from akd_ext.train.distributed import group
from akd_ext.train.tasks.text.data import TextDataset

_PLACES = ("root", "cache_dir")  # where data and caches are, which may be elsewhere the next time


def run_fingerprint(args: Any, config: Any, teacher: Any, datasets: dict) -> dict[str, Any]:
    """What must be the same for a run to go on: everything that the student depends on, but where it is computed."""
    home = os.path.join(args.output_dir, "") if args.output_dir else None

    def shown(value: Any) -> Any:
        if isinstance(value, Tagged):
            return {value.tag: shown(value.value)}
        if isinstance(value, dict):
            return {str(key): shown(item) for key, item in value.items() if key not in _PLACES}
        if isinstance(value, (list, tuple)):
            return [shown(item) for item in value]
        if isinstance(value, str) and home and value.startswith(home):
            return f"<output_dir>/{value[len(home) :]}"  # the folder may be moved between two commands
        return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)

    told = shown(config.tree.plain())
    if teacher is not None and told["models"].get("teacher_model"):
        told["models"]["teacher_model"].pop("src_ckpt", None)  # its weights count, below
    return {
        "config": told,
        "seed": args.seed,
        "amp": args.amp,
        "adjust_lr": args.adjust_lr,
        "processes": group.world_size(),
        "teacher weights": describe_teacher(teacher)["weights"] if teacher is not None else None,
        "samples": {name: len(dataset) for name, dataset in datasets.items() if hasattr(dataset, "__len__")},
        # Of text: images may be made anew at every look.
        "token ids and labels": {n: d.fingerprint() for n, d in datasets.items() if isinstance(d, TextDataset)},
    }
