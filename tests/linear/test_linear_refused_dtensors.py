"""Heads cut over processes that the linear losses do not take are refused in one sentence. One process is enough for that."""

from __future__ import annotations

import pytest
import torch
from torch import distributed

from akd_ext import linear_annealed_mse_loss


@pytest.fixture
def placed():
    """Makes a DTensor on a mesh of one process."""
    from torch.distributed.tensor import distribute_tensor

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    mesh = distributed.init_device_mesh("cpu", (1,))
    yield lambda tensor, *placements: distribute_tensor(tensor, mesh, placements)
    distributed.destroy_process_group()


def loss(student, teacher, **more):
    return linear_annealed_mse_loss(torch.ones(2, 3), student, torch.ones(2, 3), teacher, 0.5, **more)


def test_refused(placed):
    from torch.distributed.tensor import Replicate, Shard

    head, cut = torch.ones(5, 3), placed(torch.ones(5, 3), Shard(0))
    assert torch.isfinite(loss(cut, cut))
    with pytest.raises(TypeError, match="teacher_weight is a DTensor beside a plain student_weight"):
        loss(head, cut)
    ids = torch.arange(5)
    with pytest.raises(ValueError, match="student_ids are given for heads that are DTensors"):
        loss(cut, cut, student_ids=ids, teacher_ids=ids)
    with pytest.raises(TypeError, match="student_bias is a plain tensor beside a head that is a DTensor"):
        loss(cut, cut, student_bias=torch.ones(5))
    with pytest.raises(ValueError, match="teacher_weight is placed .*Replicate.*; accepted: .*cut by rows"):
        loss(cut, placed(head, Replicate()))
