"""A label that is no class, met by one of two processes: both know of it, so that both can refuse."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("torchdistill", reason="akd-train runs torchdistill's boxes; pip install 'akd_ext[experiments]'")

from two_processes import in_two_processes

pytestmark = pytest.mark.integration


def evaluate_with_a_wrong_label_in_the_second(rank):
    from akd_ext.train.system.precision import Precision
    from akd_ext.train.tasks.evaluate import evaluate

    cpu, labels = torch.device("cpu"), [[0, 1], [2, 3 * rank]]
    found = evaluate(
        torch.nn.Identity(), [(torch.eye(3)[:2], torch.tensor(y)) for y in labels], cpu, Precision(None, cpu)
    )
    assert found.wrong_label == 3
    labels[1][1] = 1
    found = evaluate(
        torch.nn.Identity(), [(torch.eye(3)[:2], torch.tensor(y)) for y in labels], cpu, Precision(None, cpu)
    )
    assert (found.top1, found.wrong_label) == (75.0, None)


def test_both_know_of_it(tmp_path):
    in_two_processes(__file__, "evaluate_with_a_wrong_label_in_the_second", tmp_path)
