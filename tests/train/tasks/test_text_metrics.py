"""GLUE's metrics against values worked out by hand."""

import math

import pytest

pytest.importorskip("sklearn", reason="the metrics are scikit-learn's: pip install '.[experiments]'")
pytest.importorskip("torchdistill", reason="akd_ext.experiments needs it: pip install '.[experiments]'")

from akd_ext.train.tasks.text.metrics import compute


def test_classification_by_hand():
    # 3 true positives, 1 false positive, 2 false negatives, 4 true negatives
    predictions = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    labels = [1, 1, 1, 0, 1, 1, 0, 0, 0, 0]
    found = compute(["accuracy", "f1", "matthews_correlation"], predictions, labels)
    assert found["accuracy"] == pytest.approx(7 / 10)
    assert found["f1"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))
    # (TP TN - FP FN) / sqrt((TP+FP) (TP+FN) (TN+FP) (TN+FN))
    assert found["matthews_correlation"] == pytest.approx((3 * 4 - 1 * 2) / math.sqrt(4 * 5 * 5 * 6))


def test_correlations_by_hand():
    # x - mean = (-1.5, -0.5, 0.5, 1.5), y - mean = (-2, -1, -2, 5); the mean of y is 3
    found = compute(["pearson", "spearmanr"], [1, 2, 3, 4], [1.0, 2.0, 1.0, 8.0])
    assert found["pearson"] == pytest.approx((3 + 0.5 - 1 + 7.5) / math.sqrt(5 * 34))
    # ranks of y: 1.5, 3, 1.5, 4; minus 2.5: -1, 0.5, -1, 1.5
    assert found["spearmanr"] == pytest.approx((1.5 - 0.25 - 0.5 + 2.25) / math.sqrt(5 * (1 + 0.25 + 1 + 2.25)))


def test_a_model_that_says_one_thing_only_has_no_correlation():
    assert compute(["matthews_correlation", "f1"], [0, 0, 0], [0, 1, 0]) == {"matthews_correlation": 0.0, "f1": 0.0}
    assert all(math.isnan(v) for v in compute(["pearson", "spearmanr"], [2.0, 2.0], [1.0, 3.0]).values())
