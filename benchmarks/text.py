"""Stage I on text from one YAML: torchdistill's GLUE loop, and akd-train's with and without the teacher's logits kept.

    python -m benchmarks.text --glue_dir DIR --model MODEL          # DIR holds GLUE's official files; about 20 minutes

Two pairs of models learn CoLA from torchdistill_configs/glue/distilroberta/annealing_kd.yaml: MODEL (a name on the
Hugging Face hub or a folder) with its first two layers as the student, and the shapes of RoBERTa-large and
DistilRoBERTa. Their heads, and all of the second pair, have random weights, which changes no time. The contenders take
turns, in random order, within every round. Writes ``benchmarks/results/text-cpu.{md,json}``. Asserts no time.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from akd_ext.reproduce.recipes import config_dir
from benchmarks import machine
from benchmarks.kernels import RESULTS
from benchmarks.training import quartiles
from benchmarks.training_loops import CPU, Window, our_epoch

THEIRS, WITHOUT, CACHED, BUCKETS = "torchdistill", "without the cache", "cached", "cached, length buckets"
CONTENDERS = (THEIRS, WITHOUT, CACHED, BUCKETS)
SMALL, PAPER = "MODEL, its first 2 layers", "RoBERTa-large, DistilRoBERTa"
# layers, width, heads; the inner width is 4 times the width
SHAPES = {"teacher": (24, 1024, 16), "student": (6, 768, 12)}
AIM = 3.0  # of the issue: cached against without the cache, and against torchdistill
BATCH = 32  # of the YAML


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glue_dir", required=True, metavar="DIR", help="folder with GLUE's official files")
    parser.add_argument(
        "--model", required=True, help="a BERT: the teacher's body, the tokenizer, the student's layers"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40, help="timed steps a round; a tenth for the large pair")
    parser.add_argument(
        "--sentences", type=int, default=640, help="how many of CoLA's; the large teacher reads them all"
    )
    parser.add_argument("--shapes", type=json.loads, default=SHAPES, help="of the large pair, for trying this out")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args(argv)
    facts, notes = machine.describe("cpu"), []
    if os.getloadavg()[0] > 0.5:
        notes.append(f"The machine was not idle: load average {os.getloadavg()[0]:.2f} before the run.")
    logging.disable(logging.WARNING)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        glue_dir = first_sentences(options.glue_dir, options.sentences, os.path.join(folder, "glue"))
        for pair, steps in ((SMALL, options.steps), (PAPER, max(1, options.steps // 10))):
            where = os.path.join(folder, str(len(results)))
            models = (
                small_pair(options.model, where) if pair == SMALL else large_pair(options.model, options.shapes, where)
            )
            results[pair] = measure(*models, glue_dir, where, options.rounds, steps)
    epoch = -(-len((Path(options.glue_dir) / "CoLA" / "train.tsv").read_bytes().splitlines()) // BATCH)
    lines = markdown(results, facts, notes, options.steps, epoch)
    print("\n".join(lines))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "text-cpu.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    record = {"facts": facts, "notes": notes, "steps_per_epoch": epoch, "seconds_per_step": results}
    (options.out / "text-cpu.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


def first_sentences(glue_dir: str, count: int, folder: str) -> str:
    """A folder with CoLA cut to its first ``count`` training sentences."""
    shutil.copytree(os.path.join(glue_dir, "CoLA"), os.path.join(folder, "CoLA"))
    path = Path(folder) / "CoLA" / "train.tsv"
    path.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:count]), encoding="utf-8")
    return folder


def small_pair(model: str, folder: str) -> tuple[str, str, list[str]]:
    """(teacher, student, --set changes): a teacher must have a head, which only needs to be there."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    teacher = os.path.join(folder, "teacher")
    AutoModelForSequenceClassification.from_pretrained(model, num_labels=2).save_pretrained(teacher)
    AutoTokenizer.from_pretrained(model).save_pretrained(teacher)
    return teacher, teacher, ["models.student_model.student_init={layers: [0, 1]}"]


def large_pair(model: str, shapes: dict[str, tuple[int, int, int]], folder: str) -> tuple[str, str, list[str]]:
    """(teacher, student, --set changes): the paper's shapes and embeddings, the tokenizer of ``model``."""
    from transformers import AutoTokenizer, RobertaConfig, RobertaForSequenceClassification

    made = []
    for role, (layers, width, heads) in shapes.items():
        config = RobertaConfig(vocab_size=50265, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
                               intermediate_size=4 * width, max_position_embeddings=514, type_vocab_size=2,
                               pad_token_id=0, num_labels=2)  # fmt: skip
        made.append(os.path.join(folder, role))
        RobertaForSequenceClassification(config).save_pretrained(made[-1])
        AutoTokenizer.from_pretrained(model).save_pretrained(made[-1])
    return made[0], made[1], []


def measure(
    teacher: str, student: str, changes: list[str], glue_dir: str, folder: str, rounds: int, steps: int
) -> dict[str, list[float]]:
    """Seconds a step of every contender, an entry a round."""
    boxes = {name: make_box(name, teacher, student, changes, glue_dir, folder) for name in CONTENDERS}
    found: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    order, shuffle = list(CONTENDERS), random.Random(0).shuffle
    for number in range(rounds):
        shuffle(order)
        for name in order:
            box, task = boxes[name]
            loader = box.train_data_loader
            box.train_data_loader = window = Window(loader, steps)
            torch.manual_seed(number)  # the same sentences for all that do not sort them
            torchdistill_epoch(box) if name == THEIRS else our_epoch(box, task)
            box.train_data_loader = loader
            found[name].append(window.seconds / steps)
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return found


def make_box(
    contender: str, teacher: str, student: str, changes: list[str], glue_dir: str, folder: str
) -> tuple[Any, Any]:
    """torchdistill's box for stage I, its work before the first epoch done, and akd-train's side of text."""
    from torchdistill.core.distillation import get_distillation_box

    from akd_ext.train.config.load import TextChoices, load_config
    from akd_ext.train.system.precision import Precision
    from akd_ext.train.tasks.text.task import TextClassification

    stage = "train.stage1"
    cached = contender in (CACHED, BUCKETS)
    changes = [*changes, "train.stage2.student.src_folder=null"]
    if not cached:
        changes.append(f"{stage}.teacher.forward_proc=forward_logits")
    where = "dataset_wrapper.kwargs.cache_dir"
    changes.append(f"{stage}.train_data_loader.{where}={os.path.join(folder, 'cache') if cached else 'null'}")
    path = str(config_dir() / "glue" / "distilroberta" / "annealing_kd.yaml")
    config = load_config(path, changes, folder, text=TextChoices(teacher, student, contender == BUCKETS))
    torch.manual_seed(0)
    built, task = config.construct(), TextClassification(glue_dir, CPU, Precision(None, CPU))
    models = task.prepare(built, "student_model", True)
    section, accelerator = built["train"]["stage1"], None
    if contender == THEIRS:
        from accelerate import Accelerator
        from datasets import Dataset

        import akd_ext.torchdistill.text as plug_in

        accelerator = Accelerator(cpu=True)
        plug_in.repair_accelerate()
        data = built["datasets"]["cola/train"]
        built["datasets"]["cola/train"] = Dataset.from_list([data[i] for i in range(len(data))])
        del section["train_data_loader"]["dataset_wrapper"]
        section["train_data_loader"]["requires_supp"] = False
    box = get_distillation_box(*models, built["datasets"], section, CPU, None, False, 1, accelerator)
    box.pre_epoch_process(epoch=0)
    return box, task


def torchdistill_epoch(box: Any) -> None:
    """The epoch of torchdistill's general_language_understanding.py: its meters, and the loss read at every step."""
    from torchdistill.misc.log import MetricLogger, SmoothedValue

    meters = MetricLogger(delimiter="  ")
    meters.add_meter("lr", SmoothedValue(window_size=1, fmt="{value}"))
    meters.add_meter("sample/s", SmoothedValue(window_size=10, fmt="{value}"))
    for batch in meters.log_every(box.train_data_loader, 100, "Epoch: [0]"):
        begin = time.time()
        loss = box.forward_process(batch, targets=None, supp_dict=None)
        box.post_forward_process(loss=loss)
        meters.update(loss=loss.item(), lr=box.optimizer.param_groups[0]["lr"])
        meters.meters["sample/s"].update(len(batch) / (time.time() - begin))


def faster(row: dict[str, list[float]], name: str, other: str) -> tuple[float, float, float]:
    """How many times faster ``name`` is than ``other``: quartiles of the ratios within the rounds."""
    return quartiles([a / b for a, b in zip(row[other], row[name], strict=True)])


def markdown(
    results: dict[str, dict[str, list[float]]], facts: dict[str, str], notes: list[str], steps: int, epoch: int
) -> list[str]:
    lines = ["# Stage I on text, on cpu", "", *(f"- {label}: {value}" for label, value in facts.items()), ""]
    lines += [f"> {note}\n" for note in notes]
    lines += ["## Aims", "", "| aim | met | measured |", "|---|---|---|"]
    for pair, row in results.items():
        for name, other in ((CACHED, WITHOUT), (BUCKETS, WITHOUT), (CACHED, THEIRS), (BUCKETS, THEIRS)):
            first, median, third = faster(row, name, other)
            said = f"{median:.2f} [{first:.2f}, {third:.2f}]"
            lines.append(
                f"| {pair}: {name}, against {other}: >= {AIM:g} | {'yes' if median >= AIM else 'no'} | {said} |"
            )
    lines += ["", "## Measurements", "", f"Medians over {len(next(iter(results.values()))[THEIRS])} rounds, quartiles in "
              f"brackets. A round times {steps} steps of {BATCH} sentences of CoLA ({max(1, steps // 10)} of the large pair), "
              f"after 5 that are not timed; a ratio is taken within each round. An epoch has {epoch} steps. Filling the "
              "cache is not in it: it is one pass, what *without the cache* spends on the teacher in every epoch."]  # fmt: skip
    for pair, row in results.items():
        lines += [
            "",
            f"### {pair}",
            "",
            "| contender | seconds a step | seconds an epoch | faster than torchdistill by |",
            "|---|---|---|---|",
        ]
        for name, values in row.items():
            first, median, third = quartiles(values)
            ratio = "" if name == THEIRS else "{1:.2f} [{0:.2f}, {2:.2f}]".format(*faster(row, name, THEIRS))
            lines.append(f"| {name} | {median:.3f} [{first:.3f}, {third:.3f}] | {median * epoch:.0f} | {ratio} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
