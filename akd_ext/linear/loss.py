"""Annealing-KD's loss over a large vocabulary, from hidden states and heads."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional as F

from akd_ext.op import validation as _checks
from akd_ext.reference import kept_rows

from . import costs, validation
from .chunked import ChunkedMSE
from .gram import GramMSE, Grams, Moments, TeacherGram, grams
from .heads import Heads
from .products import compute_dtype


def linear_annealed_mse_loss(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    phi: float | Tensor,
    *,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    reduction: str = "mean",
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    divisor: float | Tensor | None = None,
    center: bool = False,
    class_weight: Tensor | None = None,
    logit_scale: float = 1.0,
    teacher_logit_scale: float = 1.0,
    teacher_gram: TeacherGram | None = None,
    implementation: str = "auto",
    student_ids: Tensor | None = None,
    teacher_ids: Tensor | None = None,
    logit_softcapping: float | None = None,
) -> Tensor:
    """``|| z_s - phi * z_t ||^2`` over a whole vocabulary, for ``z = hidden @ weight.T + bias``, without these logits.

    Equation 3 of Annealing-KD (Jafari et al., EACL 2021), in value and gradients equal to::

        annealed_mse_loss(student_hidden @ student_weight.T + student_bias,
                          teacher_hidden @ teacher_weight.T + teacher_bias, phi)

    The gradients are those by the student's hidden states, head and bias; a head that wants none costs none.

    Args:
        student_hidden, teacher_hidden: ``(..., H)`` and ``(..., Ht)``, what the output heads are applied to.
        student_weight, teacher_weight: heads, ``(V, H)`` and ``(V, Ht)``; the teacher's is frozen. Where both are the
            same tensor one Gram matrix is enough.
        phi, reduction, mask, weight, divisor: as in :func:`akd_ext.annealed_mse_loss`, a row being a token.
            ``reduction="none"`` is refused. Masked tokens are never read.
        student_bias, teacher_bias: ``(V,)``.
        center: take the mean over the vocabulary out of both logits. Softmax ignores it; in a language model it is
            most of the squared error.
        class_weight: ``(V,)``, non-negative: how much each class counts. It changes no divisor.
        logit_scale, teacher_logit_scale: factors of the logits, where a model has such.
        teacher_gram: :func:`akd_ext.linear.teacher_gram`, once for a frozen teacher, made with the same ``center``,
            ``class_weight`` and ``teacher_ids``.
        implementation: ``"gram"`` (for many tokens), ``"chunked"`` (logits of a few tokens at a time, for few) or
            ``"auto"``, the one with fewer operations.
        student_ids, teacher_ids: int64, of one length: rows of the two heads that mean the same token. V is their number.
        logit_softcapping: such logits are not linear in hidden states: anything but None or 0 is refused.

    Heads may be DTensors, cut by rows: see `akd_ext.linear.distributed`.

    Returns:
        A 0-d tensor, float64 when one of the inputs is, else float32.

    Raises:
        TypeError, ValueError: an argument is not of the form above; the message names it.

    >>> hidden, head = torch.ones(5, 2), torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    >>> linear_annealed_mse_loss(hidden, head, hidden, head, phi=0.5)
    tensor(0.7500)
    """
    validation.check_rest(reduction, implementation, (logit_scale, teacher_logit_scale), logit_softcapping)
    validation.check_side("student", student_hidden, student_weight, student_bias)
    validation.check_side("teacher", teacher_hidden, teacher_weight, teacher_bias)
    validation.check_sides(student_hidden, teacher_hidden)
    phi = _checks.check_phi(phi, student_hidden)
    heads = make_heads(
        student_weight, teacher_weight, student_bias=student_bias, teacher_bias=teacher_bias, student_ids=student_ids,
        teacher_ids=teacher_ids, class_weight=class_weight, center=center,
    )  # fmt: skip
    check_teacher_gram(teacher_gram, heads)
    tokens = Tokens(student_hidden, teacher_hidden, heads, (logit_scale, teacher_logit_scale))
    tokens.count(reduction, mask, weight, divisor)
    if implementation == "auto":
        implementation = cheaper_way(tokens, teacher_gram is not None, False)
    if implementation == "chunked":
        return chunked_loss(tokens, phi)
    with torch.no_grad(), torch.autocast(student_hidden.device.type, enabled=False):
        made = grams(tokens.heads.detached(), teacher_gram)
    return gram_loss(tokens, phi, made)


def make_heads(student_weight: Tensor, teacher_weight: Tensor, **rest) -> Heads:
    """Checked; cut heads as the part of this process."""
    same = student_weight is teacher_weight and rest["student_bias"] is rest["teacher_bias"]
    shared = same and rest["student_ids"] is rest["teacher_ids"]
    heads = Heads(student_weight, teacher_weight, shared=shared, **rest)
    validation.check_heads(heads)
    if type(student_weight) in (Tensor, torch.nn.Parameter) and type(teacher_weight) in (Tensor, torch.nn.Parameter):
        return heads
    from . import distributed

    return distributed.local_heads(heads)


def check_teacher_gram(known: TeacherGram | None, heads: Heads) -> None:
    if known is None:
        return
    if not isinstance(known, TeacherGram):
        raise TypeError(f"teacher_gram is a {type(known).__name__}; accepted: what akd_ext.linear.teacher_gram returns")
    width = heads.teacher_weight.shape[1] + heads.biased
    made_for = (tuple(known.matrix.shape), known.classes, known.center, known.weighted)
    wanted = ((width, width), heads.all_classes, heads.center, heads.class_weight is not None)
    if made_for != wanted:
        names = "(shape, classes, center, with class weights)"
        raise ValueError(f"teacher_gram was made for {names} = {made_for}; accepted: {wanted}, those of this call")


class Tokens:
    """Hidden states of the tokens that count, ``[N, H (+ 1)]`` in the dtype of the arithmetic, and how they count."""

    def __init__(self, student: Tensor, teacher: Tensor, heads: Heads, scales: tuple[float, float]) -> None:
        self.dtype = compute_dtype(student, teacher, heads.student_weight, heads.teacher_weight)
        self.heads = dataclasses.replace(heads, compute_dtype=self.dtype)
        self.student = student.reshape(-1, student.shape[-1])
        self.teacher = teacher.detach().reshape(self.student.shape[0], teacher.shape[-1])
        self._scales, self._shape = scales, student.shape[:-1]
        self.rows: Tensor | None = None
        self.labels: Tensor | None = None  # int64 ``[N]``, of a loss that reads them

    def count(self, reduction: str, mask: Tensor | None, weight: Tensor | None, divisor: float | Tensor | None) -> None:
        """Leaves out the tokens that do not count; finds what the sum is divided by."""
        if mask is not None:
            _checks.check_mask(mask, _shaped(self.student, self._shape))
            mask = mask.flatten()
        if weight is not None:
            _checks.check_weight(weight, _shaped(self.student, self._shape))
            self.rows = weight.flatten().to(self.dtype)
        kept = kept_rows(mask, self.rows)
        if kept is not None:
            self._keep(kept)
        if divisor is not None:
            self.divisor = _checks.check_divisor(divisor, self.student)
        else:
            count = self.student.shape[0] if self.rows is None else self.rows.sum()
            self.divisor = {"sum": 1, "batchmean": count, "mean": count * self.heads.all_classes}[reduction]
        self.student = self._prepared(self.student, self._scales[0])
        self.teacher = self._prepared(self.teacher, self._scales[1])

    def _keep(self, kept: Tensor) -> None:
        if torch.compiler.is_compiling():  # a graph has fixed shapes
            zero = self.student.new_zeros(())
            self.student = self.student.where(kept.unsqueeze(1), zero)
            self.teacher = self.teacher.where(kept.unsqueeze(1), zero.to(self.teacher.dtype))
            self.labels = None if self.labels is None else self.labels.where(kept, 0)
            rows = kept.to(self.dtype)
            self.rows = rows if self.rows is None else self.rows.where(kept, rows.new_zeros(()))
            return
        chosen = kept.nonzero().squeeze(1)
        self.student, self.teacher = self.student.index_select(0, chosen), self.teacher.index_select(0, chosen)
        self.rows = None if self.rows is None else self.rows.index_select(0, chosen)
        self.labels = None if self.labels is None else self.labels.index_select(0, chosen)

    def _prepared(self, hidden: Tensor, scale: float) -> Tensor:
        hidden = hidden.to(self.dtype)
        if self.heads.biased:
            hidden = F.pad(hidden, (0, 1), value=1.0)
        return hidden if scale == 1.0 else hidden * scale

    def wanted(self) -> tuple[bool, bool, bool]:
        """Whether a gradient is wanted by hidden states, by the head with its bias, by the bias."""
        by_hidden, by_weight, by_bias = (
            torch.is_grad_enabled() and x is not None and x.requires_grad
            for x in (self.student, self.heads.student_weight, self.heads.student_bias)
        )
        return by_hidden, by_weight or by_bias, by_bias

    def divisor_tensor(self) -> Tensor:
        """The divisor as a 0-d tensor in the dtype of the arithmetic."""
        divisor = self.divisor
        divisor = divisor if isinstance(divisor, Tensor) else self.student.new_full((), float(divisor))
        return divisor.detach().to(self.dtype)

    def problem(self, teacher_gram_known: bool, grams_known: bool) -> costs.Problem:
        heads = self.heads
        wanted = torch.is_grad_enabled()
        bias = heads.student_bias is not None and heads.student_bias.requires_grad
        return costs.Problem(
            self.student.shape[0], heads.student_weight.shape[1], heads.teacher_weight.shape[1], heads.all_classes,
            wanted and (heads.student_weight.requires_grad or bias), wanted and self.student.requires_grad, heads.basis,
            grams_known, teacher_gram_known,
        )  # fmt: skip


def _shaped(student: Tensor, shape: torch.Size) -> Tensor:
    return student.reshape(*shape, student.shape[-1])


def cheaper_way(tokens: Tokens, teacher_gram_known: bool, grams_known: bool) -> str:
    if tokens.heads.reduce is not None:  # a process has the logits of its own rows only
        return "gram"
    return costs.cheaper(tokens.problem(teacher_gram_known, grams_known))


def gram_loss(tokens: Tokens, phi: float | Tensor, made: Grams, moments: Moments | None = None) -> Tensor:
    heads = tokens.heads
    phi = phi.to(tokens.student.device, tokens.dtype) if isinstance(phi, Tensor) else phi
    weight, bias = heads.student_weight, heads.student_bias
    # They collect the head's gradient. Where hidden states want none, the head alone makes autograd come to backward.
    if moments is not None and tokens.student.requires_grad:
        weight, bias = weight.detach(), None if bias is None else bias.detach()
    made = Grams(*(x.to(tokens.dtype) for x in made[:3]), made.means)
    total = GramMSE.apply(tokens.student, weight, bias, tokens.teacher, phi, tokens.rows, heads, made, moments)
    return divided(total, tokens.divisor)


def divided(total: Tensor, divisor: float | Tensor) -> Tensor:
    """NaN where nothing counts, and then a gradient of 0."""
    if not isinstance(divisor, Tensor):
        return total / divisor if divisor else total * float("nan")
    divisor = divisor.to(total.device, total.dtype)
    return (total / divisor.where(divisor != 0, divisor.new_ones(()))).masked_fill(divisor == 0, float("nan"))


def chunked_loss(tokens: Tokens, phi: float | Tensor) -> Tensor:
    heads = tokens.heads
    if heads.reduce is not None:
        raise ValueError("implementation is 'chunked' for heads cut by rows; accepted: 'auto' or 'gram'")
    return ChunkedMSE.apply(
        tokens.student, heads.student_weight, heads.student_bias, tokens.teacher, phi, tokens.rows,
        tokens.divisor_tensor(), heads, tokens.wanted(),
    )  # fmt: skip
