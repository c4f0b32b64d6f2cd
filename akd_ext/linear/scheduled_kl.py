"""KL over all logits, chunk by chunk, against one family of scheduled targets; and plain cross-entropy from hidden states."""

from __future__ import annotations

from torch import Tensor

from akd_ext.op import validation as _checks

from . import validation
from .divergence import ChunkedKL, Target
from .heads import whole
from .loss import Tokens, make_heads


def linear_scheduled_kl_loss(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor | None = None,
    teacher_weight: Tensor | None = None,
    *,
    teacher_scale: float | Tensor = 1.0,
    student_scale: float | Tensor = 0.0,
    label_weight: float | Tensor = 0.0,
    temperature: float | Tensor = 1.0,
    labels: Tensor | None = None,
    direction: str = "forward",
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    reduction: str = "batchmean",
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    divisor: float | Tensor | None = None,
    logit_scale: float = 1.0,
    teacher_logit_scale: float = 1.0,
    ignore_index: int = -100,
    logit_softcapping: float | None = None,
) -> Tensor:
    """``temperature^2 * KL(p || q)`` over a whole vocabulary, for ``q = softmax(z_s / temperature)`` and the target::

        p = (1 - label_weight) * softmax((teacher_scale * z_t + student_scale * z_s.detach()) / temperature)
            + label_weight * onehot(labels)

    with ``z = hidden @ weight.T + bias``. Logits of a few tokens live at a time, in float32 from the product on; the
    gradients, by the student's hidden states, head and bias, are made in the same pass.

    ======================================= ========================================================================
    Annealing-KD with KL (Table 10)         ``teacher_scale=phi``
    KD (Hinton et al., 2015)                ``temperature``; CTKD schedules it
    TAID (Shing et al., ICLR 2025)          ``teacher_scale=t, student_scale=1 - t``
    BAM (Clark et al., ACL 2019)            ``label_weight`` from 0 to 1 (teacher annealing)
    cross-entropy, stage II                 ``label_weight=1``, without a teacher
    ======================================= ========================================================================

    The value is that of a true KL between p and q for every ``label_weight``, p's entropy included: 0 where q is p, and
    the cross-entropy with the labels at 1. Where both parts count it is by the entropy of p below
    ``(1 - label_weight) * cross-entropy(softmax, q) + label_weight * cross-entropy(labels, q)``, with the same gradient.

    Args:
        student_hidden, student_weight, student_bias, teacher_hidden, teacher_weight, teacher_bias, logit_scale,
            teacher_logit_scale, logit_softcapping: as in :func:`akd_ext.linear_annealed_mse_loss`. The teacher may be
            left out, and is not read, where ``label_weight`` is the number 1.
        teacher_scale, student_scale, label_weight, temperature: numbers, or 0-d tensors, which may change at every step
            without recompilation: >= 0, >= 0, in [0, 1], > 0.
        labels: int64 ``(...)``, classes. A token whose label is ``ignore_index`` does not count, whatever
            ``label_weight`` is. Needed unless ``label_weight`` is the number 0.
        direction: ``"forward"``, or ``"reverse"`` for KL(q || p), whose ``label_weight`` must be below 1: labels alone
            are infinitely far in that direction.
        reduction: ``"batchmean"`` over tokens, ``"mean"`` over tokens and classes, ``"sum"``.
        mask, weight, divisor: as in :func:`akd_ext.annealed_mse_loss`, a row being a token. Masked tokens are never
            read. Where none counts the loss is NaN and every gradient 0.

    Heads that are DTensors are gathered, once; the gradient comes out cut as they are, the mean over the processes.
    A class whose bias is -inf is impossible: it has no part in the loss while both sides have it so.

    Returns:
        A 0-d tensor, float64 when one of the inputs is, else float32.

    Raises:
        TypeError, ValueError: an argument is not of the form above; the message names it.

    >>> import torch
    >>> hidden, head = torch.zeros(2, 3, requires_grad=True), torch.ones(4, 3)
    >>> loss = linear_scheduled_kl_loss(hidden, head, labels=torch.tensor([1, -100]), label_weight=1.0)
    >>> round(loss.item(), 4)  # log 4
    1.3863
    """
    validation.check_rest(reduction, "chunked", (logit_scale, teacher_logit_scale), logit_softcapping)
    validation.check_side("student", student_hidden, student_weight, student_bias)
    scales = {
        "teacher_scale": teacher_scale, "student_scale": student_scale, "label_weight": label_weight,
        "temperature": temperature,
    }  # fmt: skip
    validation.check_scales(scales, student_hidden)
    labelled = isinstance(label_weight, Tensor) or label_weight != 0
    taught = isinstance(label_weight, Tensor) or label_weight != 1
    _check_direction(direction, label_weight, student_hidden)
    if mask is not None:
        _checks.check_mask(mask, student_hidden)
    if labels is not None:
        validation.check_labels(labels, student_hidden, student_weight.shape[0], ignore_index)
        counted = labels != ignore_index
        mask = counted if mask is None else mask & counted
    elif labelled:
        raise ValueError("labels is missing; accepted: int64 labels, where label_weight is not 0")
    student_weight, student_bias = whole(student_weight), whole(student_bias)
    teacher = _teacher(student_hidden, student_weight, teacher_hidden, teacher_weight, teacher_bias, taught)
    heads = make_heads(
        student_weight, teacher[1], student_bias=student_bias, teacher_bias=teacher[2], student_ids=None,
        teacher_ids=None, class_weight=None, center=False,
    )  # fmt: skip
    tokens = Tokens(student_hidden, teacher[0], heads, (logit_scale, teacher_logit_scale))
    tokens.labels = labels.flatten() if labelled else None
    tokens.count(reduction, mask, weight, divisor)
    return _loss(tokens, scales, direction, taught)


def _loss(tokens: Tokens, scales: dict[str, float | Tensor], direction: str, taught: bool) -> Tensor:
    target = Target(
        **{name: _scale(name, scale, tokens.student) for name, scale in scales.items()}, reverse=direction == "reverse"
    )
    heads = tokens.heads
    return ChunkedKL.apply(
        tokens.student, heads.student_weight, heads.student_bias, tokens.teacher if taught else None, tokens.labels,
        tokens.rows, tokens.divisor_tensor(), heads, target, tokens.wanted(),
    )  # fmt: skip


def _scale(name: str, scale: float | Tensor, hidden: Tensor) -> Tensor | None:
    if isinstance(scale, Tensor):
        return scale.to(hidden.device, hidden.dtype)
    return None if scale == 0 and name in ("student_scale", "label_weight") else hidden.new_full((), float(scale))


def _check_direction(direction: str, label_weight: float | Tensor, hidden: Tensor) -> None:
    if direction not in ("forward", "reverse"):
        raise ValueError(f"direction is {direction!r}; accepted: 'forward', 'reverse'")
    if direction == "forward":
        return
    if isinstance(label_weight, Tensor):
        label_weight = _checks.check_scalar("label_weight", label_weight, hidden)
    if label_weight == 1:
        raise ValueError(
            "label_weight is 1 with direction='reverse', where labels alone are infinitely far; accepted: < 1"
        )


def _teacher(student_hidden, student_weight, hidden, weight, bias, needed: bool):
    """Hidden states, head and bias; of width 0 where the labels alone are the target."""
    if needed and (hidden is None or weight is None):
        raise ValueError(
            "teacher_hidden or teacher_weight is missing; accepted: both, unless label_weight is the number 1"
        )
    if not needed:
        return student_hidden.detach()[..., :0], student_weight.detach()[:, :0], None
    validation.check_side("teacher", hidden, weight, bias)
    validation.check_sides(student_hidden, hidden)
    classes = student_weight.shape[0]
    if weight.shape[0] != classes:
        raise ValueError(
            f"teacher_weight has {weight.shape[0]} classes; accepted: the student's {classes}; where the longer head is "
            f"only padded, its first rows: weight[:{min(classes, weight.shape[0])}]"
        )
    return hidden, whole(weight), whole(bias)
