"""Distillation of causal language models without logits, in Hugging Face's Trainer."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Trainer

import akd_ext
from akd_ext.adapters import check_unit
from akd_ext.linear import output_head
from akd_ext.linear.output_head import forward_replaced

from .callback import AnnealingCallback
from .decoder import check_logits, check_model, plain, run_decoder
from .objectives import OPTIONS, Objective
from .teacher import INDEX, CachedTeacher, OnlineTeacher, Teacher

IGNORED = -100


class CausalLMAnnealingTrainer(Trainer):
    """A Trainer that distils a causal language model from hidden states; evaluates as a plain Trainer does.

    The heads of student and teacher are never called in training and no ``[tokens, vocabulary]`` tensor is made: see
    `akd_ext.linear`. Labels are shifted as in transformers: a position counts if the token after it has a label that is
    not -100, and neither of them is padding in ``attention_mask``. Other positions are never read. In packed rows the
    first label of each text has to be -100, as ``DataCollatorWithFlattening`` makes it. Losses are divided by the
    tokens of the whole optimizer step (``num_items_in_batch``), whatever the sizes of its micro-batches.

    ``loss`` is one of (in brackets the names that ``loss_options`` may have):

    - ``"mse"``, stage I: :class:`akd_ext.LinearAnnealingKDLoss`, centred [center, class_weight, implementation];
    - ``"topk"``, stage I: :func:`akd_ext.linear_topk_kl_loss` with k = 64 and anchor = 1 [k, temperature, t, topk,
      anchor, anchor_options];
    - ``"kl"``: :func:`akd_ext.linear_scheduled_kl_loss` with teacher_scale = Phi [teacher_scale, student_scale,
      label_weight, temperature, direction];
    - ``"cross_entropy"``, stage II: with the labels, a chunk of tokens at a time; takes no teacher.

    Args:
        loss, loss_options: as above. For ``"topk"`` and ``"kl"`` a value may be a function of Phi, for a schedule.
        criterion: an :class:`akd_ext.AnnealingKDLoss`, the schedule of Phi; for ``"mse"`` also the reduction
            (``"mean"``: over tokens and classes). The other losses are means over tokens; with no criterion Phi is 1.
        teacher: a causal language model with the student's tokenizer. It runs once a batch, frozen, without its head.
        teacher_states: in its place an :class:`akd_ext.logit_cache.HiddenStateCache`; the training set then has the
            column ``index``, the place of each text in it (in packed rows the places of their texts, then -1).
        teacher_head: the head for ``teacher_states``, if they hold none: a layer, its weight, an ``OutputHead``. If their
            identity describes a head (``describe_language_model``), it has to be that one.
        vocabulary: how many rows, the first ones, the heads have in common; needed where one is padded to another
            length, unless ``processing_class``, the tokenizer, tells it.
        unit: ``"step"`` or ``"epoch"``, see :class:`AnnealingCallback`.
        The rest: as for ``transformers.Trainer``.

    Raises:
        TypeError, ValueError: the arguments do not go together; a model's logits are not linear in its hidden states
            (soft-capped, an adapter on the head, factors that its config does not tell); the vocabularies are unequal;
            a training batch lacks a column, or has another number of tokens than the cache; the head is none of the
            cache's. (Texts that are as long as the right ones are not told apart: ``index`` has to be right.)

    Stage I, then stage II::

        data = {"train_dataset": texts, "data_collator": DataCollatorForLanguageModeling(tokenizer, mlm=False)}
        criterion = akd_ext.AnnealingKDLoss(tau_max=10)
        CausalLMAnnealingTrainer(student, args, **data, teacher=teacher, criterion=criterion).train()
        CausalLMAnnealingTrainer(student, args, **data, loss="cross_entropy").train()
    """

    def __init__(
        self,
        *args,
        loss: str = "mse",
        criterion: akd_ext.AnnealingKDLoss | None = None,
        teacher: nn.Module | None = None,
        teacher_states: Any = None,
        teacher_head: Any = None,
        loss_options: Mapping[str, Any] | None = None,
        vocabulary: int | None = None,
        unit: str = "step",
        **kwargs,
    ) -> None:
        options = dict(loss_options or {})
        _check_loss(loss, criterion, options, (teacher is not None) + (teacher_states is not None))
        check_unit(unit)
        # Passing a compute_loss_func tells the Trainer to count the items and not to divide the loss again.
        super().__init__(*args, compute_loss_func=_loss_of, **kwargs)
        self._check_arguments()
        head = check_model("student", self.model)
        self._teacher: Teacher | None = None
        if teacher is not None:
            _check_teacher(teacher, self.model)
            self._teacher = OnlineTeacher(teacher, self.args.device, self.place_model_on_device)
        elif teacher_states is not None:
            self._teacher = CachedTeacher(teacher_states, teacher_head, self.args.device)
        classes, teacher_head = None, None
        if self._teacher is not None:
            teacher_head = self._teacher.head
            classes = self._rows_in_common(len(head.weight), len(teacher_head.weight), vocabulary)
        self._objective = Objective(loss, criterion, options, teacher_head, classes)
        self._is_checked, self._accumulation = False, None
        if criterion is not None:
            annealing = AnnealingCallback(criterion, unit)
            self.add_callback(annealing)
            annealing.beside = self.callback_handler.callbacks

    def _check_arguments(self) -> None:
        if self.args.n_gpu > 1:
            raise ValueError(
                "there are several GPUs in one process (DataParallel); accepted: a process for each, by torchrun"
            )
        if self.args.label_smoothing_factor:
            raise ValueError(f"label_smoothing_factor is {self.args.label_smoothing_factor}; accepted: 0")
        if self.args.torch_compile:
            raise ValueError("torch_compile is True; accepted: False, with student.base_model.compile() before")
        if hasattr(self.model, "_orig_mod"):
            raise ValueError(
                "the student is what torch.compile returned; accepted: the model, with base_model.compile()"
            )
        plugin = self.args.deepspeed_plugin
        if plugin is not None and plugin.zero_stage == 3:
            raise ValueError("DeepSpeed ZeRO-3 cuts the head where it is not called; accepted: ZeRO-1 and 2, or FSDP")

    def _rows_in_common(self, student: int, teacher: int, given: int | None) -> int | None:
        """None where all rows are."""
        if given is not None:
            if isinstance(given, bool) or not isinstance(given, int) or not 1 <= given <= min(student, teacher):
                raise ValueError(f"vocabulary is {given!r}; accepted: 1 to {min(student, teacher)}, rows of both heads")
            return None if given == student == teacher else given
        if student == teacher:
            return None
        tokens = len(self.processing_class) if hasattr(self.processing_class, "__len__") else None
        if tokens is None or tokens > min(student, teacher):
            known = "" if tokens is None else f", and the tokenizer {tokens} tokens"
            raise ValueError(
                f"the vocabularies have {student} and {teacher} entries{known}; accepted: equal ones, or vocabulary=, "
                "the number of first rows that mean the same tokens in both (the tokenizer's length where the rest is "
                "only padding)"
            )
        return tokens

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        if INDEX not in self._signature_columns:  # or the Trainer drops it: the model's forward does not take it
            self._signature_columns.append(INDEX)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The Trainer counts the items here: it is given what the loss counts."""
        # Data without a length may have ended within a step, whose gradients the Trainer adds to those of the next.
        self._close_accumulation()
        return super().get_batch_samples(map(_with_targets, epoch_iterator), num_batches, device)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = dict(inputs)
        index = inputs.pop(INDEX, None)
        if not model.training:
            with _without_loss_func(self):
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = _with_targets(inputs)
        targets = inputs.pop("shift_labels")
        if num_items_in_batch is None:
            num_items_in_batch = targets.ne(IGNORED).sum()
        of_decoder = {name: value for name, value in inputs.items() if name != "labels"}
        student = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        with self.accelerator.autocast():
            teacher = None if self._teacher is None else self._teacher(of_decoder, index)
            batch = _Batch(student, student.forward, teacher, targets, num_items_in_batch)
            with forward_replaced(student, functools.partial(self._forward, batch)):
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _forward(self, batch: _Batch, num_items_in_batch: Any = None, **inputs) -> dict[str, Tensor]:
        """In the place of the student's. The number of items, which the Trainer hands to a forward, is in ``batch``."""
        student = batch.student
        output = run_decoder(student, inputs)
        if not self._is_checked:
            check_logits("student", student, batch.own_forward, inputs, output)
            self._is_checked = True
        targets = batch.targets.flatten()
        counted = targets.ne(IGNORED).nonzero().squeeze(1)
        teacher = batch.teacher
        if teacher is not None:
            teacher = teacher.to(output[0].device).flatten(0, 1).index_select(0, counted)
        hidden = output[0].flatten(0, 1).index_select(0, counted)
        head, labels = output_head(plain(student)), targets.index_select(0, counted)
        return {"loss": self._objective(hidden, head, teacher, labels, batch.num_items)}

    def training_step(self, model, inputs, num_items_in_batch=None):
        """One micro-batch; those of an optimizer step share the Gram matrices where they can."""
        if self._accumulation is None and num_items_in_batch is not None:
            self._accumulation = self._accumulate(model, num_items_in_batch)
        try:
            loss = super().training_step(model, inputs, num_items_in_batch)
        except BaseException:
            self._drop_accumulation()
            raise
        if self.accelerator.sync_gradients:
            self._close_accumulation()
        return loss

    def train(self, *args, **kwargs):
        try:
            return super().train(*args, **kwargs)
        finally:
            self._drop_accumulation()  # stopped between two micro-batches: nothing of them gets into the next training

    def _close_accumulation(self) -> None:
        """Here the head gets its gradient."""
        accumulation, self._accumulation = self._accumulation, None
        if accumulation is not None:
            accumulation.close()

    def _drop_accumulation(self) -> None:
        accumulation, self._accumulation = self._accumulation, None
        if accumulation is not None:
            accumulation.__exit__(_Dropped, _Dropped(), None)

    def _accumulate(self, model: nn.Module, num_items: Any) -> contextlib.ExitStack | None:
        # Several processes exchange gradients inside backward; the head's would come after it.
        if self.args.gradient_accumulation_steps == 1 or self.accelerator.distributed_type != DistributedType.NO:
            return None
        student = plain(self.accelerator.unwrap_model(model, keep_torch_compile=False))
        return self._objective.accumulate(output_head(student), num_items)


class _Dropped(Exception):
    """Ends an open block without gradients."""


class _Batch(NamedTuple):
    student: nn.Module
    own_forward: Callable
    teacher: Tensor | None
    targets: Tensor
    num_items: Any


def _loss_of(outputs, labels, num_items_in_batch=None) -> Tensor:
    return outputs["loss"]


@contextlib.contextmanager
def _without_loss_func(trainer: Trainer) -> Iterator[None]:
    own, trainer.compute_loss_func = trainer.compute_loss_func, None
    try:
        yield
    finally:
        trainer.compute_loss_func = own


def _with_targets(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """With ``shift_labels``, ``[B, L]``: the token that each position has to predict, -100 where it does not count."""
    inputs = dict(inputs)
    if "shift_labels" not in inputs:
        if "labels" not in inputs:
            raise ValueError(f"the training batch has no column 'labels'; it has {sorted(inputs)}")
        labels = inputs["labels"]
        targets = F.pad(labels[..., 1:], (0, 1), value=IGNORED)
        attention = inputs.get("attention_mask")
        if attention is not None and attention.shape == labels.shape:
            both = attention.ne(0) & F.pad(attention[..., 1:], (0, 1)).ne(0)
            targets = targets.masked_fill(~both, IGNORED)
        inputs["shift_labels"] = targets
    inputs["labels"] = inputs["shift_labels"]  # older Trainers count in this column, as it is
    return inputs


def _check_teacher(teacher: Any, student: nn.Module) -> None:
    if not isinstance(teacher, nn.Module):
        raise TypeError(
            f"teacher is a {type(teacher).__name__}; accepted: a causal language model, as from_pretrained() returns one"
        )
    if plain(teacher) is plain(student):  # it would train in eval mode
        raise ValueError("teacher is the student; accepted: another model, such as copy.deepcopy(student)")


def _check_loss(loss: str, criterion: akd_ext.AnnealingKDLoss | None, options: dict[str, Any], teachers: int) -> None:
    if loss not in OPTIONS:
        raise ValueError(f"loss is {loss!r}; accepted: {', '.join(map(repr, OPTIONS))}")
    unknown = sorted(set(options) - OPTIONS[loss])
    if unknown:
        accepted = ", ".join(sorted(OPTIONS[loss])) or "none"
        raise TypeError(f"loss_options has {unknown[0]!r}; accepted for {loss!r}: {accepted}")
    if loss == "cross_entropy":
        if teachers or criterion is not None:
            raise ValueError(
                "loss is 'cross_entropy', which takes no teacher and no criterion; accepted: 'kl' for one with"
            )
        return
    if teachers != 1:
        raise ValueError(
            f"{('neither', '', 'both')[teachers]} of teacher and teacher_states is given; accepted: one of them"
        )
    if criterion is None and loss == "mse":
        raise TypeError("criterion is missing; accepted: an akd_ext.AnnealingKDLoss")
    if criterion is None:
        return
    if isinstance(criterion, akd_ext.LinearAnnealingKDLoss) or not isinstance(criterion, akd_ext.AnnealingKDLoss):
        raise TypeError(
            f"criterion is a {type(criterion).__name__}; accepted: an akd_ext.AnnealingKDLoss (the linear loss is made "
            "of the heads; its options are loss_options)"
        )
    if criterion.loss != ("kl" if loss == "kl" else "mse"):
        raise ValueError(
            f"criterion has loss {criterion.loss!r} beside loss={loss!r}; accepted: the same (for 'topk' 'mse')"
        )
    if loss == "mse" and criterion.reduction == "none":
        raise ValueError("criterion has reduction 'none'; accepted: 'mean', 'batchmean', 'sum'")
