"""Stage I of a network with thousands of classes, from what its last layer is applied to: no logits are made."""

import weakref

from torch import nn
from torchdistill.common.module_util import check_if_wrapped, get_module
from torchdistill.core.interfaces.registry import register_forward_proc_func
from torchdistill.losses.registry import register_mid_level_loss

import akd_ext
from akd_ext.linear import teacher_gram
from akd_ext.linear.output_head import forward_replaced
from akd_ext.linear.validation import check_rest

from .losses import logits_in

# The last layer of each model that a loss below was told of.
_LAST_LAYERS = weakref.WeakKeyDictionary()


@register_mid_level_loss
class LinearAnnealingKDLoss(akd_ext.AnnealingKDLoss):
    """:func:`akd_ext.linear_annealed_mse_loss` fed from a torchdistill box: equation 3 over thousands of classes.

    It wants the input of both models' last layers, and reads the layers' weights. In a stage of a torchdistill YAML::

        pre_epoch_process: 'annealing_pre_epoch_process'
        teacher:
          forward_proc: 'headless_forward'
          forward_hook: {input: ['fc'], output: []}
          requires_grad: False
        student:
          forward_proc: 'headless_forward'
          forward_hook: {input: ['fc'], output: []}
        criterion:
          key: 'WeightedSumLoss'
          kwargs:
            sub_terms:
              annealing_kd:
                criterion: {key: 'LinearAnnealingKDLoss', kwargs: {tau_max: 10}}
                weight: 1.0

    Args:
        tau_max, annealing: as in ``AnnealingKDLoss``.
        reduction, center, implementation: as in :func:`akd_ext.linear_annealed_mse_loss`.
        student_module_path, teacher_module_path: the last layers, of the type ``torch.nn.Linear``.

    ``annealing_pre_epoch_process`` sets the temperature and tells the loss of the layers; without it ``forward`` refuses
    with RuntimeError.

    Example:
        >>> import torch
        >>> from akd_ext.torchdistill import LinearAnnealingKDLoss
        >>> loss = LinearAnnealingKDLoss(tau_max=2, student_module_path='0', teacher_module_path='0')
        >>> student, teacher = (torch.nn.Sequential(torch.nn.Linear(4, 10)) for _ in range(2))
        >>> loss.find_heads(student, teacher.requires_grad_(False))
        >>> loss.set_temperature(1)
        1.0
        >>> hidden = {"0": {"input": torch.ones(3, 4)}}
        >>> expected = torch.nn.functional.mse_loss(student(torch.ones(3, 4)), teacher(torch.ones(3, 4)))
        >>> torch.allclose(loss(hidden, hidden), expected)
        True
    """

    def __init__(
        self,
        tau_max,
        annealing="linear",
        *,
        reduction="mean",
        center=False,
        implementation="auto",
        student_module_path="fc",
        teacher_module_path="fc",
    ):
        check_rest(reduction, implementation, (1.0, 1.0), None)
        super().__init__(tau_max, annealing, reduction=reduction)
        self.center, self.implementation = center, implementation
        self.student_module_path, self.teacher_module_path = student_module_path, teacher_module_path
        self._heads = self._gram = None

    def find_heads(self, student, teacher):
        """Reads the last layers of the two models; once an epoch, because a model may have been loaded or moved.

        Raises:
            TypeError: a path names something else than a ``torch.nn.Linear``.
        """
        heads = []
        for who, model in (("student", student), ("teacher", teacher)):
            path = getattr(self, f"{who}_module_path")
            model = model.module if check_if_wrapped(model) else model
            layer = get_module(model, path)
            if type(layer) is not nn.Linear:
                raise TypeError(
                    f"LinearAnnealingKDLoss: {who}_module_path '{path}' is a {type(layer).__name__}, accepted is the "
                    "model's last layer, a torch.nn.Linear"
                )
            _LAST_LAYERS[model] = layer
            heads.append(layer)
        # In a tuple: a module kept as an attribute would become a part of this one.
        self._heads = tuple(heads)
        weight, bias = self._teachers()
        self._gram = teacher_gram(weight, bias, center=self.center, student_has_bias=heads[0].bias is not None)

    def _teachers(self):
        weight, bias = self._heads[1].weight, self._heads[1].bias
        return weight.detach(), None if bias is None else bias.detach()

    def forward(self, student_io_dict, teacher_io_dict, targets=None, *args, **kwargs):
        """The loss of the inputs of the last layers in the I/O dicts; ``targets`` is not read.

        Raises:
            RuntimeError: nobody told the loss of the temperature and of the last layers.
            ValueError: an I/O dict holds no tensor where the last layer's input should be.
        """
        if not self._temperature_was_set or self._heads is None:
            raise RuntimeError(
                "LinearAnnealingKDLoss: nobody told it of the temperature and the models' last layers; "
                "add `pre_epoch_process: 'annealing_pre_epoch_process'` to this stage"
            )
        student, teacher = (
            logits_in(who, io_dict, getattr(self, f"{who}_module_path"), "input", "LinearAnnealingKDLoss")
            for who, io_dict in (("student", student_io_dict), ("teacher", teacher_io_dict))
        )
        head, (weight, bias) = self._heads[0], self._teachers()
        return akd_ext.linear_annealed_mse_loss(
            student, head.weight, teacher, weight, self.phi, student_bias=head.bias, teacher_bias=bias,
            reduction=self.reduction, center=self.center, implementation=self.implementation, teacher_gram=self._gram,
        )  # fmt: skip


@register_forward_proc_func
def headless_forward(model, sample_batch, targets=None, supp_dict=None, **kwargs):
    """Runs the model up to its last layer, of which ``LinearAnnealingKDLoss`` reads the input.

    The stage's ``forward_hook`` has to name the input of that layer.

    Returns:
        What the last layer would have been applied to, passed through whatever comes after it.

    Raises:
        RuntimeError: no ``LinearAnnealingKDLoss`` of the stage named the last layer.
    """
    layer = _LAST_LAYERS.get(model.module if check_if_wrapped(model) else model)
    if layer is None:
        raise RuntimeError(
            "headless_forward: no loss named the model's last layer; accepted is a stage with the criterion "
            "LinearAnnealingKDLoss and `pre_epoch_process: 'annealing_pre_epoch_process'`"
        )
    with forward_replaced(layer, lambda x: x):  # it is there, and its hooks run, but it gives back what it gets
        return model(sample_batch)
