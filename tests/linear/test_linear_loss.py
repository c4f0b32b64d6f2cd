"""The linear losses against the specification through full logits, value and gradients, in float64."""

from __future__ import annotations

import itertools

import pytest
import torch

import akd_ext
from akd_ext import linear
from akd_ext.linear import chunked, gram, heads, products, reference

TOKENS, CLASSES = 13, 31
WAYS = ("gram", "chunked")


@pytest.fixture(autouse=True)
def _several_blocks(monkeypatch):
    """Small blocks, chunks and strips, so that there are several of each."""
    monkeypatch.setattr(heads, "BLOCK", 70)
    monkeypatch.setattr(chunked, "CPU_CHUNK", 5 * 7)
    monkeypatch.setattr(chunked, "MOST_TOKENS", 5)
    monkeypatch.setattr(gram, "STRIP", 4)


def problem(width=6, teacher_width=9, bias=False, classes=CLASSES, dtype=torch.float64):
    def made(*shape):
        return torch.randn(*shape, dtype=torch.float64).to(dtype)

    inputs = {
        "student_hidden": made(TOKENS, width).requires_grad_(),
        "student_weight": (made(classes, width) + 0.3).requires_grad_(),
        "teacher_hidden": made(TOKENS, teacher_width),
        "teacher_weight": made(classes, teacher_width) - 0.2,
    }
    if bias:
        inputs |= {"student_bias": made(classes).requires_grad_(), "teacher_bias": made(classes)}
    return inputs


def results(loss, inputs, **options):
    """Loss and gradients by all inputs that want one, for an upstream gradient of 3."""
    leaves = [x for x in inputs.values() if isinstance(x, torch.Tensor) and x.requires_grad]
    value = loss(**inputs, **options)
    return value.detach(), *torch.autograd.grad(3 * value, leaves)


def assert_same(inputs, implementation, **options):
    expected = results(reference.linear_annealed_mse, inputs, **options)
    found = results(akd_ext.linear_annealed_mse_loss, inputs, implementation=implementation, **options)
    # float64 rounds by 1.1e-16; Gram matrices and moments add a few hundred products, which are up to a hundred, in another
    # order than the logits do, and the three terms cancel: some hundred roundings of 1e-14 are 1e-12, and ten times that is asked.
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("implementation", WAYS)
@pytest.mark.parametrize("widths", [(6, 9), (6, 6)], ids=["plain basis", "difference basis"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("center", [False, True])
def test_equals_the_loss_of_the_logits(implementation, widths, bias, center):
    inputs = problem(*widths, bias)
    for reduction, phi in itertools.product(("mean", "batchmean", "sum"), (0.0, 0.7, torch.tensor(1.0))):
        assert_same(inputs, implementation, phi=phi, reduction=reduction, center=center)


@pytest.mark.parametrize("implementation", WAYS)
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("widths", [(6, 9), (6, 6)])
def test_weights_of_tokens_and_classes_scales_and_divisor(implementation, center, widths):
    inputs = problem(*widths, bias=True)
    assert_same(
        inputs, implementation, phi=0.4, center=center, class_weight=torch.rand(CLASSES, dtype=torch.float64),
        weight=torch.rand(TOKENS, dtype=torch.float64), mask=torch.rand(TOKENS) > 0.3, divisor=7, logit_scale=0.5,
        teacher_logit_scale=1.5,
    )  # fmt: skip
    assert_same(inputs, implementation, phi=0.4, center=center, weight=torch.rand(TOKENS, dtype=torch.float64))


@pytest.mark.parametrize("implementation", WAYS)
def test_one_bias_alone(implementation):
    for widths, name in itertools.product([(6, 9), (6, 6)], ("student_bias", "teacher_bias")):
        inputs = problem(*widths, bias=True)
        del inputs[name]
        assert_same(inputs, implementation, phi=0.4)


@pytest.mark.parametrize("implementation", WAYS)
@pytest.mark.parametrize("center", [False, True])
def test_a_map_between_vocabularies(implementation, center):
    inputs = problem(bias=True)
    inputs["teacher_weight"] = torch.randn(CLASSES + 4, 9, dtype=torch.float64)
    inputs["teacher_bias"] = torch.randn(CLASSES + 4, dtype=torch.float64)
    ids = {"student_ids": torch.randperm(CLASSES)[:20], "teacher_ids": torch.randperm(CLASSES + 4)[:20]}
    weights = torch.rand(20, dtype=torch.float64)
    assert_same(inputs, implementation, phi=0.6, center=center, class_weight=weights, **ids)


@pytest.mark.parametrize("implementation", WAYS)
@pytest.mark.parametrize("center", [False, True])
def test_student_and_teacher_share_a_head(implementation, center):
    inputs = problem(6, 6)
    head = inputs["student_weight"].detach()
    inputs |= {"student_weight": head, "teacher_weight": head}
    assert_same(inputs, implementation, phi=0.6, center=center)


@pytest.mark.parametrize("implementation", WAYS)
def test_masked_tokens_are_never_read(implementation):
    inputs, mask = problem(), torch.arange(TOKENS) % 3 != 0
    with torch.no_grad():
        inputs["student_hidden"][~mask] = float("nan")
    inputs["teacher_hidden"][~mask] = float("nan")
    _, by_hidden, by_weight = results(
        akd_ext.linear_annealed_mse_loss, inputs, phi=0.5, mask=mask, implementation=implementation
    )
    assert by_hidden[~mask].eq(0).all()
    assert by_hidden.isfinite().all()
    assert by_weight.isfinite().all()


@pytest.mark.parametrize("implementation", WAYS)
def test_nothing_counts(implementation):
    inputs = problem()
    value, by_hidden, by_weight = results(
        akd_ext.linear_annealed_mse_loss, inputs, phi=0.5, mask=torch.zeros(TOKENS, dtype=torch.bool),
        implementation=implementation,
    )  # fmt: skip
    assert value.isnan()
    assert by_hidden.eq(0).all()
    assert by_weight.nan_to_num(1).eq(0).all()


@pytest.mark.parametrize("implementation", WAYS)
def test_leading_dimensions(implementation):
    inputs = problem()
    flat = akd_ext.linear_annealed_mse_loss(**inputs, phi=0.5)
    for name in ("student_hidden", "teacher_hidden"):
        inputs[name] = inputs[name].unsqueeze(1)
    torch.testing.assert_close(akd_ext.linear_annealed_mse_loss(**inputs, phi=0.5, implementation=implementation), flat)
    one = {name: x[0, 0] if "hidden" in name else x for name, x in inputs.items()}
    assert akd_ext.linear_annealed_mse_loss(**one, phi=0.5, implementation=implementation).shape == ()


@pytest.mark.parametrize("center", [False, True])
def test_teacher_gram(center):
    for widths in ((6, 9), (6, 6)):
        inputs, weights = problem(*widths, bias=True), torch.rand(CLASSES, dtype=torch.float64)
        made = linear.teacher_gram(
            inputs["teacher_weight"], inputs["teacher_bias"], center=center, class_weight=weights
        )
        expected = results(reference.linear_annealed_mse, inputs, phi=0.6, center=center, class_weight=weights)
        options = {"phi": 0.6, "center": center, "class_weight": weights, "teacher_gram": made}
        found = results(akd_ext.linear_annealed_mse_loss, inputs, implementation="gram", **options)
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)  # as in assert_same


@pytest.mark.parametrize("center", [False, True])
def test_a_shared_head_with_its_gram_matrix_is_not_read_again(center, monkeypatch):
    inputs = problem(6, 6)
    head = inputs["student_weight"]
    inputs["teacher_weight"] = head
    options = {"phi": 0.6, "center": center}
    expected = results(akd_ext.linear_annealed_mse_loss, inputs, implementation="chunked", **options)
    options |= {"implementation": "gram", "teacher_gram": linear.teacher_gram(head, center=center)}
    found = results(akd_ext.linear_annealed_mse_loss, inputs, **options)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)  # as in assert_same

    def never(*args):
        raise AssertionError("a frozen head whose Gram matrix is there was read")

    inputs["student_weight"] = inputs["teacher_weight"] = head.detach()
    options["teacher_gram"] = linear.teacher_gram(inputs["teacher_weight"], center=center)
    monkeypatch.setattr(heads.Heads, "basis_rows", never)
    again = results(akd_ext.linear_annealed_mse_loss, inputs, **options)
    torch.testing.assert_close(again, found[:2], rtol=0, atol=0)


def test_teacher_gram_of_another_call_is_refused():
    inputs = problem()
    made = linear.teacher_gram(inputs["teacher_weight"])
    with pytest.raises(ValueError, match="teacher_gram was made for"):
        akd_ext.linear_annealed_mse_loss(**inputs, phi=0.5, center=True, teacher_gram=made)


def test_frozen_heads_get_no_gradient(monkeypatch):
    inputs = problem()
    inputs["student_weight"] = inputs["student_weight"].detach()

    def never(*args):
        raise AssertionError("the gradient of a frozen head was computed")

    monkeypatch.setattr(gram, "head_gradient", never)
    akd_ext.linear_annealed_mse_loss(**inputs, phi=0.5, implementation="gram").backward()
    assert inputs["student_hidden"].grad is not None


@pytest.mark.parametrize("implementation", WAYS)
def test_gradcheck(implementation):
    inputs = problem(3, 4, bias=True, classes=5)
    leaves = [inputs[name] for name in ("student_hidden", "student_weight", "student_bias")]

    def loss(hidden, weight, bias):
        replaced = {**inputs, "student_hidden": hidden, "student_weight": weight, "student_bias": bias}
        return akd_ext.linear_annealed_mse_loss(**replaced, phi=0.7, center=True, implementation=implementation)

    assert torch.autograd.gradcheck(loss, leaves)


@pytest.mark.parametrize("implementation", WAYS)
def test_backward_twice_gives_the_same(implementation):
    inputs = problem()
    loss = akd_ext.linear_annealed_mse_loss(**inputs, phi=0.5, implementation=implementation)
    leaves = [inputs["student_hidden"], inputs["student_weight"]]
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(2 * loss, leaves), tuple(2 * x for x in first))


@pytest.mark.parametrize("implementation", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(implementation, dtype):
    """Inputs of 16 bits: the error is that of rounding the gradients, not of rounding logits."""
    inputs = problem(6, 9, bias=True, dtype=dtype)
    exact = {name: x.detach().double().requires_grad_(x.requires_grad) for name, x in inputs.items()}
    expected = results(reference.linear_annealed_mse, exact, phi=0.5, center=True)
    found = results(akd_ext.linear_annealed_mse_loss, inputs, phi=0.5, center=True, implementation=implementation)
    assert found[0].dtype is torch.float32
    torch.testing.assert_close(found[0].double(), expected[0], rtol=1e-5, atol=0)
    for mine, other in zip(found[1:], expected[1:], strict=True):
        assert mine.dtype is dtype
        error = (mine.double() - other).norm() / other.norm()
        assert error < {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 5e-4}[dtype]


def test_split_products_are_nearly_those_of_float32(monkeypatch):
    """What a GPU does with bfloat16 inputs, here with the same arithmetic."""
    inputs = problem(6, 9, dtype=torch.bfloat16)
    exact = {name: x.detach().double().requires_grad_(x.requires_grad) for name, x in inputs.items()}
    expected = results(reference.linear_annealed_mse, exact, phi=0.5, center=True)
    monkeypatch.setattr(heads, "splits", lambda *args: True)
    inputs["student_weight"] = inputs["student_weight"].detach().float().requires_grad_()
    found = results(akd_ext.linear_annealed_mse_loss, inputs, phi=0.5, center=True, implementation="gram")
    torch.testing.assert_close(found[0].double(), expected[0], rtol=2e-4, atol=0)
    assert (found[2] - expected[2]).norm() / expected[2].norm() < 2e-4


def test_tf32_is_noticed_however_it_was_set(monkeypatch):
    """transformers' ``tf32=True`` sets it in the new way, after which torch refuses to tell it in the old one."""
    gpu, full = torch.device("cuda"), (torch.float32, torch.float32)
    assert not products.splits(gpu, full) and products.splits(gpu, (torch.float32, torch.bfloat16))
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends, "fp32_precision", "tf32")
        assert products.splits(gpu, full) and not products.splits(torch.device("cpu"), full)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert products.splits(gpu, full)
    finally:
        torch.set_float32_matmul_precision(before)
    assert not products.splits(gpu, full)


def test_autocast_does_not_round_the_products():
    inputs = problem(6, 9, dtype=torch.float32)
    expected = results(akd_ext.linear_annealed_mse_loss, inputs, phi=0.5, implementation="gram")
    for way in WAYS:
        with torch.autocast("cpu", torch.bfloat16):
            found = results(akd_ext.linear_annealed_mse_loss, inputs, phi=0.5, implementation=way)
        torch.testing.assert_close(found, expected)


def test_close_to_the_teacher_nothing_is_lost():
    """The difference basis, in float32, for a student at a distance of 1e-3: the plain basis is wrong by 1e-2 here."""
    inputs = problem(6, 6, dtype=torch.float32)
    with torch.no_grad():
        for mine, other in (("student_hidden", "teacher_hidden"), ("student_weight", "teacher_weight")):
            inputs[mine].copy_(inputs[other] + 1e-3 * torch.randn_like(inputs[other]))
    exact = {name: x.detach().double().requires_grad_(x.requires_grad) for name, x in inputs.items()}
    expected = results(reference.linear_annealed_mse, exact, phi=1.0, center=True)
    found = results(akd_ext.linear_annealed_mse_loss, inputs, phi=1.0, center=True, implementation="gram")
    for mine, other in zip(found, expected, strict=True):
        assert (mine - other).norm() / other.norm() < 2e-4


def test_few_tokens_do_not_make_large_copies_of_the_heads(monkeypatch):
    monkeypatch.setattr(chunked, "CHUNK", 40)
    copied, own = [], heads.Heads.basis_rows
    monkeypatch.setattr(
        heads.Heads, "basis_rows", lambda self, *block: copied.append(block[1] - block[0]) or own(self, *block)
    )
    inputs = problem(6, 9)
    inputs |= {name: inputs[name][:1] for name in ("student_hidden", "teacher_hidden")}
    assert_same(inputs, "chunked", phi=0.5, reduction="mean")
    assert max(copied) * 9 <= 40


def test_the_same_bits_every_time():
    inputs = problem(6, 9, dtype=torch.float32)
    for way in WAYS:
        first, second = (results(akd_ext.linear_annealed_mse_loss, inputs, phi=0.5, implementation=way) for _ in "12")
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
