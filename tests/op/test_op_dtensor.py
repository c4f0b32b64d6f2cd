"""DTensor logits: the loss and the gradients are those of the whole tensors, however they are spread."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from subject_process import run
from two_processes import in_two_processes

import akd_ext
from akd_ext import reference

ROWS, CLASSES = 5, 3  # neither can be halved


def spread():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    return mesh, (Shard(0), Shard(1), Replicate()), lambda x, place: distribute_tensor(x, mesh, [place])


def data(dtype=torch.float32):
    student, teacher = torch.randn(2, ROWS, CLASSES, generator=torch.Generator().manual_seed(1)).to(dtype)
    return student, teacher, torch.tensor([True, False, True, True, False])


def compare(spreads, reduction, mask, dtype):
    """Student and teacher spread as ``spreads`` against whole ones: the loss and both gradients."""
    _, places, put = spread()
    student, teacher, kept = data(dtype)
    mask = kept if mask else None
    whole = [student.requires_grad_(), teacher.requires_grad_(spreads[0] == spreads[1])]
    parts = [put(x.detach(), place).requires_grad_(x.requires_grad) for x, place in zip(whole, spreads, strict=True)]
    expected = akd_ext.annealed_mse_loss(*whole, 0.3, reduction=reduction, mask=mask)
    placed = None if mask is None else put(mask, places[-1])
    loss = akd_ext.annealed_mse_loss(*parts, torch.tensor(0.3), reduction=reduction, mask=placed)
    expected.sum().backward()
    loss.sum().backward()
    torch.testing.assert_close(loss.full_tensor(), expected)
    if reduction != "none":
        assert loss.item() == loss.to_local().item()  # the same number in either process
    for part, one in zip(parts, whole, strict=True):
        if one.requires_grad:
            torch.testing.assert_close(part.grad.full_tensor(), one.grad)
            if torch.__version__ >= "2.11":  # torch 2.10 may give a cut tensor's gradient whole; its values are right
                assert part.grad.placements == part.placements


def every_placement(rank):
    _, places, _ = spread()
    for place, reduction, mask in itertools.product(places, reference.REDUCTIONS, (False, True)):
        compare((place, place), reduction, mask, torch.float32)
    for spreads in itertools.permutations(places, 2):
        compare(spreads, "mean", False, torch.float32)
    for place in places:
        compare((place, place), "batchmean", True, torch.float16)
    other_cases()
    flattened_sentences()


def other_cases():
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    mesh, places, put = spread()
    student, teacher, kept = data()
    halves = DTensor.from_local(student / 2, mesh, [Partial()])  # the two of them add up to the student's logits
    loss = akd_ext.annealed_mse_loss(halves, put(teacher, Shard(1)), 0.5)
    torch.testing.assert_close(loss.full_tensor(), akd_ext.annealed_mse_loss(student, teacher, 0.5))

    one_row = put(student[:1], Shard(0))  # the second process has none
    loss = akd_ext.annealed_mse_loss(one_row.requires_grad_(), put(teacher[:1], Shard(0)), 0.5)
    torch.testing.assert_close(loss.full_tensor(), akd_ext.annealed_mse_loss(student[:1], teacher[:1], 0.5))
    loss.backward()
    nothing = put(torch.zeros(ROWS, dtype=torch.bool), Replicate())
    rows = put(student, Shard(0)).requires_grad_()
    loss = akd_ext.annealed_mse_loss(rows, put(teacher, Shard(0)), 0.5, mask=nothing)
    loss.backward()
    assert loss.isnan().item() and not rows.grad.full_tensor().any()

    for place in places:  # the module, with its buffer and with the other loss
        for kind in ("mse", "kl"):
            criterion = akd_ext.AnnealingKDLoss(4, loss=kind)
            got = criterion(put(student, place), put(teacher, place)).full_tensor()
            torch.testing.assert_close(got, criterion(student, teacher))

    for bad, argument in (
        ((put(student, Shard(0)), teacher), "teacher"),
        ((student, put(teacher, Shard(0))), "student"),
    ):
        with pytest.raises(TypeError, match=f"^{argument} is a plain Tensor.*DTensor.from_local"):
            akd_ext.annealed_mse_loss(*bad, 0.5)
    with pytest.raises(TypeError, match="^mask is a plain Tensor"):
        akd_ext.annealed_mse_loss(put(student, Shard(0)), put(teacher, Shard(0)), 0.5, mask=kept)
    from torch.distributed.device_mesh import init_device_mesh

    other = init_device_mesh("cpu", (2, 1))
    elsewhere = DTensor.from_local(teacher, other, [Replicate(), Replicate()])
    with pytest.raises(ValueError, match="^teacher is on .* the student's mesh"):
        akd_ext.annealed_mse_loss(put(student, Replicate()), elsewhere, 0.5)


def flattened_sentences():
    from torch.distributed.tensor import Replicate, Shard

    _, _, put = spread()
    student, teacher = torch.randn(2, 2, 4, CLASSES, generator=torch.Generator().manual_seed(2))
    kept = torch.tensor([True, False, True, True]).repeat(2)
    try:
        # The halves of each sentence, now rows in turns: no Shard to PyTorch any more, but a _StridedShard.
        flat = [put(x, Shard(1)).view(8, CLASSES) for x in (student, teacher)]
    except RuntimeError:
        return  # an older torch wants to gather them first
    for mask in (None, kept):
        loss = akd_ext.annealed_mse_loss(*flat, 0.5, mask=None if mask is None else put(mask, Replicate()))
        whole = akd_ext.annealed_mse_loss(student.view(8, CLASSES), teacher.view(8, CLASSES), 0.5, mask=mask)
        torch.testing.assert_close(loss.full_tensor(), whole)


@pytest.mark.integration
def test_two_processes(tmp_path):
    in_two_processes(__file__, "every_placement", tmp_path)


@pytest.mark.integration
def test_who_has_no_dtensor_does_not_import_them():
    code = (
        "import json, sys, torch, akd_ext\n"
        "student = torch.nn.Parameter(torch.ones(2, 3))\n"
        "akd_ext.annealed_mse_loss(student, torch.zeros(2, 3), 0.5).backward()\n"
        "print(json.dumps('torch.distributed.tensor' in sys.modules))\n"
    )
    assert json.loads(run(["-W", "ignore", "-c", code])) is False
