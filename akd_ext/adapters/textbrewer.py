"""Stage I in TextBrewer: an entry in its map of KD losses, and one that follows its progress."""

from __future__ import annotations

from typing import Any

import akd_ext
from akd_ext.adapters import needs

with needs("textbrewer"):
    from textbrewer import register_new


def annealing(criterion: akd_ext.AnnealingKDLoss, weight: float = 1.0) -> dict[str, Any]:
    """Arguments for a ``textbrewer.DistillationConfig`` that trains by ``criterion``, for one ``train()``.

    T falls from ``tau_max`` to 1 in ``tau_max`` equal parts of the training, whole epochs where their number is a
    multiple of ``tau_max``. TextBrewer's temperature schedulers see logits only, not the progress; its weight
    schedulers do, so the temperature is set there. TextBrewer cannot resume a training.

    Args:
        criterion: an :class:`akd_ext.AnnealingKDLoss`; it is set back to ``tau_max``.
        weight: TextBrewer's ``kd_loss_weight``.

    Raises:
        TypeError: ``criterion`` is a loss of hidden states.

    Example::

        config = textbrewer.DistillationConfig(**annealing(akd_ext.AnnealingKDLoss(tau_max=10)))
        with textbrewer.BasicDistiller(train_config, config, teacher, student, adaptor_T, adaptor_S) as distiller:
            distiller.train(optimizer, loader, num_epochs)  # outside of `with` the teacher stays in train mode
    """
    if isinstance(criterion, akd_ext.LinearAnnealingKDLoss):
        raise TypeError("criterion is a LinearAnnealingKDLoss, of hidden states; accepted: an AnnealingKDLoss")
    parts = criterion.tau_max
    criterion.set_temperature(parts)

    def kd_loss(student, teacher, temperature):  # TextBrewer's own temperature is not ours
        return criterion(student, teacher)

    def follow(progress):  # after every optimizer step but before the next, from above 0 to 1
        criterion.set_epoch(min(int(progress * parts + 1e-6), parts - 1), parts)  # 1e-6: a part that is 2.9999999 is 3
        return weight

    name = f"annealing_kd_{id(criterion)}"  # the maps are shared by all of the process
    register_new("kd_loss", name, kd_loss)
    register_new("weight_scheduler", name, follow)
    return {"kd_loss_type": name, "kd_loss_weight": weight, "kd_loss_weight_scheduler": name}
