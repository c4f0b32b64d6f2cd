"""How a torchdistill box runs a model on a batch (YAML key ``forward_proc`` of a stage's teacher or student)."""

from torchdistill.core.interfaces.registry import register_forward_proc_func


@register_forward_proc_func
def skip_forward(model, sample_batch, targets=None, supp_dict=None, **kwargs):
    """Do not run the model; its output is ``None``.

    torchdistill runs the teacher in every stage, also where no loss reads it. Stage II of Annealing-KD trains with
    cross-entropy alone (equation 2 of the paper), so its YAML says::

        teacher:
          forward_proc: 'skip_forward'
          requires_grad: False

    Returns:
        None. A loss that reads the output of a skipped model fails; ``AnnealingKDLoss`` says why.

    Example:
        >>> from akd_ext.torchdistill import skip_forward
        >>> skip_forward(model=None, sample_batch=None) is None
        True
    """
