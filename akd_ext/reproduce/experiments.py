"""Every results table once: its rows are a recipe of ``torchdistill_configs/``, what is changed in it, the paper's number.

A change is written as for ``akd-train --set``. The recipes hold the hyper-parameters; here stands what differs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from akd_ext.train.tasks.text.glue import PAPER_TASKS, TASKS


@dataclass(frozen=True)
class Row:
    """One row of a results table: which network learns from which other one."""

    title: str  # in a table
    recipe: str  # the file, below the experiment's folder
    role: str  # which of the networks is trained: teacher, ta or student
    teacher: str | None = None  # the row whose checkpoint is the teacher
    paper: Any = None  # in per cent, as published: test accuracy, or for GLUE the dev set's metrics by task
    overrides: tuple[str, ...] = ()
    by_task: dict[str, tuple[str, ...]] = field(default_factory=dict)  # more overrides, for GLUE
    ablation: bool = False  # left out of the table unless asked for
    parameters: int | None = None

    @property
    def model(self) -> str:
        """The key of the trained network in the recipe's section ``models``."""
        return "student_model" if self.teacher else "model"

    @property
    def stages(self) -> tuple[str, ...]:
        """Where the recipe has its stages."""
        return ("train.stage1", "train.stage2") if self.recipe == "annealing_kd" else ("train",)


@dataclass(frozen=True)
class Experiment:
    """One table: its rows, and what all of them have in common."""

    name: str  # of `akd-reproduce`
    folder: str  # of the recipes, below torchdistill_configs
    source: str  # where the paper has these numbers
    rows: dict[str, Row]
    dataset: str  # "digits", "cifar10", "cifar100" or "glue"
    baseline: str = "kd"  # the row the others are compared with
    tasks: tuple[str, ...] = ("",)
    cached_teacher: bool = False  # no sample is random: the teacher runs once, see akd_ext.torchdistill.cached_forward

    @property
    def is_text(self) -> bool:
        return self.dataset == "glue"

    @property
    def best_on_test(self) -> bool:
        """Whether the best epoch is chosen on the test split, as in the paper."""
        return self.dataset.startswith("cifar")

    @property
    def teachers(self) -> set[str]:
        """The rows that another row learns from."""
        return {row.teacher for row in self.rows.values() if row.teacher}


ANNEALING = "train.stage1.criterion.kwargs.sub_terms.annealing_kd.criterion.kwargs"
_METHODS = {  # title, role, teacher
    "teacher": ("teacher", "teacher", None),
    "ta": ("TA", "ta", "teacher"),
    "scratch": ("scratch", "student", None),
    "kd": ("KD", "student", "teacher"),
    "takd": ("TAKD", "student", "ta"),
    "annealing_kd": ("Annealing-KD", "student", "teacher"),
}


def _methods(paper: tuple[Any, ...], parameters: dict[str, int] | None = None) -> dict[str, Row]:
    return {
        name: Row(title, name, role, teacher, paper=published, parameters=(parameters or {}).get(role))
        for (name, (title, role, teacher)), published in zip(_METHODS.items(), paper, strict=True)
    }


def _ablation(row: Row, title: str, *overrides: str) -> Row:
    return replace(
        row, title=f"{row.title}, {title}", overrides=(*row.overrides, *overrides), paper=None, ablation=True
    )


# ---------------------------------------------------------------- digits

_DIGITS = Experiment(
    name="digits",
    folder="digits",
    source="an example that runs anywhere; not in the paper",
    rows=_methods((None,) * 6, {"teacher": 46_186, "ta": 9_610, "student": 2_410}),
    dataset="digits",
)

# ---------------------------------------------------------------- CIFAR: Tables 1 and 2 of the paper

# Teacher, teacher assistant, scratch, KD, TAKD, Annealing-KD; parameters of teacher, teacher assistant, student.
# With augmentation or without, the paper does not say.
_CIFAR = {
    (10, "resnet"): ((93.8, 92.39, 88.44, 88.45, 88.47, 89.44), (1_730_714, 272_474, 78_042)),
    (10, "cnn"): ((90.1, 82.39, 72.75, 72.43, 72.62, 73.17), (2_487_850, 37_338, 13_082)),
    (100, "resnet"): ((71.92, 67.6, 61.37, 61.41, 61.82, 63.1), (1_736_564, 278_324, 83_892)),
    (100, "cnn"): ((64.89, 60.73, 51.35, 51.62, 51.85, 53.35), (2_931_460, 475_652, 215_172)),
}
_CONTINUATION = {(10, "resnet"): 90.21, (100, "resnet"): 64.2}  # Jafari et al., Findings of EMNLP 2022
_CONSTANT, _COSINE = ("Phi = 1", f"{ANNEALING}.tau_max=1"), ("cosine Phi", f"{ANNEALING}.annealing=cosine")
_KL = ("KL", f"{ANNEALING}.loss=kl", f"{ANNEALING}.reduction=batchmean")  # as in Table 10


def _cifar(classes: int, family: str) -> Experiment:
    paper, parameters = _CIFAR[classes, family]
    rows = _methods(paper, dict(zip(("teacher", "ta", "student"), parameters, strict=True)))
    annealing = rows["annealing_kd"]
    rows |= {
        "annealing_kd_constant": _ablation(annealing, *_CONSTANT),
        "annealing_kd_kl": _ablation(annealing, *_KL),
        "annealing_kd_tau5": _ablation(annealing, "tau_max 5", f"{ANNEALING}.tau_max=5"),
        "annealing_kd_tau20": _ablation(annealing, "tau_max 20", f"{ANNEALING}.tau_max=20"),
        "annealing_kd_cosine": _ablation(annealing, *_COSINE),
        "continuation_kd": replace(
            annealing,
            title="Continuation-KD",
            recipe="continuation_kd",
            paper=_CONTINUATION.get((classes, family)),
            ablation=True,
        ),
    }
    table = "Table 1" if classes == 10 else "Table 2"
    return Experiment(
        name=f"cifar{classes}-{family}",
        folder=f"cifar{classes}/{family}",
        source=f"{table} of the paper, hyper-parameters from its Table 6",
        rows=rows,
        dataset=f"cifar{classes}",
    )


def _without_augmentation(experiment: Experiment) -> Experiment:
    """The same runs on images as they are, which the teacher need see only once."""

    def changed(row: Row) -> Row:
        more = (f"datasets.{experiment.dataset}/train.init.kwargs.augment=False",)
        if row.teacher:
            more += (f"{row.stages[0]}.teacher.forward_proc=cached_forward",)
        return replace(row, overrides=(*row.overrides, *more))

    rows = {name: changed(row) for name, row in experiment.rows.items()}
    return replace(experiment, name=f"{experiment.name}_no_aug", rows=rows, cached_teacher=True)


def _cifar10_cpu() -> Experiment:
    """Plain CNN-2 from a ResNet-56 whose checkpoint one has (--teacher_ckpt), logits cached, 40 epochs a run."""
    rows = _methods((None,) * 6, {"teacher": 853_018, "student": 13_082})
    annealing, kd = rows["annealing_kd"], rows["kd"]
    return Experiment(
        name="cifar10-cpu",
        folder="cifar10/cpu",
        source="not in the paper: plain CNN-2 from ResNet-56, no augmentation, 40 epochs in all for every student",
        rows={
            "teacher": rows["teacher"],
            "scratch": rows["scratch"],
            "kd": replace(kd, title="KD, T = 1"),
            "kd_t4": replace(
                kd,
                title="KD, T = 4",
                overrides=("train.criterion.kwargs.sub_terms.kd.criterion.kwargs.temperature=4",),
            ),
            "annealing_kd": annealing,
            "annealing_kd_constant": _ablation(annealing, *_CONSTANT),
            "annealing_kd_kl": _ablation(annealing, *_KL),
            "annealing_kd_cosine": _ablation(annealing, *_COSINE),
            # Equation 3 as it stands, averaged over the batch. With a tenth of the learning rate the steps are those of
            # the mean but for the weight decay.
            "annealing_kd_batchmean": _ablation(
                annealing, "batchmean", "train.stage1.optimizer.kwargs.lr=0.001", f"{ANNEALING}.reduction=batchmean"
            ),
        },
        dataset="cifar10",
        cached_teacher=True,
    )


# ---------------------------------------------------------------- GLUE: Tables 3, 5, 9 and 10 of the paper

# Columns: CoLA (Matthews; the caption says accuracy), RTE, MRPC (F1), STS-B (Pearson), SST-2, QNLI, QQP (accuracy), MNLI
# (matched, mismatched), WNLI, and the score printed there. Rows as in _METHODS.
_TABLE_3 = (
    (68.1, 86.3, 91.9, 92.3, 96.4, 94.6, 91.5, (90.22, 89.87), 56.33, 85.29),
    None,
    (59.3, 67.9, 88.6, 88.5, 92.5, 90.8, 90.9, (84.0, 84.0), 52.1, 79.3),
    (60.97, 71.11, 90.2, 88.86, 92.54, 91.37, 91.64, (84.18, 84.11), 56.33, 80.8),
    (61.15, 71.84, 89.91, 88.94, 92.54, 91.32, 91.7, (83.89, 84.18), 56.33, 80.85),
    (61.67, 73.64, 90.6, 89.01, 93.11, 91.64, 91.5, (85.34, 84.6), 56.33, 81.42),
)
_TABLE_5 = (
    (65.8, 71.48, 89.38, 89.2, 92.77, 92.82, 91.45, (86.3, 86.4), 60.56, 82.19),
    None,
    None,
    (33.5, 57.0, 86.0, 72.3, 88.76, 83.15, 87.0, (72.62, 73.19), 54.92, 70.58),
    (34.24, 59.56, 85.23, 71.1, 89.1, 82.62, 87.0, (72.32, 72.45), 54.92, 70.76),
    (35.98, 61.0, 86.2, 74.54, 89.44, 83.14, 86.5, (73.85, 74.84), 54.92, 71.68),
)
_TABLE_9 = (61.67, 73.64, 91.99, 89.26, 93.34, 92.0, 91.72, (85.14, 85.22), 56.33, 81.67)
_TABLE_10 = (62.56, 70.75, 90.84, 89.01, 93.0, 91.32, 91.42, (85.0, 84.75), 56.33, 81.13)

_TUNED = {"mrpc": 8, "stsb": 14, "sst2": 14, "qnli": 11, "qqp": 14, "mnli": 14}  # Table 9: tau_max; else 7
_BERT_SMALL_TAU = dict.fromkeys(("mrpc", "sst2", "qnli", "wnli"), 7)  # Table 11; else 14
_BERT_SMALL_LR = dict.fromkeys(("rte", "mrpc"), 4e-5)  # Table 11; else 2e-5
_PHASE_2 = 6  # epochs

_SEQUENTIAL = "{class_or_func: !import_get {key: torch.utils.data.SequentialSampler}}"


def _answer(task: str, split: str, file: str, words: bool = True) -> str:
    """One entry of a recipe's section ``private``: a file for the leaderboard."""
    return (
        f"{{private_data_loader: {{dataset_id: {task}/{split}, sampler: {_SEQUENTIAL}, "
        "kwargs: {batch_size: 32, num_workers: 0}, collate_fn: DataCollatorWithPadding, requires_supp: False, "
        f"task_name: {task}}}, idx2str: {words}, pred_output: {file}}}"
    )


def _task(row: Row, name: str) -> tuple[str, ...]:
    """What another task than CoLA, which the recipes have, changes in any of them; MNLI has other splits as well."""
    task = TASKS[name]
    changes = [f"datasets.glue.name={name}"]
    if task.num_labels != 2:
        roles = (row.model, "teacher_model") if row.teacher else (row.model,)
        changes += [f"models.{role}.config_kwargs.num_labels={task.num_labels}" for role in roles]
    if name != "mnli":
        return (
            *changes,
            f"private.0.idx2str={task.labels == task.written}",
            f"private.0.pred_output={task.submission[0]}",
        )
    splits = ", ".join(f"{split}: mnli/{split}" for split, _ in task.splits)
    diagnostic = (
        "{name: ax, base_split_name: test, raw_data_kwargs: {}, max_length: 128, dataset_id_map: {test: ax/test}}"
    )
    files = (
        ("mnli", "test_matched", "MNLI-m.tsv"),
        ("mnli", "test_mismatched", "MNLI-mm.tsv"),
        ("ax", "test", "AX.tsv"),
    )
    return (
        *changes,
        f"datasets.glue.dataset_id_map={{{splits}}}",
        f"datasets.glue_ax={diagnostic}",  # the leaderboard's diagnostic set is answered by MNLI's model
        *(f"{stage}.val_data_loader.dataset_id=mnli/validation_matched" for stage in row.stages),
        "test.test_data_loader.dataset_id=mnli/validation_matched",
        f"private=[{', '.join(_answer(*file) for file in files)}]",
    )


def _hotter(row: Row, tau_max: int | None) -> tuple[str, ...]:
    """Another maximum temperature: two epochs each, as in Tables 8 and 11; the other methods train as long."""
    if tau_max is None or row.recipe == "teacher":
        return ()
    if row.recipe == "annealing_kd":
        return (f"{ANNEALING}.tau_max={tau_max}", f"train.stage1.num_epochs={2 * tau_max}")
    return (f"train.num_epochs={2 * tau_max + _PHASE_2}",)


def _bert_small(row: Row, task: str) -> tuple[str, ...]:
    changes = _hotter(row, _BERT_SMALL_TAU.get(task))
    if task in _BERT_SMALL_LR and row.recipe != "teacher":
        changes += tuple(f"{stage}.optimizer.kwargs.lr={_BERT_SMALL_LR[task]!r}" for stage in row.stages)
    return changes


def _kl(row: Row, task: str) -> tuple[str, ...]:
    # KL needs two logits; Table 10 repeats the value of MSE for STS-B.
    return () if TASKS[task].is_regression else (f"{ANNEALING}.loss=kl",)


def _glue_row(row: Row, more: Callable[[Row, str], tuple[str, ...]]) -> Row:
    paper = dict(zip((*PAPER_TASKS, "score"), row.paper, strict=True)) if row.paper else None
    title = "teacher assistant" if row.role == "ta" else row.title
    by_task = {task: (() if task == "cola" else _task(row, task)) + more(row, task) for task in PAPER_TASKS}
    return replace(row, title=title, paper=paper, by_task=by_task)


def _glue(name: str, folder: str, source: str, rows: dict[str, Row]) -> Experiment:
    return Experiment(name, f"glue/{folder}", source, rows, dataset="glue", tasks=PAPER_TASKS)


def _glue_distilroberta() -> Experiment:
    plain = _methods(_TABLE_3)
    rows = {name: _glue_row(row, lambda row, task: ()) for name, row in plain.items()}
    for name, title, paper, more in (
        ("kl", "KL", _TABLE_10, _kl),
        ("tuned", "tuned tau_max", _TABLE_9, lambda row, task: _hotter(row, _TUNED.get(task))),
    ):
        ablation = replace(_ablation(plain["annealing_kd"], title), paper=paper)
        rows[f"annealing_kd_{name}"] = _glue_row(ablation, more)
    return _glue("glue-distilroberta", "distilroberta", "Tables 3, 9 and 10 of the paper", rows)


def _glue_bert_small() -> Experiment:
    rows = {name: _glue_row(row, _bert_small) for name, row in _methods(_TABLE_5).items()}
    return _glue("glue-bert-small", "bert_small", "Table 5 of the paper", rows)


_AUGMENTED = [_cifar(classes, family) for classes, family in _CIFAR]
_ALL = [
    _DIGITS,
    *_AUGMENTED,
    *map(_without_augmentation, _AUGMENTED),
    _cifar10_cpu(),
    _glue_distilroberta(),
    _glue_bert_small(),
]
EXPERIMENTS = {experiment.name: experiment for experiment in _ALL}
