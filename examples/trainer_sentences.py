"""Annealing-KD with Hugging Face's Trainer: a small BERT learns from a larger one what 40 sentences say of a meal.
Run:    python examples/trainer_sentences.py   (needs: pip install '.[transformers]')
Prints: teacher 93.8 %, scratch 75.0 %, annealing_kd 93.8 % (of 16 sentences: an example, no evidence)
"""

import argparse
import tempfile

import torch
from datasets import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.utils.logging import disable_progress_bar

import akd_ext
from akd_ext.adapters.transformers import AnnealingTrainer

GOOD = """The soup was hot and very good. We loved the fresh bread. The fish was tender and tasted great.
A lovely evening with great food. The waiter was friendly and quick. I would gladly come back for the cake.
The coffee was strong and good. My steak was perfect and tender. The salad was crisp and fresh.
They made a perfect pizza. The staff was kind and the food was great. Our table was clean and lovely.
The rice was light and tasted fresh. I enjoyed every bite of the fish. The sauce was rich and very good.
We enjoyed the kind service. A great place with good wine. The dessert was light and perfect.
The chicken was crisp and tender. I loved the friendly waiter and the soup."""
BAD = """The soup was cold and very bad. We hated the stale bread. The fish was dry and tasted awful.
A dull evening with awful food. The waiter was rude and slow. I would never come back for the cake.
The coffee was weak and bad. My steak was burnt and tough. The salad was limp and stale.
They made a terrible pizza. The staff was rude and the food was awful. Our table was dirty and small.
The rice was dry and tasted stale. I disliked every bite of the fish. The sauce was thin and very bad.
We disliked the slow service. An awful place with bad wine. The dessert was soggy and terrible.
The chicken was burnt and tough. I hated the rude waiter and the soup."""
VAL = """The wine was good and the bread was fresh. A friendly place. The cake was perfect. We loved the pizza.
The wine was bad and the bread was stale. A rude place. The cake was terrible. We hated the pizza."""
TEST = """The pizza was fresh and good. I enjoyed the coffee. The service was quick and kind. The cake was great.
A perfect steak with a rich sauce. The staff was friendly. We loved the light salad. Our waiter was lovely.
The pizza was stale and bad. I disliked the coffee. The service was slow and rude. The cake was awful.
A burnt steak with a thin sauce. The staff was rude. We hated the soggy salad. Our waiter was terrible."""


def words(text):
    return text.lower().replace(".", "").split()


def sentences(text):
    return [sentence for sentence in text.replace("\n", " ").split(".") if sentence.strip()]


VOCABULARY = {
    word: 3 + i for i, word in enumerate(dict.fromkeys(words(GOOD + " " + BAD)))
}  # 0 pads, 1 begins, 2: unknown


def dataset(good, bad):
    ids = [[1, *(VOCABULARY.get(word, 2) for word in words(s))] for s in [*good, *bad]]
    return Dataset.from_dict(
        {
            "input_ids": [row + [0] * (14 - len(row)) for row in ids],
            "attention_mask": [[1] * len(row) + [0] * (14 - len(row)) for row in ids],
            "labels": [1] * len(good) + [0] * len(bad),
        }
    )


def bert(layers, width):
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=3 + len(VOCABULARY), hidden_size=width, num_hidden_layers=layers, num_attention_heads=2,
            intermediate_size=2 * width, max_position_embeddings=14, hidden_dropout_prob=0.0, initializer_range=0.1,
        )
    )  # fmt: skip


def accuracy(prediction):
    return {"accuracy": (prediction.predictions.argmax(-1) == prediction.label_ids).mean().item()}


def run(model, train, val, epochs, lr, trainer=Trainer, **more):
    """Trains ``model``; the best epoch on ``val`` is kept."""
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, num_train_epochs=epochs, learning_rate=lr, per_device_train_batch_size=4,
            gradient_accumulation_steps=2, eval_strategy="epoch", save_strategy="epoch", save_total_limit=1,
            load_best_model_at_end=True,
            metric_for_best_model="accuracy", logging_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        made = trainer(model, args, train_dataset=train, eval_dataset=val, compute_metrics=accuracy, **more)
        made.remove_callback(PrinterCallback)
        made.train()
        return made


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--epochs", type=int, default=15, help="of stage I, and of stage II (default: 15)")
epochs = parser.parse_args().epochs
set_seed(0)
disable_progress_bar()
torch.set_num_threads(1)
train = dataset(sentences(GOOD), sentences(BAD))
val, test = (dataset(s[: len(s) // 2], s[len(s) // 2 :]) for s in (sentences(VAL), sentences(TEST)))

teacher = run(bert(2, 32), train, val, 2 * epochs, lr=3e-3)
scratch = run(bert(1, 16), train, val, 2 * epochs, lr=3e-3)
train = train.add_column("teacher_logits", list(teacher.predict(train).predictions))
# Stage I.
stage_1 = run(bert(1, 16), train, val, epochs, 3e-3, AnnealingTrainer, criterion=akd_ext.AnnealingKDLoss(tau_max=5))
# Stage II: a plain Trainer, which leaves the teacher's column aside, from the best of stage I.
student = run(stage_1.model, train, val, epochs, lr=3e-3)

models = {"teacher": teacher, "scratch": scratch, "annealing_kd": student}
print(", ".join(f"{name} {100 * made.evaluate(test)['eval_accuracy']:.1f} %" for name, made in models.items()))
