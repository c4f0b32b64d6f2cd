"""A label that is no class, met by one of two processes: both end, with the same words."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("torchdistill", reason="akd-train runs torchdistill's boxes; pip install 'akd_ext[experiments]'")

from two_processes import in_two_processes

pytestmark = pytest.mark.integration


def evaluate_with_a_wrong_label_in_the_second(rank):
    from akd_ext.train.system.errors import ConfigError
    from akd_ext.train.system.precision import Precision
    from akd_ext.train.tasks.evaluate import evaluate

    cpu, labels = torch.device("cpu"), [[0, 1], [2, 3 * rank]]
    with pytest.raises(ConfigError, match="the data set has the label 3; accepted: 0 to 2"):
        evaluate(torch.nn.Identity(), [(torch.eye(3)[:2], torch.tensor(y)) for y in labels], cpu, Precision(None, cpu))
    labels[1][1] = 1
    found = evaluate(
        torch.nn.Identity(), [(torch.eye(3)[:2], torch.tensor(y)) for y in labels], cpu, Precision(None, cpu)
    )
    assert found.top1 == 75.0


def test_both_refuse(tmp_path):
    in_two_processes(__file__, "evaluate_with_a_wrong_label_in_the_second", tmp_path)
