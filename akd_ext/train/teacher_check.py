"""The teacher, looked at before it teaches: is it finite, and how good is it?"""

from __future__ import annotations

import logging

from torchdistill.datasets.util import build_data_loader

from akd_ext.train.checkpoint.weights import not_finite
from akd_ext.train.system.errors import ConfigError
from akd_ext.train.system.random_states import random_states_put_back

from .boxes import stages_in
from .build import Job

logger = logging.getLogger(__name__)


def check_teacher(job: Job) -> None:
    """Refuses a teacher whose weights are not finite; logs how good it is and warns if it is near chance, if it is tested at all.

    On the validation data: nothing before the end may read the test split. Neither its mode nor a random state is changed.

    Raises:
        ConfigError: a weight is NaN or infinite, or a buffer NaN.
    """
    teacher = job.teacher
    if teacher is None:
        return
    if bad := not_finite(teacher):
        raise ConfigError(
            f"models.teacher_model: the teacher's own weights are not finite ({bad}), so there is nothing to "
            "learn from it; its checkpoint is spoilt"
        )
    if not job.tests_teacher:
        return
    modes = {module: module.training for module in teacher.modules()}
    with random_states_put_back():
        config = stages_in(job.built["train"])[0]["val_data_loader"]
        loader = build_data_loader(job.built["datasets"][config["dataset_id"]], config, False)
        score = job.task.evaluate(teacher, loader)
    for module, training in modes.items():
        module.training = training
    logger.info("the teacher, before training: val %s", score)
    classes = getattr(getattr(teacher, "config", None), "num_labels", None) or getattr(score, "classes", None)
    accuracy = score.metrics.get("accuracy") if score.metrics else score.top1
    if classes and accuracy is not None and accuracy <= 1.2 * 100 / classes:
        logger.warning(
            "the teacher's validation accuracy, %.2f %%, is near chance (%.2f %%): are its weights loaded (src_ckpt), and are "
            "its classes in the order of the labels?", accuracy, 100 / classes,
        )  # fmt: skip
