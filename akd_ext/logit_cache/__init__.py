"""A frozen teacher's logits of a whole dataset, computed once and bound to what they were computed from.

In: a teacher, a dataset, a way to run one over the other. Out: logits by sample index, mapped from one safetensors file.
May import: torch and the files beside it; nothing here knows torchdistill or a trainer.
"""

from .cache import LogitCache, logits_of
from .file import LogitCacheError
from .fingerprint import describe_dataset, describe_teacher

__all__ = ["LogitCache", "LogitCacheError", "describe_dataset", "describe_teacher", "logits_of"]
