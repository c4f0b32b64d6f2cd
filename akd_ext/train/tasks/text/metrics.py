"""The metrics of GLUE, from scikit-learn and SciPy, under the names of Hugging Face's ``evaluate``."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np


def _matthews(predictions, labels) -> float:
    from sklearn.metrics import matthews_corrcoef

    return matthews_corrcoef(labels, predictions)


def _f1(predictions, labels) -> float:
    from sklearn.metrics import f1_score

    return f1_score(labels, predictions, zero_division=0.0)


def _accuracy(predictions, labels) -> float:
    return np.mean(np.asarray(predictions) == np.asarray(labels))


def _correlation(name):
    def compute(predictions, labels) -> float:
        from scipy import stats

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a constant prediction: NaN says it
            return getattr(stats, name)(predictions, labels)[0]

    return compute


_METRICS = {
    "matthews_correlation": _matthews,
    "f1": _f1,
    "accuracy": _accuracy,
    "pearson": _correlation("pearsonr"),
    "spearmanr": _correlation("spearmanr"),
}


def compute(names: Sequence[str], predictions, labels) -> dict[str, float]:
    """The metrics ``names``, each a float of at most 1.

    Args:
        names: of ``matthews_correlation``, ``f1`` (of class 1), ``accuracy``, ``pearson``, ``spearmanr``.
        predictions, labels: [N], classes, or numbers for the correlations.

    Returns:
        ``{name: value}``. A correlation with something constant is NaN; Matthews' is 0 then (scikit-learn).

    >>> compute(["accuracy", "f1"], [1, 1, 0, 0], [1, 0, 0, 0])
    {'accuracy': 0.75, 'f1': 0.6666666666666666}
    """
    return {name: float(_METRICS[name](predictions, labels)) for name in names}
