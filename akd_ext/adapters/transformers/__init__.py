"""Annealing-KD in Hugging Face's Trainer.

``AnnealingTrainer`` takes the teacher's logits from a column of the dataset. ``CausalLMAnnealingTrainer`` is for causal
language models, whose logits are too many: it works on hidden states and makes none.
"""

from akd_ext.adapters import needs

with needs("transformers"):
    from .callback import AnnealingCallback
    from .causal_lm import CausalLMAnnealingTrainer
    from .trainer import AnnealingTrainer

__all__ = ["AnnealingCallback", "AnnealingTrainer", "CausalLMAnnealingTrainer"]
