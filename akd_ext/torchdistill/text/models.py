"""Hugging Face's models and libraries: a student made of a model's layers, and what torchdistill misses in accelerate."""

import copy
import sys

from torch import nn
from torchdistill.common.constant import def_logger

logger = def_logger.getChild(__name__)


def repair_accelerate():
    """Give accelerate's ``Accelerator`` and ``AcceleratorState`` back the property ``use_fp16``, where it is missing.

    accelerate removed it; torchdistill 1.1.5 and its GLUE script read it, so distillation there dies with an
    AttributeError. It says whether ``mixed_precision`` is ``'fp16'``, as it did. Importing ``akd_ext.torchdistill``
    calls this when accelerate is imported already, which it is when a script's YAML names this plug-in.

    Returns:
        The names of the repaired classes; empty when there was nothing to do.
    """
    accelerate = sys.modules.get("accelerate")
    if accelerate is None:
        return []
    from accelerate.state import AcceleratorState

    repaired = []
    for cls in (accelerate.Accelerator, AcceleratorState):
        if not hasattr(cls, "use_fp16"):
            cls.use_fp16 = property(lambda self: self.mixed_precision == "fp16")
            repaired.append(cls.__name__)
    if repaired:
        logger.info(f"accelerate {accelerate.__version__} has no use_fp16, which torchdistill reads: added to "
                    f"{' and '.join(repaired)}")  # fmt: skip
    return repaired


def take_layers(model, layers):
    """A copy of an encoder with only the given layers: how a small student starts from a large model.

    Args:
        model: a Hugging Face model whose encoder's layers are one ``ModuleList`` of length
            ``config.num_hidden_layers`` (BERT, RoBERTa, DistilBERT with ``n_layers``, ...).
        layers: which layers, counted from 0, in the order they shall have. ``[0, 1]`` takes the first two.

    Returns:
        A new model of the same class; embeddings, pooler and classifier are copied, ``model`` is left as it is.

    Raises:
        ValueError: a layer that is not there, none at all, or a model without such a list.
    """
    copied = copy.deepcopy(model)
    config = copied.config
    name = next((n for n in ("num_hidden_layers", "n_layers") if hasattr(config, n)), None)
    count = getattr(config, name) if name else 0
    lists = [(parent, key, child) for parent in copied.modules() for key, child in parent.named_children()
             if isinstance(child, nn.ModuleList) and len(child) == count]  # fmt: skip
    if len(lists) != 1:
        raise ValueError(f"take_layers: {type(model).__name__} has {len(lists)} lists of {count} layers, expected one")
    layers = list(layers)
    if not layers or any(type(i) is not int or not 0 <= i < count for i in layers):
        raise ValueError(f"take_layers: layers is {layers!r}, accepted are ints from 0 to {count - 1}")
    parent, key, children = lists[0]
    setattr(parent, key, nn.ModuleList([copy.deepcopy(children[i]) for i in layers]))
    setattr(config, name, len(layers))
    return copied
