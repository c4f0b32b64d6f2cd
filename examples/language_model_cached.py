"""Annealing-KD of a language model from cached hidden states: a tiny Llama learns to write Python's manual, letter by letter.
Run:    python examples/language_model_cached.py   (needs: pip install '.[transformers]')
Prints: teacher 56.4 %, scratch 49.0 %, annealing_kd 47.6 % (of next letters: an example, no evidence)
"""

import argparse
import copy
import tempfile
from pydoc_data.topics import topics

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM

import akd_ext
from akd_ext.linear import output_head
from akd_ext.logit_cache import HiddenStateCache, describe_language_model, hidden_states_of

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--epochs", type=int, default=8, help="of stage I, and of stage II (default: 8)")
epochs = parser.parse_args().epochs
torch.manual_seed(0)
torch.set_num_threads(1)

lines = sorted({" ".join(text.split())[:64] for text in "\n\n".join(topics.values()).split("\n\n") if len(text) > 40})
texts = [torch.tensor([ord(letter) % 128 for letter in line]) for line in lines]
train, val, test = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0))[:800].split([640, 80, 80])


def batch_of(index):
    chosen = [texts[i] for i in index]
    ids, ones = (pad_sequence(rows, batch_first=True) for rows in (chosen, [x * 0 + 1 for x in chosen]))
    return {"input_ids": ids, "attention_mask": ones, "labels": ids.masked_fill(ones == 0, -100)}


def llama(layers, width):
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=128, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
            num_attention_heads=4, max_position_embeddings=64, use_cache=False,
        )
    )  # fmt: skip


@torch.no_grad()
def accuracy(model, index):
    batch = batch_of(index)
    hits = model(**batch).logits[:, :-1].argmax(-1) == batch["labels"][:, 1:]
    return (hits.sum() / (batch["labels"][:, 1:] != -100).sum()).item()


def fit(model, epochs, loss_of_step, lr):
    """The best epoch on ``val`` is kept."""
    optimizer, best = torch.optim.Adam(model.parameters(), lr=lr), -1.0
    for epoch in range(epochs):
        for step in train[torch.randperm(len(train))].split(32):
            optimizer.zero_grad()
            loss_of_step(model, step, epoch)
            optimizer.step()
        if (now := accuracy(model, val)) > best:
            best, kept = now, copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    return model


def labels(model, step, epoch):
    model(**batch_of(step)).loss.backward()


teacher = fit(llama(2, 64), 2 * epochs, labels, lr=3e-3)
scratch = fit(llama(1, 32), 2 * epochs, labels, lr=3e-3)

# The teacher's one pass, into a file: its head is kept there, too, and called nowhere.
with tempfile.TemporaryDirectory() as folder:
    cache = HiddenStateCache.build_or_open(
        folder,
        describe_language_model(teacher, output_head(teacher), None, texts),
        lambda: hidden_states_of(teacher, ({"index": i, **batch_of(i)} for i in torch.arange(len(texts)).split(64))),
        num_samples=len(texts),
        head=output_head(teacher),
    )

# Stage I: the teacher's logits, annealed; nobody's logits are made. A step has two micro-batches.
criterion = akd_ext.LinearAnnealingKDLoss(tau_max=5, teacher_weight=cache.head.weight, center=True)


def annealed(model, step, epoch):
    criterion.set_epoch(epoch, epochs)
    head = model.lm_head.weight
    with criterion.accumulate(head, num_items=int(cache.lengths[step].sum())):
        for index in step.split(16):
            batch = batch_of(index)
            ids, mask = batch["input_ids"], batch["attention_mask"]
            hidden = model.get_decoder()(input_ids=ids, attention_mask=mask).last_hidden_state
            criterion(hidden, head, cache.padded(index, mask=mask), mask.bool()).backward()


student = fit(llama(1, 32), epochs, annealed, lr=3e-3)
# Stage II: the labels, from the best of stage I.
student = fit(student, epochs, labels, lr=3e-3)

models = {"teacher": teacher, "scratch": scratch, "annealing_kd": student}
print(", ".join(f"{name} {100 * accuracy(model, test):.1f} %" for name, model in models.items()))
