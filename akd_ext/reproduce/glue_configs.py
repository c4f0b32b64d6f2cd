"""The YAML files of ``torchdistill_configs/glue/``, from the paper's Tables 7, 8, 9 and 11.

``python -m akd_ext.reproduce.configs --write`` writes them. Each runs in ``akd-train`` and in torchdistill's own
``general_language_understanding.py --task_name TASK``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from akd_ext.train.tasks.text.glue import PAPER_TASKS, TASKS, GlueTask

from .configs_yaml import Note, Tagged, to_yaml

# ---------------------------------------------------------------- the tables

# Table 7, the same for all tasks and both families.
BATCH_SIZE, MAX_LENGTH, KD_ALPHA, MAX_GRAD_NORM = 32, 128, 0.5, 1.0
KD_TEMPERATURE = 1  # the paper names none
WEIGHT_DECAY = 0.0  # the paper names none


def _same(value: Any, **others: Any) -> dict[str, Any]:
    """One value for all tasks but ``others``."""
    return {task: others.get(task, value) for task in PAPER_TASKS}


@dataclass(frozen=True)
class Large:
    """How a teacher is fine-tuned. The paper does not say; these are the values of the model's own paper."""

    epochs: int
    lr: float
    warmup: float
    source: str


@dataclass(frozen=True)
class Family:
    """One of the paper's two pairs of models."""

    name: str
    teacher: str  # names on the Hugging Face hub
    ta: str
    student: str
    lr: dict[str, float]
    phase1_epochs: dict[str, int]
    phase2_epochs: dict[str, int]
    tau_max: dict[str, int]
    large: Large
    methods: tuple[str, ...]
    phase2_note: str = ""
    tuned_tau_max: dict[str, int] = field(default_factory=dict)


DISTILROBERTA = Family(
    name="distilroberta",
    teacher="roberta-large",
    ta="roberta-base",
    student="distilroberta-base",
    # Table 8
    lr=_same(2e-5),
    phase1_epochs=_same(14),
    phase2_epochs=_same(6),
    tau_max=_same(7),
    large=Large(epochs=10, lr=2e-5, warmup=0.06, source="RoBERTa (Liu et al., 2019)"),
    methods=("teacher", "ta", "scratch", "kd", "takd", "annealing_kd", "annealing_kd_kl", "annealing_kd_tuned"),
    phase2_note="6 in the paper's text (section 4.3, appendix B), 4 in its Table 8",
    # Table 9
    tuned_tau_max=_same(14, cola=7, rte=7, mrpc=8, qnli=11, wnli=7),
)
BERT_SMALL = Family(
    name="bert_small",
    teacher="bert-large-uncased",
    ta="bert-base-uncased",
    student="google/bert_uncased_L-4_H-512_A-8",
    # Table 11
    lr=_same(2e-5, rte=4e-5, mrpc=4e-5),
    phase1_epochs=_same(28, mrpc=14, sst2=14, qnli=14, wnli=14),
    phase2_epochs=_same(6),
    tau_max=_same(14, mrpc=7, sst2=7, qnli=7, wnli=7),
    large=Large(epochs=3, lr=2e-5, warmup=0.1, source="BERT (Devlin et al., 2019)"),
    methods=("teacher", "ta", "scratch", "kd", "takd", "annealing_kd"),
)
FAMILIES = {family.name: family for family in (DISTILROBERTA, BERT_SMALL)}
# A user's own sentences, as an example to copy: the values of DistilRoBERTa.
OWN = GlueTask("own", "own data", (), (), "", (), (), (), splits=(("train", "train.csv"), ("validation", "dev.csv")))
OWN_CLASSES = 3
_FROM_OWN = "rte"  # whose numbers they are: all tasks have the same
NAMES = {"glue-distilroberta": "distilroberta", "glue-bert-small": "bert_small"}  # of akd-reproduce

# (first line of the file, which model is trained, which run is its teacher)
METHODS = {
    "teacher": ("the teacher, fine-tuned on the labels", "teacher", None),
    "ta": ("the teacher assistant of TAKD: KD from the teacher", "ta", "teacher"),
    "scratch": ("the student fine-tuned on the labels, without a teacher", "student", None),
    "kd": ("vanilla KD: teacher to student", "student", "teacher"),
    "takd": ("TAKD: teacher assistant to student", "student", "ta"),
    "annealing_kd": ("Annealing-KD", "student", "teacher"),
    "annealing_kd_kl": ("Annealing-KD with KL divergence in stage I (Table 10)", "student", "teacher"),
    "annealing_kd_tuned": ("Annealing-KD with tau_max tuned for the task (Table 9)", "student", "teacher"),
}


def tau_max(family: Family, method: str, task: str) -> int:
    """The maximum temperature of one run."""
    task = _FROM_OWN if task == OWN.name else task
    return (family.tuned_tau_max if method == "annealing_kd_tuned" else family.tau_max)[task]


def phase1_epochs(family: Family, method: str, task: str) -> int:
    """Epochs of stage I. A tuned tau_max keeps the two epochs per temperature of Tables 8 and 11."""
    return 2 * tau_max(family, method, task) if method == "annealing_kd_tuned" else family.phase1_epochs[task]


def epochs(family: Family, method: str, task: str) -> dict[str, int]:
    """Epochs by their place in the file."""
    task = _FROM_OWN if task == OWN.name else task
    if method == "teacher":
        return {"train": family.large.epochs}
    first, second = phase1_epochs(family, method, task), family.phase2_epochs[task]
    if method.startswith("annealing"):
        return {"train.stage1": first, "train.stage2": second}
    return {"train": first + second}


# ---------------------------------------------------------------- from the tables to torchdistill's words


def render(family: Family, method: str, task_name: str) -> str:
    """Return the YAML text of one run.

    Example:
        >>> render(DISTILROBERTA, "kd", "cola").splitlines()[0]
        '# CoLA, distilroberta-base, vanilla KD: teacher to student.'
    """
    task = TASKS[task_name]
    purpose, _, _ = METHODS[method]
    trained = getattr(family, METHODS[method][1])
    header = (
        f"# {task.folder}, {trained}, {purpose}.\n"
        "# Written by `python -m akd_ext.reproduce.configs --write` from the tables in glue_configs.py:\n"
        "# change the table, or copy this file and change the copy.\n\n"
    )
    return header + to_yaml(
        {
            "dependencies": [{"name": "akd_ext.torchdistill"}],
            "datasets": _datasets(task),
            "models": _models(family, method, task),
            "train": _train(family, method, task),
            "test": {"test_data_loader": _loader(f"{task.name}/{_first_validation(task)}")},
            "private": _private(task),
        }
    )


def folder(family: Family, method: str, task: str) -> str:
    """Where a run keeps its best model unless ``akd-train --output_dir`` says otherwise."""
    if task == OWN.name:
        return f"./runs/own_data/{method}/checkpoint"
    return f"./runs/glue/{family.name}/{method}/{task}/checkpoint"


def _datasets(task: GlueTask) -> dict:
    if task is OWN:
        files = {
            "train_file_path": Note("./train.csv", ".csv with a header, .json or .jsonl: label, sentence1, sentence2"),
            "valid_file_path": Note("./dev.csv", "sentence2 may be missing"),
        }
        own = _dataset(task) | {"raw_data_kwargs": files}
        return {"own": {key: value for key, value in own.items() if key != "name"}}
    entries = {"glue": _dataset(task)}
    if task.name == "mnli":  # the diagnostic set of the leaderboard is answered by MNLI's model
        entries["glue_ax"] = _dataset(TASKS["ax"], base_split_name="test")
    return entries


def _dataset(task: GlueTask, **more: Any) -> dict:
    return {
        "name": task.name,
        **more,
        "raw_data_kwargs": {},
        "max_length": MAX_LENGTH,
        "dataset_id_map": {split: f"{task.name}/{split}" for split, _ in task.splits},
    }


def _first_validation(task: GlueTask) -> str:
    return task.splits_like("validation")[0]


def _models(family: Family, method: str, task: GlueTask) -> dict:
    _, role, teacher = METHODS[method]
    hub_name = getattr(family, role)
    trained = _model(hub_name, hub_name, task) | {"dst_ckpt": folder(family, method, task.name)}
    if teacher is None:
        return {"model": trained}
    taught_by = _model(getattr(family, teacher), folder(family, teacher, task.name), task)
    return {"teacher_model": taught_by, "student_model": trained}


def _model(key: str, path: str, task: GlueTask) -> dict:
    where = {"pretrained_model_name_or_path": path}
    classes: Any = task.num_labels
    if task is OWN:
        classes = Note(OWN_CLASSES, "how many different labels; 1 where every label is a number such as 2.5")
    return {
        "key": key,
        "config_kwargs": {**where, "num_labels": classes},
        "tokenizer_kwargs": dict(where),
        "model_kwargs": dict(where),
    }


def _train(family: Family, method: str, task: GlueTask) -> dict:
    log = {"log_freq": 100}
    first, *more = epochs(family, method, task.name).values()
    if method == "teacher":
        large = family.large
        why = f"as in {large.source}: the paper does not say"
        return log | _stage(family, method, task, Note(first, why), large.lr, "labels", warmup=large.warmup)
    lr = family.lr[_FROM_OWN if task is OWN else task.name]
    if not more:
        all_of_them = Note(first, "as many as both stages of Annealing-KD together: the paper does not say")
        return log | _stage(family, method, task, all_of_them, lr, "labels" if method == "scratch" else "kd")
    last = Note(*more, family.phase2_note) if family.phase2_note else more[0]
    return log | {
        "stage1": _stage(family, method, task, first, lr, "annealing"),
        "stage2": _stage(family, method, task, last, lr, "labels", number=2),
    }


def _stage(family, method, task, epochs, lr, loss, *, warmup=0.0, number=1) -> dict:
    has_teacher = METHODS[method][2] is not None
    proc = "forward_logits" if loss == "annealing" else "forward_with_label_loss"
    student: dict[str, Any] = {"forward_proc": proc}
    if number > 1:
        student["src_folder"] = Note(folder(family, method, task.name), f"the best of stage {number - 1}")
    models: dict[str, Any] = {"student": student} if has_teacher else {"model": student}
    if has_teacher:
        skip = Note("skip_forward", "this stage learns from labels alone")
        cached = Note("cached_forward", "runs once over the training set; 'forward_logits' runs it in every epoch")
        models = {"teacher": {"forward_proc": skip if loss == "labels" else cached, "requires_grad": False}, **models}
    train = f"{task.name}/train"
    validation = f"{task.name}/{_first_validation(task)}"
    pre_epoch = {}
    if has_teacher:
        why = "sets T, computes or finds the teacher's logits"
        why = why if loss == "annealing" else "computes or finds the teacher's logits"
        why = "takes src_folder in" if number > 1 else why
        pre_epoch = {"pre_epoch_process": Note("text_pre_epoch_process", why)}
    return {
        "num_epochs": epochs,
        "train_data_loader": _loader(train, shuffle=True, cache=None if loss == "labels" else _cache_dir(family, task)),
        "val_data_loader": _loader(validation),
        **models,
        "optimizer": {
            "key": "AdamW",
            "kwargs": {
                "lr": lr,
                "weight_decay": Note(WEIGHT_DECAY, "the paper names none"),
                "fused": Note(True, "the same update in one pass over each parameter: the embeddings are large"),
            },
            "max_grad_norm": MAX_GRAD_NORM,
        },
        "scheduler": {
            "key": "linear_decay",
            "kwargs": {
                "num_training_steps": Note(None, "filled in when it runs: the steps of this stage"),
                **({"warmup": warmup} if warmup else {}),
            },
            "scheduling_step": 1,
        },
        "criterion": _criterion(family, method, task, loss),
        **pre_epoch,
    }


def _cache_dir(family: Family, task: GlueTask) -> str:
    return "./runs/own_data/teacher_logits" if task is OWN else f"./runs/glue/{family.name}/teacher_logits"


def _loader(dataset_id: str, *, shuffle: bool = False, cache: str | None = None) -> dict:
    wrapper = {"dataset_wrapper": {"key": "IndexedDatasetWrapper", "kwargs": {"cache_dir": cache}}} if cache else {}
    sampler = f"torch.utils.data.{'Random' if shuffle else 'Sequential'}Sampler"
    return {
        "dataset_id": dataset_id,
        "sampler": {"class_or_func": Tagged("!import_get", {"key": sampler})},
        "kwargs": {"batch_size": BATCH_SIZE, "num_workers": 0},
        "collate_fn": "DataCollatorWithPadding",
        **(wrapper or {"requires_supp": False}),
    }


def _criterion(family, method, task, loss) -> dict:
    extract = {"func2extract_model_loss": "extract_label_loss"}
    if loss == "labels":
        why = "mean squared error to the score" if task.is_regression else "cross-entropy"
        why = "cross-entropy; mean squared error for num_labels 1" if task is OWN else why
        return {
            "key": "WeightedSumLoss",
            "kwargs": {"model_term": {"weight": Note(1.0, why)}},
            **extract,
        }
    if loss == "kd":
        # A regression has one logit, which softmax would make 1.
        why = "the teacher's part; one logit: mean squared error" if task.is_regression else "the paper names none"
        term = {
            "criterion": {"key": "LogitKDLoss", "kwargs": {"temperature": Note(KD_TEMPERATURE, why)}},
            "weight": KD_ALPHA,
        }
        return {
            "key": "WeightedSumLoss",
            "kwargs": {"model_term": {"weight": Note(1 - KD_ALPHA, "the labels' part")}, "sub_terms": {"kd": term}},
            **extract,
        }
    form: Any = "kl" if method == "annealing_kd_kl" else "mse"
    if form == "kl" and task.is_regression:
        form = Note("mse", "KL needs two logits; Table 10 repeats the value of MSE for STS-B")
    kwargs = {
        "tau_max": Note(tau_max(family, method, task.name), "T falls from here to 1, evenly over this stage"),
        "annealing": Note("linear", "Phi(T) = 1 - (T - 1) / tau_max"),
        "loss": form,
    }
    term = {"criterion": {"key": "AnnealingKDLoss", "kwargs": kwargs}, "weight": 1.0}
    return {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"annealing_kd": term}}}


def _private(task: GlueTask) -> list[dict]:
    """What torchdistill's script, with ``--private_output``, and ``akd-train`` write for the leaderboard."""
    wanted = [(task, split, file) for split, file in zip(task.splits_like("test"), task.submission, strict=True)]
    if task.name == "mnli":
        wanted.append((TASKS["ax"], "test", "AX.tsv"))
    return [
        {
            "private_data_loader": {**_loader(f"{t.name}/{split}"), "task_name": t.name},
            "idx2str": t.labels == t.written,
            "pred_output": file,
        }
        for t, split, file in wanted
    ]


def render_own(method: str) -> str:
    """Return the YAML text of one run on a user's own sentences."""
    purpose, role, _ = METHODS[method]
    header = (
        f"# A user's own sentences and labels, {getattr(DISTILROBERTA, role)}, {purpose}.\n"
        "# Copy it and change what is commented; README.md beside it says how to run it.\n\n"
    )
    body = {
        "dependencies": [{"name": "akd_ext.torchdistill"}],
        "datasets": _datasets(OWN),
        "models": _models(DISTILROBERTA, method, OWN),
        "train": _train(DISTILROBERTA, method, OWN),
        "test": {"test_data_loader": _loader("own/validation")},
    }
    return header + to_yaml(body)


def files() -> dict[str, str]:
    """All YAML texts by their path below ``torchdistill_configs``."""
    own = {f"glue/own_data/{method}.yaml": render_own(method) for method in ("teacher", "annealing_kd")}
    return own | {
        f"glue/{family.name}/{method}/{task}.yaml": render(family, method, task)
        for family in FAMILIES.values()
        for method in family.methods
        for task in PAPER_TASKS
    }
