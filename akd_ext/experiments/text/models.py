"""Hugging Face models and tokenizers for one task, and the order of their classes."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

from torch import nn

from ..errors import ConfigError, one_sentence

logger = logging.getLogger("akd_ext.experiments")


def load_tokenizer(config: dict, place: str) -> Any:
    """The tokenizer of a YAML's model entry.

    Raises:
        ConfigError: there is none.
    """
    from transformers import AutoTokenizer

    return _loaded(AutoTokenizer, config.get("tokenizer_kwargs") or {}, f"{place}.tokenizer_kwargs")


def load_model(config: dict, place: str, *, needs_head: bool = False) -> nn.Module:
    """The classifier of a YAML's model entry, as torchdistill's GLUE script builds it, and ``student_init``.

    Args:
        config: with ``config_kwargs``, ``model_kwargs`` and perhaps ``student_init: {layers: [...]}``.
        place: where it stands in the YAML.
        needs_head: the classifier must be in the checkpoint: an untrained teacher would teach noise.

    Raises:
        ConfigError: the model cannot be loaded, is no classifier, or its head is untrained.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    loaded_config = _loaded(AutoConfig, config.get("config_kwargs") or {}, f"{place}.config_kwargs")
    wanted = config.get("model_kwargs") or {}
    name = wanted.get("pretrained_model_name_or_path")
    # Other shapes are let through here and refused below, with the shapes.
    kwargs = {**wanted, "config": loaded_config, "output_loading_info": True, "ignore_mismatched_sizes": True}
    model, info = _loaded(AutoModelForSequenceClassification, kwargs, f"{place}.model_kwargs")
    others = sorted((key, list(there), list(here)) for key, there, here in info["mismatched_keys"])
    if others and (needs_head or not wanted.get("ignore_mismatched_sizes")):
        key, there, here = others[-1]
        raise ConfigError(
            f"{place}: '{name}' has {key} {there}, with num_labels {loaded_config.num_labels} it is {here}; "
            "model_kwargs.ignore_mismatched_sizes: True would start with a random one"
        )
    if needs_head and info["missing_keys"]:
        raise ConfigError(
            f"{place}: '{name}' has no trained classification head ({', '.join(sorted(info['missing_keys']))} would be "
            "random): fine-tune it on the task first"
        )
    init = config.get("student_init")
    if init:
        from akd_ext.torchdistill.text import take_layers

        try:
            model = take_layers(model, init["layers"])
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{place}.student_init: {error!s}; write it as {{layers: [0, 1]}}") from error
    return model


def _loaded(cls: Any, kwargs: dict, place: str) -> Any:
    name = kwargs.get("pretrained_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{place}.pretrained_model_name_or_path: it is missing; it names a model or its folder")
    if looks_local(name) and not os.path.isdir(os.path.expanduser(name)):
        raise ConfigError(f"{place}: there is no folder '{name}'; train that model first, or name another")
    try:
        return cls.from_pretrained(**{**kwargs, "pretrained_model_name_or_path": os.path.expanduser(name)})
    except Exception as error:
        raise ConfigError(
            f"{place}: {cls.__name__} could not be made from '{name}': {type(error).__name__}: {one_sentence(error)}"
        ) from error


def looks_local(name: str) -> bool:
    """A path rather than a name on the hub.

    >>> looks_local("roberta-large"), looks_local("google/bert_uncased_L-4_H-512_A-8"), looks_local("./runs/x")
    (False, False, True)
    """
    return name.startswith((".", "/", "~")) or os.path.isdir(name)


def check_tokenizer(tokenizer: Any, model: nn.Module, max_length: int, place: str) -> None:
    """Refuses a tokenizer whose ids or lengths the model has no embeddings for."""
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
    """Teacher and student see the same ids: one made by another vocabulary would be other words."""
    if teacher.get_vocab() != student.get_vocab():
        raise ConfigError(
            f"models: the teacher's tokenizer ({type(teacher).__name__}, {len(teacher)} tokens) and the student's "
            f"({type(student).__name__}, {len(student)} tokens) differ; both models are given the student's token ids"
        )


def agree_on_labels(labels: Sequence[str], teacher: nn.Module | None, student: nn.Module) -> list[int] | None:
    """Settles which logit means which class, and writes it into both models' configs.

    A checkpoint says it by the names in ``config.id2label``; for MNLI, RoBERTa's order is not GLUE's. A student without
    names of its own takes the teacher's order; a teacher without names has the task's.

    Args:
        labels: the task's class names in the task's order; empty for a regression.
        teacher, student: Hugging Face classifiers; there may be no teacher.

    Returns:
        For each class of the task the logit that means it; None for a regression.

    Raises:
        ConfigError: the number, the names or the order of the labels differ; with both lists.
    """
    wanted = list(labels) or ["a score"]
    for who, model in (("teacher", teacher), ("student", student)):
        if model is not None and model.config.num_labels != len(wanted):
            raise ConfigError(
                f"the {who} has {model.config.num_labels} labels ({', '.join(_names(model) or ['without names'])}), "
                f"the task has {len(wanted)} ({', '.join(wanted)})"
            )
    if not labels:
        return None
    known = {name.lower(): i for i, name in enumerate(labels)}
    orders = {}
    for who, model in (("teacher", teacher), ("student", student)):
        names = _names(model) if model is not None else None
        if names is not None and sorted(n.lower() for n in names) != sorted(known):
            raise ConfigError(f"the {who}'s labels are {', '.join(names)}, the task's are {', '.join(labels)}")
        orders[who] = names and [known[name.lower()] for name in names]
    if teacher is not None and orders["teacher"] is None:
        orders["teacher"] = list(range(len(labels)))
    if orders["teacher"] and orders["student"] and orders["teacher"] != orders["student"]:
        shown = {who: ", ".join(labels[i] for i in order) for who, order in orders.items()}
        raise ConfigError(
            f"the teacher's labels are in the order {shown['teacher']}, the student's in the order {shown['student']}: "
            "their logits cannot be compared"
        )
    order = orders["teacher"] or orders["student"] or list(range(len(labels)))
    for model in (teacher, student):
        if model is not None:
            model.config.id2label = {i: labels[y] for i, y in enumerate(order)}
            model.config.label2id = {labels[y]: i for i, y in enumerate(order)}
    if order != sorted(order):
        logger.info("the classes are in the checkpoint's order: %s", ", ".join(labels[i] for i in order))
    return [order.index(y) for y in range(len(labels))]


def _names(model: nn.Module) -> list[str] | None:
    """The model's label names by logit; None where they are Hugging Face's LABEL_0, LABEL_1, ..."""
    names = [str(model.config.id2label[i]) for i in sorted(model.config.id2label)]
    return None if all(name == f"LABEL_{i}" for i, name in enumerate(names)) else names
