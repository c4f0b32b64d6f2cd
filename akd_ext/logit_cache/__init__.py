"""What a frozen teacher says of a whole dataset, computed once and bound to what it was computed from.

In: a teacher, a dataset, a way to run one over the other. Out: logits by sample index, or a language model's hidden states
token by token, mapped from one safetensors file. May import: torch and the files beside it; nothing here knows torchdistill
or a trainer.
"""

from .cache import LogitCache, logits_of
from .file import LogitCacheError
from .fingerprint import describe_dataset, describe_teacher
from .head import TeacherHead, describe_head
from .hidden import HiddenStateCache
from .language_model import describe_language_model, hidden_states_of

__all__ = [
    "HiddenStateCache",
    "LogitCache",
    "LogitCacheError",
    "TeacherHead",
    "describe_dataset",
    "describe_head",
    "describe_language_model",
    "describe_teacher",
    "hidden_states_of",
    "logits_of",
]
