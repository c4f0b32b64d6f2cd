"""The teacher's top k: against full logits, with the anchor, the remaining mass and TAID's target."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import akd_ext
from akd_ext.linear import AdaptiveInterpolation, chunked, reference, sparse

TOKENS, CLASSES, K = 11, 29, 5


@pytest.fixture(autouse=True)
def _several_chunks(monkeypatch):
    monkeypatch.setattr(sparse, "GATHERED", 3 * K * 6)
    monkeypatch.setattr(chunked, "SOFTMAX_CHUNK", 4 * CLASSES)
    monkeypatch.setattr(chunked, "FEWEST_TOKENS", 1)


def problem():
    def made(*shape):
        return torch.randn(*shape, dtype=torch.float64)

    student = {
        "student_hidden": made(TOKENS, 6).requires_grad_(), "student_weight": made(CLASSES, 6).requires_grad_(),
        "student_bias": made(CLASSES).requires_grad_(),
    }  # fmt: skip
    return student, {"teacher_hidden": made(TOKENS, 8), "teacher_weight": made(CLASSES, 8)}


def compare(found, expected, student):
    torch.testing.assert_close(found, expected)
    leaves = list(student.values())
    gradients = torch.autograd.grad(expected, leaves, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(found, leaves), gradients)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("t", [1.0, 0.3, torch.tensor(0.6)])
def test_among_the_top_k(temperature, t):
    student, teacher = problem()
    full, target = reference.logits(*student.values()), reference.logits(*teacher.values())
    top = target.topk(K)
    mask = torch.arange(TOKENS) % 3 != 0
    expected = reference.topk_kl(full, top.values, top.indices, temperature=temperature, t=t)
    expected = expected[mask].mean() * temperature**2
    given = {"teacher_values": top.values, "teacher_indices": top.indices}
    for way in (given, {**teacher, "k": K}):
        found = akd_ext.linear_topk_kl_loss(**student, **way, temperature=temperature, t=t, mask=mask)
        compare(found, expected, student)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_remaining_mass_is_one_more_class(temperature):
    student, teacher = problem()
    full, target = reference.logits(*student.values()), reference.logits(*teacher.values())
    top, normalizer = target.topk(K), (target / temperature).logsumexp(-1)
    expected = reference.topk_kl(full, top.values, top.indices, normalizer, temperature).mean() * temperature**2
    given = {"teacher_values": top.values, "teacher_indices": top.indices, "teacher_log_normalizer": normalizer}
    compare(akd_ext.linear_topk_kl_loss(**student, **given, temperature=temperature), expected, student)


@pytest.mark.parametrize("with_mass", [False, True])
def test_factors_of_the_logits_count_in_both_parts(with_mass):
    student, teacher = problem()
    full, target = reference.logits(*student.values(), 1.7), reference.logits(*teacher.values(), None, 0.6)
    top, temperature = target.topk(K), 2.5
    normalizer = (target / temperature).logsumexp(-1) if with_mass else None
    squares = (reference.centered(full) - reference.centered(target)).square().mean()
    kl = reference.topk_kl(full, top.values, top.indices, normalizer, temperature).mean() * temperature**2
    given = {"temperature": temperature, "anchor": 0.5, "logit_scale": 1.7, "teacher_logit_scale": 0.6}
    found = akd_ext.linear_topk_kl_loss(**student, **teacher, k=K, teacher_log_normalizer=normalizer, **given)
    compare(found, kl + 0.5 * squares, student)


def test_autocast_rounds_no_logits():
    student, teacher = problem()
    student = {name: x.detach().float().requires_grad_() for name, x in student.items()}
    teacher = {name: x.float() for name, x in teacher.items()}
    expected = akd_ext.linear_topk_kl_loss(**student, **teacher, k=K, anchor=1.0)
    gradients = torch.autograd.grad(expected, list(student.values()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = akd_ext.linear_topk_kl_loss(**student, **teacher, k=K, anchor=1.0)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    torch.testing.assert_close(torch.autograd.grad(found, list(student.values())), gradients, rtol=0, atol=0)


@pytest.mark.cuda
def test_on_a_gpu_two_calls_give_the_same_bits():
    """Many tokens that share few classes: their gradients are added to the same rows."""
    hidden, head = torch.randn(4096, 64, device="cuda"), torch.randn(50, 64, device="cuda").requires_grad_()
    bias = torch.zeros(50, device="cuda").requires_grad_()
    top = torch.randn(4096, 50, device="cuda").topk(8)
    given = {"student_bias": bias, "teacher_values": top.values, "teacher_indices": top.indices}
    first, second = (
        torch.autograd.grad(akd_ext.linear_topk_kl_loss(hidden, head, **given), [head, bias]) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_off_the_cpu_rows_are_added_by_sorting():
    """What a GPU runs, where no GPU is; index_add_ has no fixed order there (torch.use_deterministic_algorithms)."""
    called = []

    class Elsewhere(torch.Tensor):
        is_cpu = False

        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            called.append(function.__name__)
            return super().__torch_function__(function, types, args, kwargs)

    rows, places = torch.randn(40, 6, dtype=torch.float64), torch.randint(9, (40,))
    here, there = torch.zeros(9, 6, dtype=torch.float64), torch.zeros(9, 6, dtype=torch.float64)
    sparse._add_rows(here, places, rows)
    sparse._add_rows(there.as_subclass(Elsewhere), places, rows)
    torch.testing.assert_close(there, here)
    assert "index_put_" in called and "index_add_" not in called


class Conversions(TorchDispatchMode):
    """How often a tensor of a shape is converted."""

    def __init__(self, *shape):
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._to_copy.default and args[0].shape == self.shape
        return function(*args, **(kwargs or {}))


def test_a_head_of_16_bits_is_converted_once_a_pass_and_not_for_every_chunk():
    student, teacher = problem()
    target = reference.logits(*teacher.values())
    top = target.topk(K)
    given = {"teacher_values": top.values.float(), "teacher_indices": top.indices}
    given["teacher_log_normalizer"] = target.logsumexp(-1).float()
    hidden, head = student["student_hidden"].float(), student["student_weight"].detach().bfloat16()
    with Conversions(CLASSES, 6) as conversions:
        akd_ext.linear_topk_kl_loss(hidden, head, **given).backward()
    assert conversions.count == 2  # forward and backward; there are three chunks
    states = {name: x.bfloat16() for name, x in teacher.items()}
    with Conversions(CLASSES, 8) as conversions:
        akd_ext.linear_topk_kl_loss(hidden, head, **states, k=K)
    assert conversions.count == 1


def test_with_all_classes_it_is_the_kl():
    student, teacher = problem()
    full, target = reference.logits(*student.values()), reference.logits(*teacher.values())
    expected = torch.nn.functional.kl_div(
        full.log_softmax(-1), target.log_softmax(-1), reduction="batchmean", log_target=True
    )
    compare(akd_ext.linear_topk_kl_loss(**student, **teacher, k=CLASSES), expected, student)


def test_the_anchor_holds_the_rest():
    student, teacher = problem()
    full, target = reference.logits(*student.values()), reference.logits(*teacher.values())
    top, weight = target.topk(K), torch.rand(TOKENS, dtype=torch.float64)
    squares = (reference.centered(full) - 0.5 * reference.centered(target)).square().mean(-1)
    terms = 0.7 * reference.topk_kl(full, top.values, top.indices) + 0.3 * squares
    found = akd_ext.linear_topk_kl_loss(
        **student, **teacher, k=K, topk=torch.tensor(0.7, dtype=torch.float64), weight=weight, divisor=4,
        anchor=torch.tensor(0.3, dtype=torch.float64), phi=0.5,
    )  # fmt: skip
    compare(found, (terms * weight).sum() / 4, student)


def test_masked_tokens_may_hold_anything():
    student, teacher = problem()
    mask = torch.arange(TOKENS) % 2 == 0
    with torch.no_grad():
        student["student_hidden"][~mask] = float("nan")
    teacher["teacher_hidden"][~mask] = float("nan")
    loss = akd_ext.linear_topk_kl_loss(**student, **teacher, k=K, mask=mask, anchor=1.0)
    loss.backward()
    assert all(x.grad.isfinite().all() for x in student.values())


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"k": 0}, ValueError, "k is 0; accepted: an integer from 1"),
        ({"k": 2, "teacher_hidden": None}, ValueError, "teacher_hidden or teacher_weight is missing"),
        ({}, ValueError, "teacher_values or teacher_indices is missing"),
        ({"k": 2, "teacher_values": torch.ones(TOKENS, 2)}, ValueError, "k is given beside teacher_values"),
        (
            {"k": 2, "teacher_weight": torch.ones(CLASSES + 1, 8)},
            ValueError,
            "teacher_weight has 30 rows, student_weight 29",
        ),
        ({"k": 2, "temperature": 0.0}, ValueError, "temperature is 0.0"),
        ({"k": 2, "temperature": math.inf}, ValueError, "temperature is inf"),
        (
            {"teacher_values": torch.ones(TOKENS, 2), "teacher_indices": torch.full((TOKENS, 2), CLASSES)},
            ValueError,
            "teacher_indices has entries 29 to 29",
        ),
        ({"k": 2, "t": 2.0}, ValueError, "t is 2.0; accepted: a number from 0 to 1"),
        ({"k": 2, "t": "a"}, ValueError, "t is 'a'"),
        ({"k": 2, "t": torch.tensor(2.0)}, ValueError, "t is 2.0; accepted: a number from 0 to 1"),
        ({"k": 2, "t": torch.tensor([0.5])}, ValueError, r"t has shape \(1,\); accepted: a number or a 0-d tensor"),
        ({"k": 2, "topk": torch.tensor([0.5, 0.5])}, ValueError, r"topk has shape \(2,\)"),
        ({"k": 2, "topk": float("nan")}, ValueError, "topk is nan; accepted: a number >= 0"),
        ({"k": 2, "anchor": -1.0}, ValueError, "anchor is -1.0; accepted: a number >= 0"),
        ({"k": 2, "anchor": "much"}, ValueError, "anchor is 'much'"),
        ({"k": 2, "logit_scale": 0.0}, ValueError, "logit_scale is 0.0; accepted: a finite number > 0"),
        (
            {"k": 2, "anchor_options": {"teacher_logit_scale": 2.0}},
            ValueError,
            "teacher_logit_scale is in anchor_options; accepted: as an argument",
        ),
        ({"k": 2, "t": 0.5, "teacher_log_normalizer": torch.ones(TOKENS)}, ValueError, "t is not 1"),
    ],
)
def test_refused(changes, error, sentence):
    student, teacher = problem()
    with pytest.raises(error, match=sentence):
        akd_ext.linear_topk_kl_loss(**{**student, **teacher, **changes})


def test_adaptive_interpolation_grows_with_the_fall_of_the_loss():
    """The rule of the paper, worked out by hand for two steps."""
    t = AdaptiveInterpolation(1000, start=0.4, step_size=0.1, momentum=0.5)
    assert t.update(2.0) == 0.4
    grown = 0.4 + 0.1 / (1 + torch.tensor(-0.25).exp().item()) * 0.6
    assert t.update(1.0) == pytest.approx(grown)
    again = AdaptiveInterpolation(1000, start=0.4, step_size=0.1, momentum=0.5)
    again.load_state_dict(t.state_dict())
    assert again.update(0.5) == t.update(0.5)
    last = AdaptiveInterpolation(2, start=0.1)
    assert [last.update(1.0) for _ in range(3)][1:] == [1.0, 1.0]
    with pytest.raises(ValueError, match="start and end are"):
        AdaptiveInterpolation(5, start=0.9, end=0.5)


def test_adaptive_interpolation_outlives_losses_that_tell_nothing():
    t, undisturbed = (AdaptiveInterpolation(1000, start=0.4, step_size=0.1, momentum=0.5) for _ in range(2))
    for loss in (2.0, 1.5):
        t.update(loss), undisturbed.update(loss)
    assert t.update(float("nan")) == undisturbed.value  # a batch in which no token counts
    assert t.update(1.0) == undisturbed.update(1.0) > undisturbed.start
    for loss in (0.0, 1.0):  # a rise from 0 is beyond what exp() can tell
        assert 0.4 < t.update(loss) < 1.0


@pytest.mark.parametrize("how", ["mask", "weight"])
@pytest.mark.parametrize("with_mass", [False, True])
def test_no_nan_of_a_token_that_does_not_count_reaches_a_gradient(how, with_mass):
    student, teacher = problem()
    target = reference.logits(*teacher.values())
    values, indices = target.topk(K)
    given = {"teacher_values": values, "teacher_log_normalizer": target.logsumexp(-1) if with_mass else None}
    kept = torch.arange(TOKENS) > 3
    part = {name: None if x is None else x[kept] for name, x in given.items()}
    hidden, *head = student.values()
    expected = akd_ext.linear_topk_kl_loss(
        hidden[kept], *head[:1], student_bias=head[1], teacher_indices=indices[kept], **part
    )
    unknown = hidden.detach().masked_fill(~kept.unsqueeze(1), float("nan")).requires_grad_()
    for x in given.values():
        if x is not None:
            x[~kept] = float("nan")
    counting = {how: kept if how == "mask" else kept.double()}
    found = akd_ext.linear_topk_kl_loss(
        unknown, *head[:1], student_bias=head[1], teacher_indices=indices, **given, **counting
    )
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, [unknown, *head]), torch.autograd.grad(expected, [hidden, *head])
    )


def test_tokens_that_do_not_count_cost_nothing_and_may_have_any_indices(monkeypatch):
    student, teacher = problem()
    target = reference.logits(*teacher.values())
    top, kept = target.topk(K), torch.arange(TOKENS) % 3 == 0
    given = {"teacher_values": top.values, "teacher_log_normalizer": target.logsumexp(-1), "mask": kept}
    expected = akd_ext.linear_topk_kl_loss(**student, **given, teacher_indices=top.indices)
    rows, own = [], sparse._logits
    monkeypatch.setattr(sparse, "_logits", lambda hidden, *rest: rows.append(len(hidden)) or own(hidden, *rest))
    padded = top.indices.masked_fill(~kept.unsqueeze(1), -1)
    compare(akd_ext.linear_topk_kl_loss(**student, **given, teacher_indices=padded), expected, student)
    assert sum(rows) == 3 * kept.sum()  # forward, and backward by both losses
    rows.clear()
    akd_ext.linear_topk_kl_loss(**student, **teacher, k=K, mask=kept)
    assert sum(rows) == kept.sum()


def test_what_a_teacher_made_in_inference_mode():
    student, teacher = problem()
    with torch.inference_mode():
        target = reference.logits(*teacher.values())
        values, indices = target.topk(K)
        given = {"teacher_values": values, "teacher_log_normalizer": target.logsumexp(-1), "weight": torch.rand(TOKENS)}
    expected = akd_ext.linear_topk_kl_loss(
        **student, teacher_indices=indices.clone(), **{name: x.clone() for name, x in given.items()}
    )
    compare(akd_ext.linear_topk_kl_loss(**student, teacher_indices=indices, **given), expected, student)


@pytest.mark.parametrize("tokens", [0, TOKENS])
def test_where_no_token_counts_every_gradient_is_0(tokens):
    student, teacher = problem()
    student["student_hidden"] = student["student_hidden"].detach()[:tokens].requires_grad_()
    teacher["teacher_hidden"] = teacher["teacher_hidden"][:tokens]
    mask = torch.zeros(tokens, dtype=torch.bool)
    found = akd_ext.linear_topk_kl_loss(**student, **teacher, k=K, mask=mask)
    assert found.isnan()
    for gradient in torch.autograd.grad(found, list(student.values())):
        assert not gradient.any()


def test_the_divisor_counts_tokens_whatever_the_anchor_averages():
    student, teacher = problem()
    student = {name: x.detach().float() for name, x in student.items()}
    teacher = {name: x.float() for name, x in teacher.items()}
    ids = torch.arange(CLASSES - 4)
    for options in ({"student_ids": ids, "teacher_ids": ids}, {"reduction": "batchmean"}, {}):
        arguments = {**student, **teacher, "k": K, "anchor": 0.5, "anchor_options": options}
        found = akd_ext.linear_topk_kl_loss(**arguments, divisor=TOKENS)
        torch.testing.assert_close(found, akd_ext.linear_topk_kl_loss(**arguments))  # of the same dtype, too


def test_a_student_sure_of_the_top_k_still_learns_the_rest():
    hidden = torch.tensor([[1.0, 0.0]], requires_grad=True)
    head = torch.zeros(50, 2)
    head[0, 0] = 25.0  # 7e-10 of its probability is elsewhere, 0.4 of the teacher's
    given = torch.tensor([[1.0]]), torch.tensor([[0]]), torch.tensor([1.5])
    names = ("teacher_values", "teacher_indices", "teacher_log_normalizer")
    found = akd_ext.linear_topk_kl_loss(hidden, head, **dict(zip(names, given, strict=True)))
    wide = hidden.detach().double().requires_grad_()
    own = (wide @ head.double().T).log_softmax(-1)
    target = torch.tensor([-0.5, math.log(1 - math.exp(-0.5))], dtype=torch.float64)
    own = torch.stack([own[0, 0], own[0, 1:].logsumexp(0)])
    expected = (target.exp() * (target - own)).sum()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
    gradients = torch.autograd.grad(found, hidden)[0].double(), torch.autograd.grad(expected, wide)[0]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=0)


def test_with_all_classes_no_mass_remains():
    student, teacher = problem()
    full, target = reference.logits(*student.values()), reference.logits(*teacher.values())
    expected = torch.nn.functional.kl_div(
        full.log_softmax(-1), target.log_softmax(-1), reduction="batchmean", log_target=True
    )
    values, indices = target.topk(CLASSES)
    given = {"teacher_values": values, "teacher_indices": indices, "teacher_log_normalizer": target.logsumexp(-1)}
    compare(akd_ext.linear_topk_kl_loss(**student, **given), expected, student)


def test_a_class_given_twice_is_refused_where_the_token_counts():
    student, teacher = problem()
    top = reference.logits(*teacher.values()).topk(K)
    indices = top.indices.clone()
    indices[3, 4] = indices[3, 1]
    given = {"teacher_values": top.values, "teacher_indices": indices}
    with pytest.raises(ValueError, match=r"teacher_indices has a class twice, at token \[3\]"):
        akd_ext.linear_topk_kl_loss(**student, **given)
    mask = torch.arange(TOKENS) != 3  # what stands at a masked token is nobody's business
    assert akd_ext.linear_topk_kl_loss(**student, **given, mask=mask).isfinite()
