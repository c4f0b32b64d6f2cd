"""``class_dim``: the same loss wherever the classes lie, and no copy where it does not matter."""

import pytest
import torch
from op_oracle import DTYPES, REDUCTIONS, name

from akd_ext import AnnealingKDLoss, annealed_mse_loss


def logits(device="cpu", shape=(2, 3, 4, 5)):
    return torch.randn(2, *shape, device=device).unbind()


@pytest.mark.parametrize("options", [(), ("mask",), ("weight",), ("mask", "weight", "divisor")], ids=", ".join)
@pytest.mark.parametrize("kind", ["mse", "kl"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("class_dim", [0, 1, -3, 2, 3])
def test_is_that_of_the_permuted_logits(class_dim, reduction, kind, options, device):
    student, teacher = logits(device)
    rows = student.select(class_dim, 0)
    given = {"mask": rows > -0.5, "weight": rows.exp(), "divisor": 7}
    given = {key: given[key] for key in options}
    leaf = student.clone().requires_grad_()
    loss = AnnealingKDLoss(2, loss=kind, reduction=reduction, class_dim=class_dim).to(device)(leaf, teacher, **given)
    loss.sum().backward()
    other = student.movedim(class_dim, -1).contiguous().requires_grad_()
    last = AnnealingKDLoss(2, loss=kind, reduction=reduction).to(device)
    expected = last(other, teacher.movedim(class_dim, -1), **given)
    expected.sum().backward()
    torch.testing.assert_close(loss, expected.movedim(-1, class_dim) if reduction == "none" else expected)
    torch.testing.assert_close(leaf.grad, other.grad.movedim(-1, class_dim))


def test_a_mask_over_pixels_where_every_length_is_the_same(device):
    """[B, C, H, W] with C = H = W: the mask's shape cannot tell, the argument must."""
    student, teacher = logits(device, (2, 4, 4, 4))
    mask = torch.rand(2, 4, 4, device=device) < 0.5
    got = annealed_mse_loss(student, teacher, 0.5, reduction="batchmean", mask=mask, class_dim=1)
    terms = (student - 0.5 * teacher).square().sum(1)
    torch.testing.assert_close(got, terms[mask].mean())


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("reduction", ["mean", "sum", "batchmean"])
def test_nothing_is_copied_where_the_classes_do_not_matter(reduction, dtype):
    student, teacher = (x.to(dtype).requires_grad_() for x in logits())
    assert not copies(lambda: annealed_mse_loss(student, teacher.detach(), 0.5, reduction=reduction, class_dim=1))


def copies(function):
    """Of tensors that are more than a number."""
    with torch.profiler.profile(record_shapes=True) as profile:
        function()
    names = ("aten::clone", "aten::copy_", "aten::contiguous")
    return [event.name for event in profile.events() if event.name in names and event.input_shapes[0]]


SLICES = {
    "without the last token": lambda x: x[:, :-1],
    "without padded classes": lambda x: x[..., :-3],
    "both": lambda x: x[:, 1:, 2:-3],
    "every second token": lambda x: x[:, ::2],
    "one row for all": lambda x: x[:1].expand(x.shape),
    "one token": lambda x: x[:, 3],
}


@pytest.mark.parametrize("slicing", SLICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_slices_are_read_where_they_lie(slicing, dtype, device):
    """And have the bits of the copy: blocks of 16,384 elements end in the middle of rows here."""
    wide = [x.to(dtype) for x in logits(device, (3, 7, 3001))]
    student, teacher = (SLICES[slicing](x) for x in wide)
    results = []
    for s, t in ((student, teacher), (student.contiguous(), teacher), (student.contiguous(), teacher.contiguous())):
        for weight in (None, torch.arange(s[..., 0].numel(), device=device).reshape(s.shape[:-1]).to(torch.float32)):
            leaf = s.detach().requires_grad_()
            loss = annealed_mse_loss(leaf, t, 0.3, weight=weight)
            results.append((loss.detach(), *torch.autograd.grad(loss, leaf)))
    for other in results[2::2]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    for other in results[3::2]:
        assert all(torch.equal(a, b) for a, b in zip(results[1], other, strict=True))


@pytest.mark.parametrize("slicing", SLICES)
def test_slices_are_not_copied(slicing):
    from akd_ext import backend

    if backend("cpu") != "cpu":
        pytest.skip("no C++ kernel here: plain PyTorch reads any strides")
    student, teacher = (SLICES[slicing](x) for x in logits(shape=(3, 7, 301)))
    for s in (student, student.detach().requires_grad_()):
        assert not copies(lambda s=s: annealed_mse_loss(s, teacher, 0.5))
    assert copies(lambda: annealed_mse_loss(student.transpose(-1, 0), teacher.transpose(-1, 0), 0.5))


@pytest.mark.parametrize(("value", "error"), [(4, ValueError), (-5, ValueError), (1.0, TypeError), (True, TypeError)])
def test_bad_values(value, error):
    for function in (
        lambda s, t: annealed_mse_loss(s, t, 0.5, class_dim=value),
        lambda s, t: AnnealingKDLoss(2, loss="kl", class_dim=value)(s, t),
    ):
        with pytest.raises(error, match="class_dim"):
            function(*logits())


def test_the_message_about_a_mask_names_the_other_dimensions():
    student, teacher = logits()
    with pytest.raises(ValueError, match=r"mask has shape \(2, 3, 4\); accepted: \(2, 4, 5\)"):
        annealed_mse_loss(student, teacher, 0.5, mask=torch.ones(2, 3, 4, dtype=torch.bool), class_dim=1)
