"""The loss of stage I as a mid-level loss of torchdistill: it picks the logits out of the box's I/O dicts."""

import torch
from torchdistill.losses.registry import register_mid_level_loss

import akd_ext


@register_mid_level_loss
class AnnealingKDLoss(akd_ext.AnnealingKDLoss):
    """``akd_ext.AnnealingKDLoss`` fed from a torchdistill box (equation 3 of the paper).

    In a stage of a torchdistill YAML::

        criterion:
          key: 'WeightedSumLoss'
          kwargs:
            sub_terms:
              annealing_kd:
                criterion:
                  key: 'AnnealingKDLoss'
                  kwargs:
                    tau_max: 10
                weight: 1.0
        pre_epoch_process: 'annealing_pre_epoch_process'

    Args:
        tau_max, annealing, loss, reduction: see ``akd_ext.AnnealingKDLoss``.
        student_module_path, student_module_io: where the student's logits are: a module path that the stage hooks and
            ``'input'`` or ``'output'``. ``'.'`` and ``'output'`` is what the model returns.
        teacher_module_path, teacher_module_io: the same for the teacher.

    The temperature is set once per epoch by ``annealing_pre_epoch_process`` (or by ``set_temperature``, ``set_epoch``).
    A loss whose temperature nobody set would train at tau_max for ever, so ``forward`` refuses with RuntimeError.

    Example:
        >>> import torch
        >>> from akd_ext.torchdistill import AnnealingKDLoss
        >>> loss = AnnealingKDLoss(tau_max=2)
        >>> loss.set_temperature(2)  # Phi(2) = 1 - (2 - 1) / 2
        0.5
        >>> student, teacher = torch.zeros(4, 10), torch.ones(4, 10)
        >>> loss({".": {"output": student}}, {".": {"output": teacher}}).item()
        0.25
    """

    def __init__(
        self,
        tau_max,
        annealing="linear",
        *,
        loss="mse",
        reduction=None,
        student_module_path=".",
        student_module_io="output",
        teacher_module_path=".",
        teacher_module_io="output",
    ):
        super().__init__(tau_max, annealing, loss=loss, reduction=reduction)
        self.student_module_path, self.student_module_io = student_module_path, student_module_io
        self.teacher_module_path, self.teacher_module_io = teacher_module_path, teacher_module_io
        self.temperature_was_set = False  # after super().__init__, which may itself start at tau_max

    def set_temperature(self, temperature):
        """Set T and Phi(T); see ``akd_ext.AnnealingKDLoss.set_temperature``."""
        self.temperature_was_set = True
        return super().set_temperature(temperature)

    def set_epoch(self, epoch, num_epochs):
        """Set T and Phi(T) for one epoch of stage I; see ``akd_ext.AnnealingKDLoss.set_epoch``."""
        self.temperature_was_set = True
        return super().set_epoch(epoch, num_epochs)

    def forward(self, student_io_dict, teacher_io_dict, targets=None, *args, **kwargs):
        """Take the logits of both models out of the I/O dicts and compare them; ``targets`` is not read.

        Raises:
            RuntimeError: the temperature was never set.
            ValueError: an I/O dict holds no tensor where the logits should be.
        """
        if not self.temperature_was_set:
            raise RuntimeError(
                "AnnealingKDLoss: its temperature was never set, so it would stay at tau_max; "
                "add `pre_epoch_process: 'annealing_pre_epoch_process'` to this stage"
            )
        student = _logits("student", student_io_dict, self.student_module_path, self.student_module_io)
        teacher = _logits("teacher", teacher_io_dict, self.teacher_module_path, self.teacher_module_io)
        return super().forward(student, teacher)


def _logits(who, io_dict, path, io):
    """``io_dict[path][io]``, or an error that says which YAML key is wrong."""
    value = io_dict.get(path, {}).get(io)
    if isinstance(value, torch.Tensor):
        return value
    held = ", ".join(f"'{p}' {i}: {type(v).__name__}" for p, ios in io_dict.items() for i, v in ios.items())
    hint = ""
    if value is None and path == "." and io in io_dict.get(path, {}):
        hint = f"; the {who} returned None: is its forward_proc 'skip_forward' in this stage?"
    raise ValueError(
        f"AnnealingKDLoss: {who}_module_path '{path}' with {who}_module_io '{io}' is not a tensor, "
        f"the {who}'s I/O dict holds: {held or 'nothing'}{hint}"
    )
