"""The mid-level loss reads the right logits, gives the library's numbers, and says what is wrong in the YAML."""

import pytest

pytest.importorskip("torchdistill", reason="the plug-in needs torchdistill: pip install '.[test]'")
pytest.importorskip("torchvision.datasets", reason="torchdistill needs torchvision: pip install '.[test]'")

import torch
from torch.nn import functional as F
from torchdistill.losses.registry import get_high_level_loss, get_mid_level_loss

import akd_ext
import akd_ext.torchdistill


def io_dict(logits, path=".", io="output"):
    return {path: {io: logits}}


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 10, generator=generator), torch.randn(6, 10, generator=generator)


@pytest.mark.parametrize("loss", ["mse", "kl"])
def test_equals_the_library(logits, loss):
    student, teacher = logits
    ours = get_mid_level_loss({"key": "AnnealingKDLoss", "kwargs": {"tau_max": 4, "loss": loss}})
    library = akd_ext.AnnealingKDLoss(4, loss=loss)
    for temperature in (4, 2, 1):
        ours.set_temperature(temperature)
        library.set_temperature(temperature)
        assert torch.equal(ours(io_dict(student), io_dict(teacher)), library(student, teacher))


def test_is_equation_3(logits):
    student, teacher = logits
    loss = akd_ext.torchdistill.AnnealingKDLoss(tau_max=10, reduction="batchmean")
    loss.set_temperature(4)  # Phi(4) = 1 - 3 / 10
    expected = (student - 0.7 * teacher).pow(2).sum(1).mean()
    torch.testing.assert_close(loss(io_dict(student), io_dict(teacher)), expected)


def test_logits_come_from_the_module_named_in_the_yaml(logits):
    student, teacher = logits
    loss = akd_ext.torchdistill.AnnealingKDLoss(
        tau_max=1, student_module_path="head", student_module_io="input", teacher_module_path="fc"
    )
    loss.set_temperature(1)
    got = loss(io_dict(student, "head", "input"), io_dict(teacher, "fc"), targets=None)
    torch.testing.assert_close(got, F.mse_loss(student, teacher))


def test_works_as_a_term_of_a_weighted_sum(logits):
    student, teacher = logits
    term = {"criterion": {"key": "AnnealingKDLoss", "kwargs": {"tau_max": 1}}, "weight": 3.0}
    criterion = get_high_level_loss({"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"akd": term}}})
    criterion.term_dict["akd"][0].set_temperature(1)
    got = criterion({"student": io_dict(student), "teacher": io_dict(teacher)}, {}, None)
    torch.testing.assert_close(got, 3 * F.mse_loss(student, teacher))


def test_a_temperature_that_nobody_sets_is_an_error(logits):
    student, teacher = logits
    loss = akd_ext.torchdistill.AnnealingKDLoss(tau_max=10)
    with pytest.raises(RuntimeError, match="pre_epoch_process: 'annealing_pre_epoch_process'"):
        loss(io_dict(student), io_dict(teacher))


def test_a_skipped_teacher_is_an_error_that_says_so(logits):
    loss = akd_ext.torchdistill.AnnealingKDLoss(tau_max=1)
    loss.set_temperature(1)
    with pytest.raises(ValueError, match=r"teacher_module_path '\.'.*forward_proc 'skip_forward'"):
        loss(io_dict(logits[0]), io_dict(None))


def test_a_wrong_path_is_an_error_that_lists_the_right_ones(logits):
    loss = akd_ext.torchdistill.AnnealingKDLoss(tau_max=1, student_module_path="fc")
    loss.set_temperature(1)
    with pytest.raises(ValueError, match=r"student_module_path 'fc'.*holds: '\.' output: Tensor"):
        loss(io_dict(logits[0]), io_dict(logits[1]))


def test_torchdistills_kd_loss_is_equation_1(logits):
    """The configurations use torchdistill's KDLoss with alpha = 1 - lambda: this is why they may."""
    student, teacher = logits
    targets, lam, tau = torch.arange(6), 0.9, 4
    paths = {
        f"{who}_module_{what}": v for who in ("student", "teacher") for what, v in (("path", "."), ("io", "output"))
    }
    loss = get_mid_level_loss({"key": "KDLoss", "kwargs": {**paths, "temperature": tau, "alpha": 1 - lam}})
    p_teacher, p_student = (teacher / tau).softmax(1), (student / tau).softmax(1)
    kl = (p_teacher * (p_teacher / p_student).log()).sum(1).mean()
    expected = (1 - lam) * F.cross_entropy(student, targets) + lam * tau**2 * kl
    torch.testing.assert_close(loss(io_dict(student), io_dict(teacher), targets), expected)


def test_continuation_kd_goes_from_the_teacher_to_the_labels(logits):
    student, teacher = logits
    targets = torch.tensor([0, 1, 2, 3, 4, 5])
    loss = get_mid_level_loss({"key": "ContinuationKDLoss", "kwargs": {"tau_max": 5, "margin": 12.0}})
    for temperature, phi, psi in ((5, 0.2, 0.0), (3, 0.6, 0.5), (1, 1.0, 1.0)):
        loss.set_temperature(temperature)
        distances = (student - phi * teacher).pow(2).sum(1)
        beyond = torch.stack([max(torch.tensor(0.0), d - 12.0 * phi) for d in distances])
        if temperature == 3:
            assert 0 < beyond.count_nonzero() < 6  # the margin takes some samples and leaves others
        expected = psi * F.cross_entropy(student, targets) + (1 - psi) * beyond.mean()
        torch.testing.assert_close(loss(io_dict(student), io_dict(teacher), targets), expected)


@pytest.mark.parametrize(
    ("kwargs", "problem"),
    [({"tau_max": 1}, "tau_max is 1"), ({"tau_max": 4, "margin": -1}, "margin is -1"),
     ({"tau_max": 4, "margin": float("nan")}, "margin is nan")],
)  # fmt: skip
def test_continuation_kd_refuses(kwargs, problem):
    with pytest.raises(ValueError, match=problem):
        akd_ext.torchdistill.ContinuationKDLoss(**kwargs)


@pytest.mark.parametrize("kwargs", [{"loss": "kl"}, {"reduction": "batchmean"}, {"reduction": "none"}])
def test_logits_of_segmentation_want_class_dim(kwargs):
    student, teacher = torch.randn(2, 2, 3, 4, 4).unbind()
    loss = akd_ext.torchdistill.AnnealingKDLoss(tau_max=1, **kwargs)
    loss.set_temperature(1)
    with pytest.raises(ValueError, match=r"AnnealingKDLoss: class_dim is not given.*\(2, 3, 4, 4\).*`class_dim: 1`"):
        loss(io_dict(student), io_dict(teacher))
    told = akd_ext.torchdistill.AnnealingKDLoss(tau_max=1, class_dim=1, **kwargs)
    told.set_temperature(1)
    last = akd_ext.torchdistill.AnnealingKDLoss(tau_max=1, class_dim=-1, **kwargs)
    last.set_temperature(1)
    got = told(io_dict(student), io_dict(teacher))
    expected = last(io_dict(student.movedim(1, -1)), io_dict(teacher.movedim(1, -1)))
    torch.testing.assert_close(got, expected.movedim(-1, 1) if expected.ndim else expected)


def test_kl_over_the_classes_of_every_pixel():
    student, teacher = torch.randn(2, 2, 3, 4, 5).unbind()
    loss = akd_ext.torchdistill.AnnealingKDLoss(tau_max=1, loss="kl", class_dim=1)
    loss.set_temperature(1)
    terms = F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="none", log_target=True)
    torch.testing.assert_close(loss(io_dict(student), io_dict(teacher)), terms.sum(1).mean())


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_no_question_where_the_classes_do_not_matter(reduction):
    student, teacher = torch.randn(2, 2, 3, 4, 5).unbind()
    loss = akd_ext.torchdistill.AnnealingKDLoss(tau_max=1, reduction=reduction)
    loss.set_temperature(1)
    expected = F.mse_loss(student, teacher, reduction=reduction)
    torch.testing.assert_close(loss(io_dict(student), io_dict(teacher)), expected)


def test_continuation_kd_of_segmentation():
    student, teacher = torch.randn(2, 2, 3, 4, 5).unbind()
    targets = torch.randint(3, (2, 4, 5))
    loss = akd_ext.torchdistill.ContinuationKDLoss(tau_max=3, class_dim=1)
    loss.set_temperature(2)
    phi = loss.phi
    beyond = ((student - phi * teacher).square().sum(1) - phi).clamp(min=0).mean()
    expected = 0.5 * F.cross_entropy(student, targets) + 0.5 * beyond
    torch.testing.assert_close(loss(io_dict(student), io_dict(teacher), targets), expected)
