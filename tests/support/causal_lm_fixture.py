"""Tiny random causal language models, and their whole logits. Imported by the tests that run: it takes seconds."""

import torch
import transformers
from torch.nn import functional as F
from transformers import TrainingArguments

import akd_ext
from akd_ext.adapters.transformers import CausalLMAnnealingTrainer

CLASSES = 61
COMMON = {
    "vocab_size": CLASSES, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 24, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip


def model(family="Llama", width=16, seed=0, **given):
    """In float64 and without dropout."""
    torch.manual_seed(seed)
    if family == "GPT2":
        config = transformers.GPT2Config(
            vocab_size=given.pop("vocab_size", CLASSES), n_layer=1, n_head=2, n_embd=width, n_positions=64,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0, **given,
        )  # fmt: skip
        made = transformers.GPT2LMHeadModel(config)
    else:
        config = getattr(transformers, f"{family}Config")(**(COMMON | {"hidden_size": width} | given))
        made = getattr(transformers, f"{family}ForCausalLM")(config)
    with torch.no_grad():  # the library's are so small that everything is near 0
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return made.double()


def arguments(folder, **given):
    common = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "max_grad_norm": 0.0}
    common |= {"logging_strategy": "no", "optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant"}
    return TrainingArguments(str(folder), **(common | given))


def trainer(folder, student, teacher=None, args=None, **given):
    if given.get("loss", "mse") == "mse" and "criterion" not in given:
        given["criterion"] = criterion()
    args = arguments(folder, **(args or {}))
    return CausalLMAnnealingTrainer(student, args, teacher=teacher, **given)


def criterion(temperature=2, **given):
    made = akd_ext.AnnealingKDLoss(4, **given)
    made.set_temperature(temperature)
    return made


def batch(rows=3, length=7):
    """One text is padded, another one is padded at its beginning, and some labels do not count."""
    ids = torch.randint(CLASSES, (rows, length))
    attention = torch.ones_like(ids)
    attention[1, 5:], attention[2, :2] = 0, 0
    labels = ids.masked_fill(attention == 0, -100)
    labels[0, 3] = -100
    return {"input_ids": ids, "attention_mask": attention, "labels": labels}


def counted(inputs):
    """Which positions predict something, ``[B, L - 1]``, and what."""
    labels, attention = inputs["labels"][:, 1:], inputs.get("attention_mask")
    mask = labels != -100
    if attention is not None:
        mask &= (attention[:, 1:] != 0) & (attention[:, :-1] != 0)
    return mask, labels[mask]


def logits(language_model, inputs):
    """Of the positions that count, whole."""
    inputs = {name: value for name, value in inputs.items() if name not in ("labels", "index")}
    return language_model(**inputs).logits[:, :-1]


def plain_mse(student, teacher, inputs, phi, reduction="mean", classes=None):
    mask, _ = counted(inputs)
    student = logits(student, inputs)[mask][:, :classes]
    with torch.no_grad():
        teacher = logits(teacher, inputs)[mask][:, :classes]
    student, teacher = (x - x.mean(-1, keepdim=True) for x in (student, teacher))
    sum_of_squares = F.mse_loss(student, phi * teacher, reduction="sum")
    return sum_of_squares / {"mean": student.numel(), "batchmean": len(student), "sum": 1}[reduction]


def gradients(language_model):
    return {name: parameter.grad.clone() for name, parameter in language_model.named_parameters()}


def loss_and_gradients(made, inputs, items=None):
    """What the Trainer does with a batch, up to the optimizer."""
    student = made.model.train()
    student.zero_grad()
    items = counted(inputs)[0].sum() if items is None else items
    loss = made.compute_loss(student, inputs, num_items_in_batch=items)
    loss.backward()
    return loss.detach(), gradients(student)


def plain_loss_and_gradients(student, loss):
    student.zero_grad()
    loss.backward()
    return loss.detach(), gradients(student)


class States:
    """As akd_ext.logit_cache.HiddenStateCache, in memory."""

    def __init__(self, teacher, texts):
        with torch.no_grad():
            self.kept = [teacher.base_model(torch.tensor([text]))[0][0] for text in texts]

    def __getitem__(self, index):
        return self.kept[index]
