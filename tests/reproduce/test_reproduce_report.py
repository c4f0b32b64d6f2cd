"""The numbers and the look of a results table."""

import pytest

pytest.importorskip("scipy", reason="confidence intervals come from scipy: pip install '.[test]'")
pytest.importorskip("matplotlib", reason="the plot needs matplotlib: pip install '.[test]'")

import numpy as np
from scipy import stats

from akd_ext.reproduce import image_table, plots, report
from akd_ext.reproduce.image_table import Row

KD = Row("KD", 2410, 10, {0: 90.0, 1: 91.0, 2: 95.0}, {0: 89.0, 1: 90.0, 2: 94.0})
OURS = Row("Annealing-KD", 2410, 12, {0: 91.0, 1: 93.0, 2: 95.5}, {0: 91.0, 1: 92.0, 2: 95.0})
TEACHER = Row("teacher", 46186, 4, {0: 97.0}, {0: 96.0})
ROWS = {"teacher": TEACHER, "kd": KD, "ours": OURS}


def test_means_and_sample_standard_deviations():
    teacher, kd, _ = image_table.summarize(ROWS, "kd")
    values = list(KD.best.values())
    assert kd["best"]["mean"] == pytest.approx(np.mean(values))
    assert kd["best"]["std"] == pytest.approx(np.std(values, ddof=1))
    assert (kd["n"], teacher["n"]) == (3, 1)
    assert teacher["best"] == {"mean": 97.0, "std": None}


def test_the_difference_has_welch_s_interval():
    ours = image_table.summarize(ROWS, "kd")[2]["difference"]
    test = stats.ttest_ind(list(OURS.best.values()), list(KD.best.values()), equal_var=False).confidence_interval(0.95)
    assert ours["mean"] == pytest.approx(3.5 / 3)
    assert ours["mean"] - ours["half_width"] == pytest.approx(test.low)
    assert ours["mean"] + ours["half_width"] == pytest.approx(test.high)


def test_rows_with_other_or_fewer_seeds_are_compared():
    assert report.welch_difference([92.0], [90.0, 91.0]) == {"mean": 1.5, "half_width": None}
    test = stats.ttest_ind([92.0, 94.0, 95.0, 90.0], [90.0, 91.0], equal_var=False).confidence_interval(0.95)
    ours = report.welch_difference([92.0, 94.0, 95.0, 90.0], [90.0, 91.0])
    assert 2 * ours["half_width"] == pytest.approx(test.high - test.low)
    assert report.welch_difference([92.0, 92.0], [90.0, 90.0]) == {"mean": 2.0, "half_width": 0.0}


def test_only_the_same_network_is_compared():
    assert image_table.summarize(ROWS, "kd")[0]["difference"] is None
    assert image_table.summarize({"ours": OURS}, "kd")[0]["difference"] is None


def test_markdown():
    assert image_table.markdown(image_table.summarize(ROWS, "kd"), "KD").splitlines() == [
        "| method       | parameters | epochs | n |         best |         last |            best - KD |",
        "|--------------|-----------:|-------:|--:|-------------:|-------------:|---------------------:|",
        "| teacher      |     46,186 |      4 | 1 |        97.00 |        96.00 |                      |",
        "| KD           |      2,410 |     10 | 3 | 92.00 ± 2.65 | 91.00 ± 2.65 |                      |",
        "| Annealing-KD |      2,410 |     12 | 3 | 93.17 ± 2.25 | 92.67 ± 2.08 | +1.17 [-4.46, +6.79] |",
    ]


def test_the_plot_is_a_picture(tmp_path):
    summary = image_table.summarize(ROWS, "kd")
    plots.plot_table(summary[1:], tmp_path / "table.png", "digits", {"teacher": 97.0}, "kd")
    content = (tmp_path / "table.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n")
    assert len(content) > 10_000
    assert list(tmp_path.iterdir()) == [tmp_path / "table.png"]


@pytest.mark.parametrize("first", [0, 1])  # results.json counted from 0 before it counted from 1
def test_curves_count_from_1_show_where_stage_2_begins_and_say_on_what(tmp_path, monkeypatch, first):
    figures = []
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure))
    seeds = [[{"epoch": first + n, "stage": 1 + n // 4, "val_accuracy": 80.0 + n} for n in range(6)]] * 2
    plots.plot_curves({"KD": seeds, "Annealing-KD": seeds}, tmp_path, "digits", on_test=True, baseline="KD")
    (figure,) = figures
    for axis in figure.axes:
        assert [1, 2, 3, 4, 5, 6] in [list(line.get_xdata()) for line in axis.lines]
        assert [4.5, 4.5] in [list(line.get_xdata()) for line in axis.lines]
    assert figure.get_supylabel() == "test accuracy (%)"
