"""Heads cut by rows over two processes equal one process."""

from __future__ import annotations

import json

import pytest
import torch
from subject_process import run
from two_processes import in_two_processes

import akd_ext
from akd_ext.linear import reference

TOKENS, CLASSES, PHI = 10, 13, 0.6  # classes cannot be halved


def data(teacher_width):
    def made(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    generator = torch.Generator().manual_seed(3)
    return made(TOKENS, 4), made(CLASSES, 4), made(CLASSES), made(TOKENS, teacher_width), made(CLASSES, teacher_width)


def cut(tensor):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    return distribute_tensor(tensor, init_device_mesh("cpu", (2,)), [Shard(0)])


def one_step(rank, teacher_width, center, weighted, same_tokens, by_module):
    from torch import distributed

    hidden, weight, bias, teacher_hidden, teacher_weight = data(teacher_width)
    class_weight = torch.linspace(0.1, 2, CLASSES, dtype=torch.float64) if weighted else None
    options = {"center": center, "class_weight": class_weight}
    whole = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    expected = reference.linear_annealed_mse(
        whole[0], whole[1], teacher_hidden, teacher_weight, PHI, student_bias=whole[2], **options
    )
    expected.backward()
    mine = slice(0, TOKENS) if same_tokens else slice(rank * TOKENS // 2, (rank + 1) * TOKENS // 2)
    h = hidden[mine].clone().requires_grad_()
    w, b = cut(weight).requires_grad_(), cut(bias).requires_grad_()
    if by_module:
        loss = akd_ext.LinearAnnealingKDLoss(
            10, lambda t, tau: PHI if t > 1 else 1.0, teacher_weight=cut(teacher_weight), **options
        )
        loss.set_temperature(5)
        loss.phi = loss.phi.double().fill_(PHI)
        with loss.accumulate(w, len(h), student_bias=b):
            found = loss(h, w, teacher_hidden[mine], student_bias=b)
            found.backward()
    else:
        found = akd_ext.linear_annealed_mse_loss(
            h, w, teacher_hidden[mine], cut(teacher_weight), PHI, student_bias=b, **options
        )
        found.backward()
    total = found.detach().clone()
    distributed.all_reduce(total)
    torch.testing.assert_close(total / 2, expected.detach())  # the mean over processes, as FSDP means it
    share = 1 if same_tokens else 2
    torch.testing.assert_close(h.grad, share * whole[0].grad[mine])
    for part, one in ((w, whole[1]), (b, whole[2])):
        assert part.grad.placements == part.placements
        torch.testing.assert_close(part.grad.full_tensor(), one.grad)


def every_case(rank):
    for teacher_width in (4, 6):
        for center, weighted in ((False, False), (True, False), (True, True)):
            for same_tokens in (False, True):
                for by_module in (False, True):
                    one_step(rank, teacher_width, center, weighted, same_tokens, by_module)
    refused()


def refused():
    hidden, weight, _, teacher_hidden, teacher_weight = data(6)
    with pytest.raises(ValueError, match="'chunked' for heads cut by rows"):
        akd_ext.linear_annealed_mse_loss(
            hidden, cut(weight), teacher_hidden, cut(teacher_weight), PHI, implementation="chunked"
        )
    with pytest.raises(TypeError, match="teacher_weight is a DTensor beside a plain"):
        akd_ext.linear_annealed_mse_loss(hidden, weight, teacher_hidden, cut(teacher_weight), PHI)


def data_parallel(rank):
    """Whole heads, other tokens in either process, two micro-batches: DistributedDataParallel's mean of gradients."""
    from torch import distributed

    hidden, weight, bias, teacher_hidden, teacher_weight = data(6)
    w, b, whole_w, whole_b = (x.clone().requires_grad_() for x in (weight, bias, weight, bias))
    reference.linear_annealed_mse(
        hidden, whole_w, teacher_hidden, teacher_weight, PHI, student_bias=whole_b, center=True
    ).backward()
    mine = slice(rank * TOKENS // 2, (rank + 1) * TOKENS // 2)
    loss = akd_ext.LinearAnnealingKDLoss(
        10, lambda t, tau: PHI if t > 1 else 1.0, teacher_weight=teacher_weight, center=True
    )  # "auto": logits would be cheaper here, but there are moments to exchange
    loss.set_temperature(5)
    loss.phi = loss.phi.double().fill_(PHI)
    own, theirs = hidden[mine], teacher_hidden[mine]
    with loss.accumulate(w, len(own), student_bias=b, group=distributed.group.WORLD):
        for part in (slice(0, 2), slice(2, None)):
            loss(own[part], w, theirs[part], student_bias=b).backward()
    torch.testing.assert_close((w.grad, b.grad), (whole_w.grad, whole_b.grad))
    without_a_token(rank, loss, (hidden, w, b, teacher_hidden))


def without_a_token(rank, loss, inputs):
    """The other process waits for the moments of this one."""
    from torch import distributed

    hidden, w, b, teacher_hidden = inputs
    w.grad = b.grad = None
    with loss.accumulate(w, TOKENS, student_bias=b, group=distributed.group.WORLD):
        if rank == 0:
            loss(hidden, w, teacher_hidden, student_bias=b).backward()
    found = w.grad, b.grad
    alone = torch.autograd.grad(loss(hidden, w, teacher_hidden, student_bias=b), (w, b))
    torch.testing.assert_close(found, tuple(x / 2 for x in alone))


@pytest.mark.integration
def test_the_group_of_accumulate_takes_the_mean(tmp_path):
    in_two_processes(__file__, "data_parallel", tmp_path)


def kl_of_cut_heads(rank, same_tokens, direction):
    hidden, weight, bias, teacher_hidden, teacher_weight = data(6)
    labels = torch.arange(TOKENS)
    options = {"teacher_scale": 0.7, "label_weight": 0.3, "direction": direction}
    whole = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    expected = reference.scheduled_kl(
        whole[0], whole[1], teacher_hidden, teacher_weight, student_bias=whole[2], labels=labels, **options
    )
    expected.backward()
    mine = slice(0, TOKENS) if same_tokens else slice(rank * TOKENS // 2, (rank + 1) * TOKENS // 2)
    h, w, b = hidden[mine].clone().requires_grad_(), cut(weight).requires_grad_(), cut(bias).requires_grad_()
    found = akd_ext.linear_scheduled_kl_loss(
        h, w, teacher_hidden[mine], cut(teacher_weight), student_bias=b, labels=labels[mine], **options
    )
    found.backward()
    assert_mean_of_both(found, expected, (h, w, b), whole, mine)


def assert_mean_of_both(found, expected, leaves, whole, mine):
    from torch import distributed

    total = found.detach().clone()
    distributed.all_reduce(total)
    torch.testing.assert_close(total / 2, expected.detach())
    torch.testing.assert_close(leaves[0].grad, (TOKENS // len(leaves[0])) * whole[0].grad[mine])
    for part, one in zip(leaves[1:], whole[1:], strict=True):
        assert part.grad.placements == part.placements
        torch.testing.assert_close(part.grad.full_tensor(), one.grad)


def topk_of_cut_heads(rank, same_tokens, given):
    hidden, weight, bias, teacher_hidden, teacher_weight = data(6)
    whole = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    options = {"teacher_hidden": teacher_hidden, "teacher_weight": teacher_weight, "anchor": 0.5}
    top = reference.logits(teacher_hidden, teacher_weight).topk(3)
    if given:
        options |= {"teacher_values": top.values, "teacher_indices": top.indices}
        options["teacher_log_normalizer"] = reference.logits(teacher_hidden, teacher_weight).logsumexp(-1)
    else:
        options["k"] = 3
    expected = akd_ext.linear_topk_kl_loss(*whole[:2], student_bias=whole[2], **options)
    expected.backward()
    mine = slice(0, TOKENS) if same_tokens else slice(rank * TOKENS // 2, (rank + 1) * TOKENS // 2)
    h, w, b = hidden[mine].clone().requires_grad_(), cut(weight).requires_grad_(), cut(bias).requires_grad_()
    parts = {name: x[mine] if isinstance(x, torch.Tensor) else x for name, x in options.items()}
    parts["teacher_weight"] = cut(teacher_weight)
    found = akd_ext.linear_topk_kl_loss(h, w, student_bias=b, **parts)
    found.backward()
    assert_mean_of_both(found, expected, (h, w, b), whole, mine)


def every_kl(rank):
    for same_tokens in (False, True):
        for direction in ("forward", "reverse"):
            kl_of_cut_heads(rank, same_tokens, direction)
        for given in (False, True):
            topk_of_cut_heads(rank, same_tokens, given)


@pytest.mark.integration
def test_the_kl_of_heads_that_are_cut(tmp_path):
    in_two_processes(__file__, "every_kl", tmp_path)


@pytest.mark.integration
def test_two_processes_equal_one(tmp_path):
    in_two_processes(__file__, "every_case", tmp_path)


def test_importing_the_room_brings_in_nothing_heavy():
    code = (
        "import json, sys, akd_ext.linear\n"
        "print(json.dumps([m for m in ('torch._dynamo', 'torch._inductor', 'torch.distributed.tensor', 'numpy')"
        " if m in sys.modules]))"
    )
    bare = json.loads(run(["-c", code.replace(", akd_ext.linear", ", torch")]).splitlines()[-1])
    assert json.loads(run(["-c", code]).splitlines()[-1]) == bare
