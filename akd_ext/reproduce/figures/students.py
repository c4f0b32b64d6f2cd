"""The students of figure 3: one ``akd-train`` run that keeps the student at the end of every temperature.

    python -m akd_ext.reproduce.figures.students FOLDER --config X.yaml ...    # the rest as for akd-train

``train.stage1.post_epoch_process=keep_student`` in the YAML, or by ``--set``, says in which stage. The file of a temperature
is written anew after every epoch at it; the last of them stays.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from akd_ext.train.system.errors import RunError


def student_file(folder: Path, temperature: int) -> Path:
    return folder / f"student-T{temperature}.pt"


def main(argv: Sequence[str]) -> int:
    """Register ``keep_student`` for a folder, then run ``akd-train`` and return its exit code."""
    folder = Path(argv[0])
    import torch
    import torchvision.datasets  # noqa: F401  torchdistill wants it
    from torchdistill.core.interfaces.post_epoch_proc import default_post_epoch_process_with_teacher
    from torchdistill.core.interfaces.registry import register_post_epoch_proc_func

    from akd_ext.filesystem import replacing
    from akd_ext.torchdistill.pre_epoch import annealing_losses
    from akd_ext.train import cli

    def keep_student(self, **kwargs) -> None:
        default_post_epoch_process_with_teacher(self, **kwargs)
        losses = [loss for _, loss in annealing_losses(self.criterion)]
        if len(losses) != 1:
            raise RunError(f"keep_student wants a stage with one AnnealingKDLoss, not {len(losses)}")
        state = {name: value.cpu() for name, value in self.student_model.state_dict().items()}
        with replacing(student_file(folder, losses[0].temperature)) as temporary, open(temporary, "wb") as file:
            torch.save({"model": state}, file)

    register_post_epoch_proc_func(key="keep_student")(keep_student)
    return cli.main(argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
