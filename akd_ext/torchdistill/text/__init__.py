"""What text needs beside images: Hugging Face models and batches in a torchdistill box.

In: models and batches of whoever runs the box, torchdistill's ``general_language_understanding.py`` or ``akd-train``; nothing
here imports transformers or accelerate. Out: what ``akd_ext.torchdistill`` registers for them.
"""

from .batches import LengthBucketSampler
from .losses import LogitKDLoss, extract_label_loss, forward_logits, forward_with_label_loss, label_loss
from .models import repair_accelerate, take_layers
from .stages import linear_decay, text_pre_epoch_process

repair_accelerate()

__all__ = [
    "LengthBucketSampler",
    "LogitKDLoss",
    "extract_label_loss",
    "forward_logits",
    "forward_with_label_loss",
    "label_loss",
    "linear_decay",
    "repair_accelerate",
    "take_layers",
    "text_pre_epoch_process",
]
