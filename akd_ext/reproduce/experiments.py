"""The hyper-parameters of every results table, once: what `configs.py` writes as YAML and `reproduce.py` runs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Network:
    """A model key, its arguments, and its size for the reader of a table."""

    key: str
    kwargs: dict[str, Any]
    parameters: int


@dataclass(frozen=True)
class Data:
    """A data set key with the arguments of each split, and what every data loader of it names."""

    key: str
    train: dict[str, Any]
    val: dict[str, Any]
    test: dict[str, Any]
    id: str
    eval_batch_size: int = 500
    whole_batches: bool = False  # the data set collates by itself
    cached_teacher: bool = False  # no sample is random: the teacher runs once, see akd_ext.torchdistill.cached_forward
    val_is_test: bool = False  # as in the paper


@dataclass(frozen=True)
class Stage:
    """One stage of training: what the student learns from, for how long, how fast.

    ``options`` are the arguments of the loss that differ from the experiment's.
    """

    loss: str  # "ce", "kd", "annealing" or "continuation"
    epochs: int
    lr: float
    options: dict[str, Any] = field(default_factory=dict)
    lr_drops: tuple[float, ...] | None = None  # None: the experiment's


@dataclass(frozen=True)
class Run:
    """One row of a results table: which network learns from which other one."""

    title: str  # in a table
    purpose: str  # the first line of the file
    network: str
    stages: tuple[Stage, ...]
    teacher: str | None = None  # the run whose checkpoint is the teacher
    paper: float | None = None  # test accuracy in per cent, as published
    ablation: bool = False  # left out of the table unless asked for
    train_data: dict[str, Any] = field(default_factory=dict)  # arguments of the training split that differ


@dataclass(frozen=True)
class Experiment:
    """One folder of configurations: the data, the networks and the runs of one table."""

    name: str  # of `akd-reproduce`; the folder is the same with "/" for "-"
    source: str  # where the paper has these numbers
    data: Data
    batch_size: int
    momentum: float
    weight_decay: float
    lr_drops: tuple[float, ...]  # shares of a stage's epochs after which the learning rate falls ...
    lr_drop_factor: float  # ... to this share of itself
    kd_lambda: float  # equation 1 of the paper: (1 - lambda) CE + lambda T^2 KL
    kd_temperature: int
    tau_max: int
    networks: dict[str, Network]
    runs: dict[str, Run]
    baseline: str  # the run the others are compared with
    notes: dict[str, str] = field(default_factory=dict)  # comments behind values, by key: why it is not the paper's

    @property
    def folder(self) -> str:
        return self.name.replace("-", "/")

    def milestones(self, stage: Stage, epochs: int) -> list[int]:
        """After which of a stage's epochs the learning rate falls; at 0 it would before the first step."""
        drops = self.lr_drops if stage.lr_drops is None else stage.lr_drops
        return [max(1, round(share * epochs)) for share in drops]


# ---------------------------------------------------------------- digits

DIGITS = Experiment(
    name="digits",
    source="an example that runs anywhere; not in the paper",
    data=Data(
        key="akd_ext.torchdistill.Digits",
        train={"split": "train", "train_size": 200},
        val={"split": "val"},
        test={"split": "test"},
        id="digits",
        eval_batch_size=512,
    ),
    batch_size=32,
    momentum=0.9,
    weight_decay=1e-4,
    lr_drops=(0.5, 0.75),
    lr_drop_factor=0.1,
    kd_lambda=0.9,
    kd_temperature=4,
    tau_max=10,
    networks={
        "teacher": Network("digits_cnn", {"width": 48}, 46_186),
        "ta": Network("digits_mlp", {"width": 128}, 9_610),
        "student": Network("digits_mlp", {"width": 32}, 2_410),
    },
    # Chosen on validation accuracy, with other seeds than the table's: KD does better here with lambda 0.9 and T 4 than
    # with 0.5 and 1. Every student trains for the same 360 epochs, so that no method wins by training longer.
    runs={
        "teacher": Run("teacher", "The teacher, trained on labels", "teacher", (Stage("ce", 40, 0.05),)),
        "ta": Run(
            "TA", "The teacher assistant of TAKD: KD from the teacher", "ta", (Stage("kd", 360, 0.06),), "teacher"
        ),
        "scratch": Run("scratch", "The student alone, trained on labels", "student", (Stage("ce", 360, 0.06),)),
        "kd": Run("KD", "KD (Hinton et al.): teacher to student", "student", (Stage("kd", 360, 0.06),), "teacher"),
        "takd": Run(
            "TAKD", "TAKD (Mirzadeh et al.): teacher assistant to student", "student", (Stage("kd", 360, 0.06),), "ta"
        ),
        "annealing_kd": Run(
            "Annealing-KD",
            "Annealing-KD (Jafari et al.): stage I follows the annealed logits, stage II the labels",
            "student",
            (Stage("annealing", 300, 0.1), Stage("ce", 60, 0.01)),
            "teacher",
        ),
    },
    baseline="kd",
)

# ---------------------------------------------------------------- CIFAR: Tables 1, 2 and 6 of the paper

# Table 6; the rows of one family differ in nothing else.
_BATCH_SIZE, _EPOCHS, _MOMENTUM, _WEIGHT_DECAY, _TAU_MAX = 128, 160, 0.9, 1e-4, 10
_FAMILIES = {
    # learning rate, shares of a stage after which it falls to a tenth, depths of teacher, teacher assistant, student
    "resnet": (0.1, (0.5, 0.75), (110, 20, 8)),
    "cnn": (0.01, (), (10, 4, 2)),
}
_KEYS = {"resnet": "resnet{}", "cnn": "plain_cnn{}"}
_PARAMETERS = {
    10: {"resnet": (1_730_714, 272_474, 78_042), "cnn": (2_487_850, 37_338, 13_082)},
    100: {"resnet": (1_736_564, 278_324, 83_892), "cnn": (2_931_460, 475_652, 215_172)},
}
# Tables 1 and 2: teacher, teacher assistant, scratch, KD, TAKD, Annealing-KD.
_PAPER = {
    10: {"resnet": (93.8, 92.39, 88.44, 88.45, 88.47, 89.44), "cnn": (90.1, 82.39, 72.75, 72.43, 72.62, 73.17)},
    100: {"resnet": (71.92, 67.6, 61.37, 61.41, 61.82, 63.1), "cnn": (64.89, 60.73, 51.35, 51.62, 51.85, 53.35)},
}
_CONTINUATION = {10: 90.21, 100: 64.2}  # Jafari et al., Findings of EMNLP 2022, ResNet-110 to ResNet-8
_NOTES = {
    "cnn": {
        "lr": "Table 6 has 0.1; the method's published code has 0.01, constant",
        "kd_lambda": "1 - lambda, the weight of the labels; the paper does not give lambda",
    },
    "resnet": {
        "lr_drops": "after 50 and 75 %; the paper gives no schedule",
        "kd_lambda": "1 - lambda, the weight of the labels; the paper does not give lambda",
    },
}


def _cifar_data(classes: int, augment: bool) -> Data:
    held_out = {"root": "./data", "train": False, "download": True}
    return Data(
        key=f"akd_ext.torchdistill.FastCIFAR{classes}",
        train={"root": "./data", "train": True, "download": True, "augment": augment},
        val=held_out,
        test=held_out,
        id=f"cifar{classes}",
        whole_batches=True,
        cached_teacher=not augment,
        val_is_test=True,
    )


def _ablations(stages, paper_continuation: float | None) -> dict[str, Run]:
    stage1, stage2 = stages

    def run(title, purpose, **options):
        changed = replace(stage1, options=options)
        return Run(f"Annealing-KD, {title}", f"Ablation of Annealing-KD: {purpose}", "student", (changed, stage2), "teacher",
                   ablation=True)  # fmt: skip

    return {
        "annealing_kd_constant": run("Phi = 1", "no annealing, Phi(T) = 1 throughout stage I", tau_max=1),
        "annealing_kd_kl": run("KL", "KL divergence instead of MSE in stage I (as in Table 10)", loss="kl", reduction="batchmean"),
        "annealing_kd_tau5": run("tau_max 5", "five temperatures", tau_max=5),
        "annealing_kd_tau20": run("tau_max 20", "twenty temperatures", tau_max=20),
        "annealing_kd_cosine": run("cosine Phi", "Phi falls along a cosine", annealing="cosine"),
        "continuation_kd": Run(
            "Continuation-KD",
            "Continuation-KD (Jafari et al., Findings of EMNLP 2022): one stage from the teacher to the labels",
            "student",
            (Stage("continuation", stage1.epochs, stage1.lr),),
            "teacher",
            paper=paper_continuation,
            ablation=True,
        ),
    }  # fmt: skip


def _cifar(classes: int, family: str, augment: bool) -> Experiment:
    lr, drops, depths = _FAMILIES[family]
    kwargs = {"num_classes": classes}
    networks = {
        role: Network(_KEYS[family].format(depth), kwargs, parameters)
        for role, depth, parameters in zip(
            ("teacher", "ta", "student"), depths, _PARAMETERS[classes][family], strict=True
        )
    }
    # The published accuracies are of training with augmentation or without, which of them the paper does not say.
    teacher, ta, scratch, kd, takd, annealing = _PAPER[classes][family]
    one = {loss: (Stage(loss, _EPOCHS, lr),) for loss in ("ce", "kd")}
    both = (Stage("annealing", _EPOCHS, lr), Stage("ce", _EPOCHS, lr))
    runs = {
        "teacher": Run("teacher", "The teacher, from scratch", "teacher", one["ce"], paper=teacher),
        "ta": Run("TA", "The teacher assistant of TAKD: KD from the teacher", "ta", one["kd"], "teacher", ta),
        "scratch": Run("scratch", "The student alone, from scratch", "student", one["ce"], paper=scratch),
        "kd": Run("KD", "KD (Hinton et al.): teacher to student", "student", one["kd"], "teacher", kd),
        "takd": Run("TAKD", "TAKD (Mirzadeh et al.): teacher assistant to student", "student", one["kd"], "ta", takd),
        "annealing_kd": Run(
            "Annealing-KD",
            "Annealing-KD (Jafari et al.): stage I follows the annealed logits, stage II the labels",
            "student",
            both,
            "teacher",
            annealing,
        ),
        **_ablations(both, _CONTINUATION[classes] if family == "resnet" else None),
    }
    table = "Table 1" if classes == 10 else "Table 2"
    return Experiment(
        name=f"cifar{classes}-{family}" + ("" if augment else "_no_aug"),
        source=f"{table} of the paper, hyper-parameters from its Table 6",
        data=_cifar_data(classes, augment),
        batch_size=_BATCH_SIZE,
        momentum=_MOMENTUM,
        weight_decay=_WEIGHT_DECAY,
        lr_drops=drops,
        lr_drop_factor=0.1,
        kd_lambda=0.5,
        kd_temperature=1,
        tau_max=_TAU_MAX,
        networks=networks,
        runs=runs,
        baseline="kd",
        notes=_NOTES[family],
    )


# ---------------------------------------------------------------- CIFAR-10 on a CPU, in an afternoon


def _cifar10_cpu() -> Experiment:
    """Plain CNN-2 from a ResNet-56 whose checkpoint one has (--teacher_ckpt), logits cached, 40 epochs a run."""
    data = _cifar_data(10, augment=False)
    # What the public option-A checkpoints were trained with.
    inputs = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    data = replace(data, **{split: {**getattr(data, split), **inputs} for split in ("train", "val", "test")})
    base = _cifar(10, "cnn", augment=False)
    stage1, stage2 = Stage("annealing", 20, 0.01), Stage("ce", 20, 0.01)

    def annealing(title, purpose, lr=0.01, ablation=True, **options):
        return Run(title, purpose, "student", (replace(stage1, lr=lr, options=options), stage2), "teacher",
                   ablation=ablation)  # fmt: skip

    def kd(temperature, ablation):
        stage = Stage("kd", 40, 0.01, {"temperature": temperature})
        return Run(f"KD, T = {temperature}", f"KD at temperature {temperature}", "student", (stage,), "teacher",
                   ablation=ablation)  # fmt: skip

    return replace(
        base,
        name="cifar10-cpu",
        source="not in the paper: plain CNN-2 from ResNet-56, no augmentation, 40 epochs in all for every student",
        data=data,
        networks={
            "teacher": Network("cifar_resnet", {"depth": 56, "num_classes": 10, "shortcut": "A"}, 853_018),
            "student": base.networks["student"],
        },
        runs={
            "teacher": Run(
                "teacher", "The teacher, from scratch, augmented", "teacher", (Stage("ce", 160, 0.1, lr_drops=(0.5, 0.75)),),
                train_data={"augment": True},
            ),
            "scratch": Run("scratch", "The student alone, from scratch", "student", (Stage("ce", 40, 0.01),)),
            "kd": kd(1, ablation=False),
            "kd_t4": kd(4, ablation=False),
            "annealing_kd": annealing(
                "Annealing-KD", "Annealing-KD: 20 epochs of annealed logits, 20 of labels", ablation=False
            ),
            "annealing_kd_constant": annealing("Annealing-KD, Phi = 1", "Ablation: no annealing", tau_max=1),
            "annealing_kd_kl": annealing("Annealing-KD, KL", "Ablation: KL instead of MSE", loss="kl", reduction="batchmean"),
            "annealing_kd_cosine": annealing("Annealing-KD, cosine Phi", "Ablation: cosine Phi", annealing="cosine"),
            "annealing_kd_batchmean": annealing(
                "Annealing-KD, batchmean", "Ablation: equation 3 as it stands, averaged over the batch; with a tenth of the learning rate the steps are those of the mean but for the weight decay",
                lr=0.001, reduction="batchmean",
            ),
        },
        notes={},
    )  # fmt: skip


_ALL = [
    DIGITS,
    *(_cifar(classes, family, augment) for augment in (True, False) for classes in (10, 100) for family in _FAMILIES),
    _cifar10_cpu(),
]
EXPERIMENTS = {experiment.name: experiment for experiment in _ALL}
