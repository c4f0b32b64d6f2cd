"""Annealing-KD in TRL: SFTTrainer with a loss of its own, against a teacher whose head is never called.
Run:    python examples/trl_sft.py   (needs: pip install '.[transformers]' trl)
Prints: teacher 49.1 %, scratch 33.3 %, annealing_kd 31.4 % (of next letters: an example, no evidence)
"""

import argparse
import tempfile
import warnings
from pydoc_data.topics import topics

import torch
from datasets import Dataset, disable_progress_bars
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback, Trainer, set_seed
from transformers.utils.logging import disable_progress_bar
from trl import SFTConfig, SFTTrainer

import akd_ext
from akd_ext.adapters.transformers import CausalLMAnnealingTrainer


class PlainLoss(Trainer):
    """Stands before SFTTrainer's own compute_loss, which would run the student once more, with its head, for its metrics."""

    def compute_loss(self, *args, **kwargs):
        return Trainer.compute_loss(self, *args, **kwargs)


class AnnealingSFTTrainer(CausalLMAnnealingTrainer, PlainLoss, SFTTrainer):
    """All that this takes. The rest of the file is a tiny problem."""


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--epochs", type=int, default=8, help="of stage I, and of stage II (default: 8)")
epochs = parser.parse_args().epochs
set_seed(0)
disable_progress_bar()
disable_progress_bars()
warnings.simplefilter("ignore", FutureWarning)  # SFTTrainer's, of compute_loss_func
torch.set_num_threads(1)

lines = sorted({" ".join(text.split())[:64] for text in "\n\n".join(topics.values()).split("\n\n") if len(text) > 40})
texts = Dataset.from_list([{"text": line.encode("ascii", "replace").decode()} for line in lines[::3]])
words = {"<pad>": 0, "</s>": 1, **{chr(code): code for code in range(2, 128)}}
letters = Tokenizer(models.WordLevel(words, unk_token="?"))
letters.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, pad_token="<pad>", eos_token="</s>")


def llama(layers, width):
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=128, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
            num_attention_heads=4, max_position_embeddings=128,
        )
    )  # fmt: skip


def run(model, epochs, trainer=SFTTrainer, **more):
    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(
            folder, num_train_epochs=epochs, learning_rate=3e-3, per_device_train_batch_size=16, max_length=128,
            gradient_accumulation_steps=2, gradient_checkpointing=False, save_strategy="no", logging_strategy="no",
            report_to="none", disable_tqdm=True, use_cpu=True, bf16=False,
        )  # fmt: skip
        parts = texts.train_test_split(0.1, seed=0)
        data = {"train_dataset": parts["train"], "eval_dataset": parts["test"], "processing_class": tokenizer}
        made = trainer(model, args, **data, **more)
        made.remove_callback(PrinterCallback)
        made.train()
        return made


teacher = run(llama(2, 64), 2 * epochs)
scratch = run(llama(1, 32), 2 * epochs)
# Stage I: the teacher runs beside the student, and nobody's head is called.
annealing = {"teacher": teacher.model, "criterion": akd_ext.AnnealingKDLoss(tau_max=5)}
stage_1 = run(llama(1, 32), epochs, AnnealingSFTTrainer, **annealing)
# Stage II: a plain SFTTrainer.
student = run(stage_1.model, epochs)

found = {"teacher": teacher, "scratch": scratch, "annealing_kd": student}
found = {name: made.evaluate()["eval_mean_token_accuracy"] for name, made in found.items()}
print(", ".join(f"{name} {100 * accuracy:.1f} %" for name, accuracy in found.items()))
