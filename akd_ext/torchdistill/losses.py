"""The loss of stage I as a mid-level loss of torchdistill: it picks the logits out of the box's I/O dicts."""

import torch
from torch import nn
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
        class_dim: where the classes lie: 1 for the logits ``(N, C, H, W)`` of segmentation, -1 for those of tokens,
            ``(N, L, C)``. Logits of more than two dimensions want it, unless the loss is ``mse`` by ``mean`` or
            ``sum``, which are the same wherever the classes lie.
        student_module_path, student_module_io: where the student's logits are: a module path that the stage hooks and
            ``'input'`` or ``'output'``. ``'.'`` and ``'output'`` is what the model returns: a tensor, or a
            Hugging Face output with ``logits``.
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
        class_dim=None,
        student_module_path=".",
        student_module_io="output",
        teacher_module_path=".",
        teacher_module_io="output",
    ):
        super().__init__(
            tau_max, annealing, loss=loss, reduction=reduction, class_dim=-1 if class_dim is None else class_dim
        )
        self.class_dim_was_given = class_dim is not None
        self.student_module_path, self.student_module_io = student_module_path, student_module_io
        self.teacher_module_path, self.teacher_module_io = teacher_module_path, teacher_module_io

    def forward(self, student_io_dict, teacher_io_dict, targets=None, *args, **kwargs):
        """Take the logits of both models out of the I/O dicts and compare them; ``targets`` is not read.

        Raises:
            RuntimeError: the temperature was never set.
            ValueError: an I/O dict holds no tensor where the logits should be; the logits have more than two dimensions,
                and ``class_dim`` does not say where the classes lie.
        """
        if not self._temperature_was_set:
            raise RuntimeError(
                "AnnealingKDLoss: its temperature was never set, so it would stay at tau_max; "
                "add `pre_epoch_process: 'annealing_pre_epoch_process'` to this stage"
            )
        student = logits_in("student", student_io_dict, self.student_module_path, self.student_module_io)
        teacher = logits_in("teacher", teacher_io_dict, self.teacher_module_path, self.teacher_module_io)
        if student.ndim > 2 and not self.class_dim_was_given and not self._any_class_dim_will_do():
            raise ValueError(
                f"{type(self).__name__}: class_dim is not given, and the logits have the shape {tuple(student.shape)}; add "
                "`class_dim: 1` to its kwargs for (N, C, H, W), `class_dim: -1` for (N, L, C)"
            )
        return super().forward(student, teacher)

    def _any_class_dim_will_do(self):
        return self.loss == "mse" and self.reduction in ("mean", "sum")


@register_mid_level_loss
class ContinuationKDLoss(AnnealingKDLoss):
    """Continuation-KD (Jafari et al., Findings of EMNLP 2022), for comparison: one stage that moves from teacher to labels::

        psi CE(student, targets) + (1 - psi) max(0, |student - Phi(T) teacher|^2 - margin Phi(T))

    Both terms are averaged over the batch; the squared norm is summed over classes. ``psi = (tau_max - T) / (tau_max - 1)``
    goes from 0 at the first temperature to 1 at the last one, where the labels alone count.

    Args:
        tau_max: as in ``AnnealingKDLoss``, 2 at least.
        margin: the squared distance that is forgiven where Phi = 1, >= 0: what is below it may be the teacher's noise.
        annealing, class_dim and the paths of the logits: as in ``AnnealingKDLoss``.

    Raises:
        ValueError: ``tau_max`` or ``margin`` out of range.

    Example:
        >>> import torch
        >>> from akd_ext.torchdistill import ContinuationKDLoss
        >>> loss = ContinuationKDLoss(tau_max=2, margin=1.0)
        >>> loss.set_temperature(2)  # psi = 0
        0.5
        >>> student, teacher, targets = torch.zeros(4, 10), torch.ones(4, 10), torch.zeros(4, dtype=torch.long)
        >>> loss({".": {"output": student}}, {".": {"output": teacher}}, targets).item()  # 10 * 0.5^2 - 1.0 * 0.5
        2.0
    """

    def __init__(self, tau_max, margin=1.0, annealing="linear", **paths):
        super().__init__(tau_max, annealing, reduction="none", **paths)
        if tau_max < 2:
            raise ValueError(f"ContinuationKDLoss: tau_max is {tau_max}, accepted is 2 or more")
        if not (isinstance(margin, (int, float)) and 0 <= margin < float("inf")):
            raise ValueError(f"ContinuationKDLoss: margin is {margin!r}, accepted is a finite number >= 0")
        self.margin = margin

    def forward(self, student_io_dict, teacher_io_dict, targets=None, *args, **kwargs):
        """As ``AnnealingKDLoss.forward``, with ``targets`` (int64 [B], or class probabilities) for the cross-entropy."""
        distance = super().forward(student_io_dict, teacher_io_dict).sum(self.class_dim)
        student = logits_in("student", student_io_dict, self.student_module_path, self.student_module_io)
        if student.ndim > 2:
            student = student.movedim(self.class_dim, 1)  # where PyTorch's cross-entropy looks for the classes
        psi = (self.tau_max - self.temperature) / (self.tau_max - 1)
        beyond = (distance - self.margin * self.phi).clamp(min=0).mean()
        return psi * nn.functional.cross_entropy(student, targets) + (1 - psi) * beyond


def logits_in(who, io_dict, path, io, loss="AnnealingKDLoss"):
    """``io_dict[path][io]`` or, of a Hugging Face output, its ``logits``; else an error that says which YAML key is
    wrong."""
    value = io_dict.get(path, {}).get(io)
    for found in (value, getattr(value, "logits", None)):
        if isinstance(found, torch.Tensor):
            return found
    held = ", ".join(f"'{p}' {i}: {type(v).__name__}" for p, ios in io_dict.items() for i, v in ios.items())
    hint = ""
    if value is None and path == "." and io in io_dict.get(path, {}):
        hint = f"; the {who} returned None: is its forward_proc 'skip_forward' in this stage?"
    raise ValueError(
        f"{loss}: {who}_module_path '{path}' with {who}_module_io '{io}' is not a tensor, "
        f"the {who}'s I/O dict holds: {held or 'nothing'}{hint}"
    )
