"""KL over all logits against the specification through full logits, value and gradients, in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import akd_ext
from akd_ext.linear import chunked, reference

TOKENS, CLASSES, WIDTH = 11, 29, 6
LEAVES = ("student_hidden", "student_weight", "student_bias")


@pytest.fixture(autouse=True)
def _several_chunks(monkeypatch):
    monkeypatch.setattr(chunked, "SOFTMAX_CHUNK", 4 * CLASSES)
    monkeypatch.setattr(chunked, "FEWEST_TOKENS", 1)


def problem(bias=True, tokens=TOKENS, classes=CLASSES, dtype=torch.float64):
    def made(*shape):
        return torch.randn(*shape, dtype=torch.float64).to(dtype)

    inputs = {
        "student_hidden": made(tokens, WIDTH).requires_grad_(), "student_weight": made(classes, WIDTH).requires_grad_(),
        "teacher_hidden": made(tokens, 8), "teacher_weight": made(classes, 8),
    }  # fmt: skip
    if bias:
        inputs |= {"student_bias": made(classes).requires_grad_(), "teacher_bias": made(classes)}
    labels = torch.randint(classes, (tokens,))
    labels[2 % tokens] = -100
    return inputs, labels


def results(loss, inputs, **options):
    """Loss and gradients by all inputs that want one, for an upstream gradient of 3."""
    value = loss(**inputs, **options)
    leaves = [inputs[name] for name in LEAVES if name in inputs and inputs[name].requires_grad]
    return value.detach(), *torch.autograd.grad(3 * value, leaves)


def assert_same(inputs, **options):
    expected = results(reference.scheduled_kl, inputs, **options)
    found = results(akd_ext.linear_scheduled_kl_loss, inputs, **options)
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other)


def number(value):
    return torch.tensor(value, dtype=torch.float64)


TARGETS = {
    "teacher": {}, "phi": {"teacher_scale": 0.3}, "TAID": {"teacher_scale": 0.3, "student_scale": 0.7},
    "BAM": {"label_weight": 0.4}, "all": {"teacher_scale": 0.8, "student_scale": 0.5, "label_weight": 0.6},
}  # fmt: skip


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("scales", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("as_tensors", [False, True])
def test_equals_the_kl_of_the_logits(scales, direction, as_tensors):
    for bias, temperature in itertools.product((False, True), (1.0, 2.5)):
        inputs, labels = problem(bias)
        options = {**scales, "temperature": temperature}
        if as_tensors:
            options = {name: number(value) for name, value in options.items()}
        assert_same(inputs, labels=labels, direction=direction, **options)


@pytest.mark.parametrize("reduction", ["mean", "batchmean", "sum"])
def test_how_tokens_count(reduction):
    inputs, labels = problem()
    weight = torch.rand(TOKENS, dtype=torch.float64)
    weight[5] = 0.0
    mask = torch.arange(TOKENS) % 3 != 0
    scales = {"label_weight": 0.4, "logit_scale": 0.5, "teacher_logit_scale": 1.5, "reduction": reduction}
    for counting in ({}, {"mask": mask}, {"weight": weight}, {"mask": mask, "weight": weight}, {"divisor": 7}):
        assert_same(inputs, labels=labels, **counting, **scales)
        assert_same(inputs, **counting, reduction=reduction)
    labels[2] = 0
    labels[3] = 1
    assert_same(inputs, labels=labels, ignore_index=1, label_weight=0.4)


def test_leading_dimensions():
    inputs, labels = problem()
    options = {"labels": labels, "label_weight": 0.4, "weight": torch.rand(TOKENS)}
    flat = akd_ext.linear_scheduled_kl_loss(**inputs, **options)
    inputs = {name: x.unsqueeze(1) if "hidden" in name else x for name, x in inputs.items()}
    options = {name: x.unsqueeze(1) if isinstance(x, torch.Tensor) else x for name, x in options.items()}
    torch.testing.assert_close(akd_ext.linear_scheduled_kl_loss(**inputs, **options), flat)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("t", [1.0, 0.3, number(0.6)])
def test_taid_is_that_of_the_top_k_with_all_classes(temperature, t):
    inputs, _ = problem()
    mask = torch.arange(TOKENS) % 3 != 0
    options = {"temperature": temperature, "mask": mask}
    expected = results(akd_ext.linear_topk_kl_loss, inputs, k=CLASSES, t=t, **options)
    found = results(akd_ext.linear_scheduled_kl_loss, inputs, teacher_scale=t, student_scale=1 - t, **options)
    torch.testing.assert_close(found, expected)


def test_phi_alone_is_the_papers_ablation():
    inputs, _ = problem()
    student = reference.logits(*(inputs[name] for name in LEAVES))
    teacher = reference.logits(inputs["teacher_hidden"], inputs["teacher_weight"], inputs["teacher_bias"])
    for reduction in ("batchmean", "mean"):
        expected = akd_ext.reference.annealed_kl(student, teacher, 0.4, reduction=reduction)
        found = akd_ext.linear_scheduled_kl_loss(**inputs, teacher_scale=0.4, reduction=reduction)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("with_teacher", [False, True])
def test_labels_alone_are_cross_entropy(with_teacher):
    inputs, labels = problem()
    student = [inputs[name] for name in LEAVES]
    expected = F.cross_entropy(reference.logits(*student), labels)
    if with_teacher:  # which is not read
        inputs["teacher_hidden"].fill_(math.nan)
    else:
        inputs = {name: inputs[name] for name in LEAVES}
    found = akd_ext.linear_scheduled_kl_loss(**inputs, labels=labels, label_weight=1.0)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, student), torch.autograd.grad(expected, student))


def test_the_ends_of_a_schedule_of_labels():
    inputs, labels = problem()
    for end in (0.0, 1.0):
        expected = results(akd_ext.linear_scheduled_kl_loss, inputs, labels=labels, label_weight=end)
        found = results(akd_ext.linear_scheduled_kl_loss, inputs, labels=labels, label_weight=number(end))
        torch.testing.assert_close(found, expected)


def test_between_them_the_gradient_is_that_of_both_losses():
    """BAM's teacher annealing is written as a sum of two cross-entropies."""
    inputs, labels = problem()
    soft = results(akd_ext.linear_scheduled_kl_loss, inputs, labels=labels)
    hard = results(akd_ext.linear_scheduled_kl_loss, inputs, labels=labels, label_weight=1)
    mixed = results(akd_ext.linear_scheduled_kl_loss, inputs, labels=labels, label_weight=0.3)
    torch.testing.assert_close(mixed[1:], tuple(0.7 * s + 0.3 * h for s, h in zip(soft[1:], hard[1:], strict=True)))


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_a_student_that_is_its_target_has_no_loss(direction):
    inputs, _ = problem()
    hidden, weight, bias = (inputs[name].detach() for name in LEAVES)
    inputs |= {"teacher_hidden": hidden, "teacher_weight": weight, "teacher_bias": bias}
    for found in results(akd_ext.linear_scheduled_kl_loss, inputs, direction=direction, temperature=2.0):
        # Some hundred terms of about 1, each with a few roundings of 1e-16.
        torch.testing.assert_close(found, torch.zeros_like(found), atol=1e-13, rtol=0)


@pytest.mark.parametrize("how", ["mask", "weight", "labels"])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_tokens_that_do_not_count_are_never_read(how, direction):
    inputs, labels = problem()
    kept = torch.arange(TOKENS) % 3 != 0
    labels = labels.where(kept, -100) if how == "labels" else torch.zeros_like(labels)
    with torch.no_grad():
        inputs["student_hidden"][~kept] = math.nan
    inputs["teacher_hidden"][~kept] = math.nan
    counting = {"labels": labels, how: {"mask": kept, "weight": kept.double(), "labels": labels}[how]}
    found = results(akd_ext.linear_scheduled_kl_loss, inputs, label_weight=0.3, direction=direction, **counting)
    assert all(x.isfinite().all() for x in found)
    assert found[1][~kept].eq(0).all()


@pytest.mark.parametrize("tokens", [0, TOKENS])
@pytest.mark.parametrize("taught", [False, True])
def test_where_no_token_counts_every_gradient_is_0(tokens, taught):
    inputs, labels = problem()
    inputs = {name: x.detach()[:tokens].requires_grad_() if name == LEAVES[0] else x for name, x in inputs.items()}
    inputs["teacher_hidden"] = inputs["teacher_hidden"][:tokens]
    if not taught:
        inputs = {name: inputs[name] for name in LEAVES}
    value, *gradients = results(
        akd_ext.linear_scheduled_kl_loss, inputs, labels=torch.full_like(labels[:tokens], -100),
        label_weight=0.3 if taught else 1,
    )  # fmt: skip
    assert value.isnan()
    assert not any(x.any() for x in gradients)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("scales", [*TARGETS.values(), {"teacher_scale": 0.0, "student_scale": number(0.0)}])
def test_impossible_classes_are_as_if_they_were_not_there(direction, scales):
    """The rows that pad a vocabulary have a bias of -inf in many models."""
    inputs, labels = problem()
    fewer = {name: x if "hidden" in name else x[:-3] for name, x in inputs.items()}
    labels = labels.clamp(max=CLASSES - 4)
    options = {"labels": labels, "direction": direction, **scales}
    expected = akd_ext.linear_scheduled_kl_loss(**fewer, **options)
    with torch.no_grad():
        for name in ("student_bias", "teacher_bias"):
            inputs[name][-3:] = -math.inf
    found = akd_ext.linear_scheduled_kl_loss(**inputs, **options)
    torch.testing.assert_close(found, expected)
    leaves = [inputs[name] for name in LEAVES]
    torch.testing.assert_close(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves))


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_large_logits(direction):
    inputs, labels = problem(dtype=torch.float32)
    scaled = {"logit_scale": 1e4, "teacher_logit_scale": 1e4, "labels": labels, "direction": direction}
    for scales in TARGETS.values():
        assert all(x.isfinite().all() for x in results(akd_ext.linear_scheduled_kl_loss, inputs, **scaled, **scales))


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_gradcheck_and_no_second_derivative(direction):
    inputs, labels = problem(tokens=4, classes=5)

    def loss(*leaves):  # without the student's own part of the target, which is detached
        options = {"teacher_scale": 0.7, "label_weight": 0.3, "temperature": 1.5, "direction": direction}
        replaced = {**inputs, **dict(zip(LEAVES, leaves, strict=True))}
        return akd_ext.linear_scheduled_kl_loss(**replaced, labels=labels, **options)

    leaves = [inputs[name] for name in LEAVES]
    assert torch.autograd.gradcheck(loss, leaves)
    with pytest.raises(RuntimeError, match="a linear loss, which has no second derivative; accepted"):
        torch.autograd.grad(loss(*leaves), leaves, create_graph=True)


def test_backward_twice_gives_the_same():
    inputs, labels = problem()
    loss = akd_ext.linear_scheduled_kl_loss(**inputs, labels=labels)
    leaves = [inputs[name] for name in LEAVES]
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(2 * loss, leaves), tuple(2 * x for x in first))


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(direction, dtype):
    """Inputs of 16 bits: the error is that of rounding the gradients, not of rounding logits."""
    inputs, labels = problem(dtype=dtype)
    exact = {name: x.detach().double().requires_grad_(x.requires_grad) for name, x in inputs.items()}
    options = {"labels": labels, "label_weight": 0.3, "teacher_scale": 0.7, "direction": direction}
    expected = results(reference.scheduled_kl, exact, **options)
    with torch.autocast("cpu", torch.bfloat16):
        found = results(akd_ext.linear_scheduled_kl_loss, inputs, **options)
    assert found[0].dtype is torch.float32
    torch.testing.assert_close(found[0].double(), expected[0], rtol=1e-5, atol=0)
    for mine, other in zip(found[1:], expected[1:], strict=True):
        assert mine.dtype is dtype
        error = (mine.double() - other).norm() / other.norm()
        # Half a unit in the last place of bfloat16 is 2e-3 of a number, of float16 2.5e-4.
        assert error < {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 5e-4}[dtype]


def test_the_same_bits_every_time():
    inputs, labels = problem(dtype=torch.float32)
    options = {"labels": labels, **TARGETS["all"]}
    first, second = (results(akd_ext.linear_scheduled_kl_loss, inputs, **options) for _ in "12")
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that an operation made."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for x in found if isinstance(found, (tuple, list)) else [found]:
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return found


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_no_tensor_has_more_than_a_chunk(direction):
    inputs, labels = problem(bias=False, tokens=90)
    inputs["student_weight"] = inputs["student_weight"].detach()  # frozen: and no gradient is made for it
    with Largest() as largest:
        results(akd_ext.linear_scheduled_kl_loss, inputs, labels=labels, direction=direction, **TARGETS["all"])
    hidden, head = 90 * 8, CLASSES * 8
    assert largest.elements <= max(hidden, head) < 90 * CLASSES / 3


def test_a_frozen_head_costs_nothing():
    inputs, labels = problem(bias=False)
    inputs = {name: x.detach() for name, x in inputs.items()}
    inputs["student_hidden"].requires_grad_()
    made = []

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made.extend([str(function)] if "mm" in str(function) else [])
            return function(*args, **(kwargs or {}))

    with Products():
        akd_ext.linear_scheduled_kl_loss(**inputs, labels=labels).backward()
    chunks = -(-TOKENS // 4)
    assert len(made) == 3 * chunks  # two for the logits, one for the gradient by the hidden states


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"teacher_hidden": None}, ValueError, "teacher_hidden or teacher_weight is missing; accepted: both, unless"),
        ({"label_weight": 0.5}, ValueError, "labels is missing"),
        ({"label_weight": 1.5}, ValueError, r"label_weight is 1.5; accepted: a number in \[0, 1\]"),
        ({"teacher_scale": -1}, ValueError, "teacher_scale is -1; accepted: a finite number >= 0"),
        ({"student_scale": math.nan}, ValueError, "student_scale is nan"),
        ({"temperature": 0.0}, ValueError, "temperature is 0.0; accepted: a finite number > 0"),
        ({"temperature": torch.tensor(-1.0)}, ValueError, "temperature is -1.0"),
        ({"temperature": torch.ones(2)}, ValueError, r"temperature has shape \(2,\)"),
        ({"temperature": torch.ones((), dtype=torch.int64)}, TypeError, "temperature has dtype torch.int64"),
        ({"temperature": torch.ones(()).requires_grad_()}, ValueError, "temperature requires a gradient"),
        ({"temperature": "warm"}, TypeError, "temperature is a str"),
        ({"direction": "both"}, ValueError, "direction is 'both'; accepted: 'forward', 'reverse'"),
        ({"reduction": "none"}, ValueError, "reduction is 'none'"),
        ({"labels": torch.zeros(TOKENS)}, TypeError, "labels is torch.float32; accepted: a torch.int64"),
        ({"labels": torch.zeros(2, dtype=torch.int64)}, ValueError, r"labels has shape \(2,\); accepted: \(11,\)"),
        ({"labels": torch.full((TOKENS,), CLASSES)}, ValueError, "labels has entries 29 to 29; accepted: 0 to 28"),
        ({"labels": torch.full((TOKENS,), -1)}, ValueError, "labels has entries -1 to -1"),
        ({"teacher_weight": torch.ones(40, 8)}, ValueError, r"40 classes; accepted: the student's 29.*weight\[:29\]"),
        ({"teacher_weight": torch.ones(CLASSES, 8).requires_grad_()}, ValueError, "teacher_weight requires a gradient"),
        ({"logit_softcapping": 30.0}, ValueError, "logit_softcapping is 30.0"),
        ({"mask": torch.ones(2, dtype=torch.bool)}, ValueError, "mask has shape"),
        *(
            (
                {"label_weight": one, "labels": torch.zeros(TOKENS, dtype=torch.int64), "direction": "reverse"},
                ValueError,
                "label_weight is 1 with direction='reverse'",
            )
            for one in (1, torch.tensor(1.0))
        ),
    ],
)
def test_refused(changes, error, sentence):
    inputs, _ = problem(bias=False)
    with pytest.raises(error, match=sentence):
        akd_ext.linear_scheduled_kl_loss(**{**inputs, **changes})
