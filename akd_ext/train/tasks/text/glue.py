"""The GLUE tasks: where each keeps its sentences and labels, what is measured, what the leaderboard takes."""

from __future__ import annotations

from dataclasses import dataclass

REGRESSION_RANGE = (0.0, 5.0)  # STS-B's scores, in its files and on the leaderboard


@dataclass(frozen=True)
class GlueTask:
    """One task of GLUE (Wang et al., 2018).

    ``labels`` are the names in the order of Hugging Face's ``glue`` data set, which is the order of the classes here;
    ``written`` is how the official files and the leaderboard write the same labels. Both are empty for a regression.
    """

    name: str  # as in Hugging Face's data set
    folder: str  # of the official files
    texts: tuple[str, ...]  # columns of the official files
    hub_texts: tuple[str, ...]  # columns of Hugging Face's data set
    label: str  # column of the official files
    labels: tuple[str, ...]
    written: tuple[str, ...]
    metrics: tuple[str, ...]  # the first is what the paper reports, and what selects the best epoch
    submission: tuple[str, ...] = ()  # files of the leaderboard, one per test split
    splits: tuple[tuple[str, str], ...] = (("train", "train"), ("validation", "dev"), ("test", "test"))
    # Columns of files that have no header, by split.
    no_header: tuple[tuple[str, tuple[str, ...]], ...] = ()
    skips_broken_lines: bool = False

    @property
    def is_regression(self) -> bool:
        return not self.labels

    @property
    def num_labels(self) -> int:
        """The number of logits."""
        return len(self.labels) or 1


_PAIR = ("sentence1", "sentence2")
_BITS = ("0", "1")
_ENTAILMENT = ("entailment", "not_entailment")
_NLI = ("entailment", "neutral", "contradiction")
_COLA = ("source", "label", "original label", "sentence")
_ACCURACY = ("accuracy",)
_MATCHED = (
    ("train", "train"),
    ("validation_matched", "dev_matched"),
    ("validation_mismatched", "dev_mismatched"),
    ("test_matched", "test_matched"),
    ("test_mismatched", "test_mismatched"),
)

_ALL = (
    GlueTask("cola", "CoLA", ("sentence",), ("sentence",), "label", ("unacceptable", "acceptable"), _BITS,
         ("matthews_correlation",), ("CoLA.tsv",), no_header=(("train", _COLA), ("validation", _COLA))),
    GlueTask("rte", "RTE", _PAIR, _PAIR, "label", _ENTAILMENT, _ENTAILMENT, _ACCURACY, ("RTE.tsv",)),
    GlueTask("mrpc", "MRPC", ("#1 String", "#2 String"), _PAIR, "Quality", ("not_equivalent", "equivalent"), _BITS,
         ("f1", "accuracy"), ("MRPC.tsv",)),
    GlueTask("stsb", "STS-B", _PAIR, _PAIR, "score", (), (), ("pearson", "spearmanr"), ("STS-B.tsv",)),
    GlueTask("sst2", "SST-2", ("sentence",), ("sentence",), "label", ("negative", "positive"), _BITS, _ACCURACY,
         ("SST-2.tsv",)),
    GlueTask("qnli", "QNLI", ("question", "sentence"), ("question", "sentence"), "label", _ENTAILMENT, _ENTAILMENT,
         _ACCURACY, ("QNLI.tsv",)),
    # The paper reports accuracy for QQP. A few lines of its official files lack a question.
    GlueTask("qqp", "QQP", ("question1", "question2"), ("question1", "question2"), "is_duplicate",
         ("not_duplicate", "duplicate"), _BITS, ("accuracy", "f1"), ("QQP.tsv",), skips_broken_lines=True),
    GlueTask("mnli", "MNLI", _PAIR, ("premise", "hypothesis"), "gold_label", _NLI, _NLI, _ACCURACY,
         ("MNLI-m.tsv", "MNLI-mm.tsv"), splits=_MATCHED),
    GlueTask("wnli", "WNLI", _PAIR, _PAIR, "label", ("not_entailment", "entailment"), _BITS, _ACCURACY, ("WNLI.tsv",)),
    # The diagnostic set has a test split only; MNLI's model answers it.
    GlueTask("ax", "AX", _PAIR, ("premise", "hypothesis"), "label", _NLI, _NLI, _ACCURACY, ("AX.tsv",),
         splits=(("test", "AX"),)),
)  # fmt: skip
TASKS = {task.name: task for task in _ALL}
# What a table holds, in the paper's order of columns.
PAPER_TASKS = tuple(name for name in TASKS if name != "ax")
