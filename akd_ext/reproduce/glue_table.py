"""The tables of GLUE: Tables 3, 5, 9 and 10 of the paper."""

from __future__ import annotations

import statistics
from typing import Any

from akd_ext.train.tasks.text.glue import PAPER_TASKS, TASKS

from .experiments import Experiment
from .jobs import Job, Options
from .report import Table, aligned, mean_and_std, plus_minus

Value = float | tuple[float, float]
_SECONDS = "An epoch's seconds include the dev set and, where the teacher's logits were not there yet, its one pass."


def score(values: dict[str, Value]) -> float:
    """The mean over tasks, MNLI's two values averaged first. The scores the paper prints differ from it by up to 0.1.

    >>> score({"rte": 70.0, "mnli": (80.0, 82.0)})
    75.5
    """
    means = [sum(v) / len(v) if isinstance(v, tuple) else v for v in values.values()]
    return sum(means) / len(means)


def summarize(experiment: Experiment, results: dict[Job, dict]) -> list[dict[str, Any]]:
    """A row per method: for each task the metrics of every seed's best epoch, their mean, and two mean scores."""
    rows = []
    for method, row in experiment.rows.items():
        found: dict[str, dict[str, dict[str, float]]] = {}
        for job, result in results.items():
            if job.run == method and job.start is None:
                found.setdefault(job.task, {})[str(job.seed)] = result["best"]["test_metrics"]
        if not found:
            continue
        tasks = {task: _task(task, found[task]) for task in PAPER_TASKS if task in found}
        rows.append(
            {
                "name": method,
                "title": row.title,
                "tasks": tasks,
                "score": score({task: tuple(cell["mean"]) for task, cell in tasks.items()}),
                "glue_score": statistics.fmean(cell["glue"] for cell in tasks.values()),
                "paper": row.paper,
            }
        )
    return rows


def _task(task: str, by_seed: dict[str, dict[str, float]]) -> dict[str, Any]:
    """``mean``, ``std``: of the metric the paper reports, for MNLI matched and mismatched; ``glue``: the mean of all.

    A correlation that is not a number, because a student says the same of everything, counts as 0.
    """
    first = TASKS[task].metrics[0]
    names = [first, f"{first}_mismatched"] if task == "mnli" else [first]
    spread = [mean_and_std([metrics[name] or 0.0 for metrics in by_seed.values()]) for name in names]
    everything = [statistics.fmean(value or 0.0 for value in metrics.values()) for metrics in by_seed.values()]
    return {
        "mean": [s["mean"] for s in spread],
        "std": [s["std"] for s in spread],
        "glue": statistics.fmean(everything),
        "seeds": by_seed,
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table, with the paper's row below ours; the paper's score is over the same tasks."""
    tasks = [task for task in PAPER_TASKS if any(task in row["tasks"] for row in rows)]
    lines = [["method", *(TASKS[task].folder for task in tasks), "score", "GLUE score"]]
    for row in rows:
        cells = [_cell(row["tasks"].get(task)) for task in tasks]
        # A mean over fewer tasks than the other rows' would pass for comparable.
        scores = [f"{row[name]:.2f}" if all(cells) else "" for name in ("score", "glue_score")]
        lines.append([row["title"], *cells, *scores])
        if row["paper"] is not None:
            paper = {task: row["paper"][task] for task in tasks}
            lines.append(["*paper*", *(_paper(value) for value in paper.values()), f"{score(paper):.2f}", ""])
    return aligned(lines)


def _cell(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return ""
    return " / ".join(plus_minus(mean, std) for mean, std in zip(cell["mean"], cell["std"], strict=True))


def _paper(value: Value) -> str:
    return " / ".join(f"{v:.2f}" for v in (value if isinstance(value, tuple) else (value,)))


def _seeds(rows: list[dict[str, Any]]) -> str:
    counts = {
        len(cell["seeds"]) for row in rows if row["name"] not in ("teacher", "ta") for cell in row["tasks"].values()
    }
    few, many = min(counts, default=1), max(counts, default=1)
    return f"{few} to {many} seeds" if few < many else f"{many} seed{'s' if many > 1 else ''}"


def footnote(seeds: str, epochs_scale: float, replaced: dict[str, str], lr: float | None = None) -> str:
    """What the columns mean, and what was not done as in the paper."""
    text = (
        f"On the dev sets, in per cent, mean ± sample standard deviation over {seeds}; teachers have one. CoLA: Matthews "
        "correlation, MRPC: F1, STS-B: Pearson, MNLI: matched / mismatched, else accuracy. The best epoch, of either stage, "
        "is chosen on the same data, as in the paper. *score*: the mean over the tasks of the table; *GLUE score*: as the "
        "leaderboard has it, with all metrics of a task averaged first."
    )
    if epochs_scale != 1:
        text += f"\n\n**Shortened protocol: every stage has {epochs_scale:g} of its epochs.**"
    if lr is not None:
        text += f"\n\n**Every run has the learning rate {lr:g}, not the paper's.**"
    if replaced:
        text += f"\n\n**Other models than the paper's: {', '.join(f'{k} {v}' for k, v in replaced.items())}.**"
    return text


def seconds_per_epoch(experiment: Experiment, results: dict[Job, dict]) -> str:
    """A Markdown table: what an epoch took, the mean over epochs and seeds."""
    found: dict[str, dict[str, list[float]]] = {}
    for job, result in results.items():
        found.setdefault(job.run, {}).setdefault(job.task, []).extend(e["seconds"] for e in result["epochs"])
    tasks = [task for task in PAPER_TASKS if any(task in row for row in found.values())]
    lines = [["seconds per epoch", *(TASKS[task].folder for task in tasks)]]
    for method, row in experiment.rows.items():
        if method in found:
            cells = (found[method].get(task) for task in tasks)
            lines.append([row.title, *(f"{statistics.fmean(cell):.1f}" if cell else "" for cell in cells)])
    return aligned(lines)


def build(experiment: Experiment, results: dict[Job, dict], options: Options) -> Table:
    """The table from what the runs reached."""
    rows = summarize(experiment, results)
    chosen = {**options.models, "student_layers": options.student_layers}
    replaced = {name: value for name, value in chosen.items() if value}
    seconds = {job.label: statistics.fmean(e["seconds"] for e in found["epochs"]) for job, found in results.items()}
    return Table(
        text=markdown(rows) + "\n" + footnote(_seeds(rows), options.epochs_scale, replaced, options.lr) + "\n",
        tail=f"{seconds_per_epoch(experiment, results)}\n{_SECONDS}\n\n",
        data={
            "epochs_scale": options.epochs_scale,
            "lr": options.lr,
            "replaced": replaced,
            "rows": rows,
            "seconds_per_epoch": seconds,
        },
    )
