"""Hugging Face models and tokenizers for one task, and the order of their classes."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Sequence
from typing import Any

from torch import nn

from akd_ext.train.system.errors import ConfigError, one_sentence

logger = logging.getLogger(__name__)


def load_tokenizer(config: dict, place: str) -> Any:
    """The tokenizer of a YAML's model entry.

    Raises:
        ConfigError: there is none, or it knows no words.
    """
    from transformers import AutoTokenizer

    kwargs = config.get("tokenizer_kwargs") or {}
    tokenizer = _loaded(AutoTokenizer, kwargs, f"{place}.tokenizer_kwargs")
    # transformers 5 makes one without words where a folder has a config.json but no tokenizer: all would be unknown.
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise ConfigError(
            f"{place}.tokenizer_kwargs: '{kwargs['pretrained_model_name_or_path']}' holds no tokenizer; "
            "tokenizer.save_pretrained() puts it beside the model"
        )
    return tokenizer


def load_model(
    config: dict, place: str, *, taught: Sequence[str] | None = None, num_labels: int | None = None
) -> nn.Module:
    """The classifier of a YAML's model entry, as torchdistill's GLUE script builds it, and ``student_init``.

    Args:
        config: with ``config_kwargs``, ``model_kwargs`` and perhaps ``student_init: {layers: [...]}``.
        place: where it stands in the YAML.
        taught: of a teacher, the task's classes, none for a regression: its classifier must be in the checkpoint,
            because an untrained one would teach noise.
        num_labels: of the data, for a model that learns: it has so many where ``config_kwargs`` do not say. A teacher's
            are its own.

    Raises:
        ConfigError: the model cannot be loaded, is no classifier, or its head is untrained.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    loaded_config = _loaded(AutoConfig, config.get("config_kwargs") or {}, f"{place}.config_kwargs")
    said = {"num_labels", "id2label"} & set(config.get("config_kwargs") or {})
    if num_labels is not None and not said and loaded_config.num_labels != num_labels:
        loaded_config.num_labels = num_labels
        logger.info("%s: num_labels is %d, as the data have it", place, num_labels)
    wanted = config.get("model_kwargs") or {}
    name = wanted.get("pretrained_model_name_or_path")
    # Other shapes are let through here and refused below, with the shapes.
    kwargs = {**wanted, "config": loaded_config, "output_loading_info": True, "ignore_mismatched_sizes": True}
    model, info = _loaded(AutoModelForSequenceClassification, kwargs, f"{place}.model_kwargs")
    others = sorted((key, list(there), list(here)) for key, there, here in info["mismatched_keys"])
    if others and taught is not None:
        own = _loaded(AutoConfig, {"pretrained_model_name_or_path": name}, f"{place}.model_kwargs")
        _check_number("teacher", own, taught)
        if own.num_labels != loaded_config.num_labels:
            raise ConfigError(
                f"{place}: '{name}' has {own.num_labels} labels, as the task has, and config_kwargs.num_labels is "
                f"{loaded_config.num_labels}; set {place}.config_kwargs.num_labels: {own.num_labels}, or leave it out"
            )
    if others and (taught is not None or not wanted.get("ignore_mismatched_sizes")):
        key, there, here = others[-1]
        raise ConfigError(
            f"{place}: '{name}' has {key} {there}, with num_labels {loaded_config.num_labels} it is {here}; "
            "model_kwargs.ignore_mismatched_sizes: True would start with a random one"
        )
    if taught is not None and info["missing_keys"]:
        raise ConfigError(
            f"{place}: '{name}' has no trained classification head ({', '.join(sorted(info['missing_keys']))} would be "
            "random): fine-tune it on the task first"
        )
    init = config.get("student_init")
    if init is not None:
        from akd_ext.torchdistill.text import take_layers

        if not isinstance(init, dict) or list(init) != ["layers"]:
            raise ConfigError(f"{place}.student_init: it is {init!r}; write it as {{layers: [0, 1]}}")
        try:
            model = take_layers(model, init["layers"])
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{place}.student_init: {error!s}; write it as {{layers: [0, 1]}}") from error
    return model


def _loaded(cls: Any, kwargs: dict, place: str) -> Any:
    name = kwargs.get("pretrained_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{place}.pretrained_model_name_or_path: it is missing; it names a model or its folder")
    try:
        return cls.from_pretrained(**{**kwargs, "pretrained_model_name_or_path": os.path.expanduser(name)})
    except Exception as error:
        more = "" if os.path.isdir(os.path.expanduser(name)) else "; nor is there a folder of that name"
        raise ConfigError(
            f"{place}: {cls.__name__} could not be made from '{name}': {type(error).__name__}: {one_sentence(error)}{more}"
        ) from error


def looks_local(name: str) -> bool:
    """A path rather than a name on the hub, which has one slash at most.

    >>> looks_local("roberta-large"), looks_local("google/bert_uncased_L-4_H-512_A-8"), looks_local("./runs/x")
    (False, False, True)
    >>> looks_local("runs/x/checkpoint")
    True
    """
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or os.path.isdir(name)


def check_tokenizer(tokenizer: Any, model: nn.Module, max_length: int, place: str) -> None:
    """Refuses a tokenizer whose ids or lengths the model has no embeddings for, or that cannot fill up a batch."""
    if tokenizer.pad_token is None:
        raise ConfigError(f"{place}: the tokenizer has no padding token (tokenizer.pad_token), which batches need")
    # Those that look at the last word of a sentence, such as GPT-2's, refuse a batch if they cannot find it.
    if model.config.pad_token_id is None and "pad_token_id" in inspect.getsource(type(model).forward):
        raise ConfigError(
            f"{place}.config_kwargs.pad_token_id: a {type(model).__name__} needs it to find the end of a sentence in a "
            f"batch, and its configuration has none; write {tokenizer.pad_token_id}, its tokenizer's padding token"
        )
    words = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > words:
        raise ConfigError(f"{place}: the tokenizer knows {len(tokenizer)} tokens, the model {words}: they do not "
                          "belong together")  # fmt: skip
    positions = getattr(model.config, "max_position_embeddings", None)
    # RoBERTa counts its positions from the padding token on.
    offset = (model.config.pad_token_id or 0) + 1 if "roberta" in model.config.model_type else 0
    if positions is not None and max_length > positions - offset:
        raise ConfigError(f"{place}: max_length is {max_length}, the model takes at most {positions - offset} tokens")


def check_same_tokenizer(teacher: Any, student: Any) -> None:
    """Teacher and student see the same ids: one made by another vocabulary would be other words.

    A teacher may know more: the ids come from the student's tokenizer alone.
    """
    known = teacher.get_vocab()
    if any(known.get(word) != index for word, index in student.get_vocab().items()):
        raise ConfigError(
            f"models: the teacher's tokenizer ({type(teacher).__name__}, {len(teacher)} tokens) and the student's "
            f"({type(student).__name__}, {len(student)} tokens) differ; both models are given the student's token ids"
        )


def agree_on_labels(
    labels: Sequence[str], teacher: nn.Module | None, student: nn.Module, role: str = "student_model"
) -> list[int] | None:
    """Settles which logit means which class, and writes it into both models' configs.

    A checkpoint says it by the names in ``config.id2label``; for MNLI, RoBERTa's order is not GLUE's. A student without
    names of its own takes the teacher's order; a teacher without names has the task's.

    Args:
        labels: the task's class names in the task's order; empty for a regression.
        teacher, student: Hugging Face classifiers; there may be no teacher.
        role: the student's in the YAML: ``student_model``, or ``model`` where it is the only one and called so.

    Returns:
        For each class of the task the logit that means it; None for a regression.

    Raises:
        ConfigError: the number, the names or the order of the labels differ; with both lists.
    """
    learner = role.removesuffix("_model")
    for who, model in (("teacher", teacher), (learner, student)):
        if model is not None:
            key = None if model is teacher else f"models.{role}.config_kwargs.num_labels"
            _check_number(who, model.config, labels, key)
    if not labels:
        return None
    # Checkpoints write the same classes large and small; a user's own may differ in nothing else.
    same = str.lower if len({name.lower() for name in labels}) == len(labels) else str
    known = {same(name): i for i, name in enumerate(labels)}
    orders = {}
    for who, model in (("teacher", teacher), (learner, student)):
        names = _names(model.config) if model is not None else None
        if names is not None and sorted(map(same, names)) != sorted(known):
            raise ConfigError(f"the {who}'s labels are {', '.join(names)}, the task's are {', '.join(labels)}")
        orders[who] = names and [known[same(name)] for name in names]
    if teacher is not None and orders["teacher"] is None:
        orders["teacher"] = list(range(len(labels)))
    if orders["teacher"] and orders[learner] and orders["teacher"] != orders[learner]:
        shown = {who: ", ".join(labels[i] for i in order) for who, order in orders.items()}
        raise ConfigError(
            f"the teacher's labels are in the order {shown['teacher']}, the {learner}'s in the order {shown[learner]}: "
            "their logits cannot be compared"
        )
    order = orders["teacher"] or orders[learner] or list(range(len(labels)))
    for model in (teacher, student):
        if model is not None:
            model.config.id2label = {i: labels[y] for i, y in enumerate(order)}
            model.config.label2id = {labels[y]: i for i, y in enumerate(order)}
    if order != sorted(order):
        logger.info("the classes are in the checkpoint's order: %s", ", ".join(labels[i] for i in order))
    return [order.index(y) for y in range(len(labels))]


def _check_number(who: str, config: Any, labels: Sequence[str], key: str | None = None) -> None:
    """``key``: where the number of labels can be set; None for a teacher, whose checkpoint decides it."""
    wanted = list(labels) or ["a score"]
    if config.num_labels != len(wanted):
        advice = f"set {key}: {len(wanted)}" if key else "accepted: a teacher that was trained on the task"
        raise ConfigError(
            f"the {who} has {config.num_labels} labels ({', '.join(_names(config) or ['without names'])}), "
            f"the task has {len(wanted)} ({', '.join(wanted)}); {advice}"
        )


def _names(config: Any) -> list[str] | None:
    """A model's label names by logit; None where they are Hugging Face's LABEL_0, LABEL_1, ..."""
    names = [str(config.id2label[i]) for i in sorted(config.id2label)]
    return None if all(name == f"LABEL_{i}" for i, name in enumerate(names)) else names
