"""AnnealingKDLoss: a loss that knows its temperature."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from akd_ext import AnnealingKDLoss, AnnealingSchedule, annealed_mse_loss


def half_until_the_end(T, tau_max):
    return 1.0 if T == 1 else 0.5


@pytest.fixture
def logits(device):
    return torch.randn(2, 6, 5, device=device).unbind()


def test_starts_at_the_hottest_temperature():
    criterion = AnnealingKDLoss(10)
    assert criterion.temperature == 10
    assert criterion.phi.shape == ()
    assert criterion.phi.dtype is torch.float32
    assert criterion.phi.item() == pytest.approx(0.1)


@pytest.mark.parametrize("annealing", ["linear", "cosine", "exponential", "step", half_until_the_end])
def test_set_epoch_follows_the_schedule(annealing):
    criterion, schedule = AnnealingKDLoss(7, annealing), AnnealingSchedule(7, 20, annealing)
    for epoch in [*range(20), 3, 19, 0]:
        assert criterion.set_epoch(epoch, 20) == schedule(epoch)
        assert (criterion.temperature, criterion.phi.item()) == (schedule(epoch)[0], pytest.approx(schedule(epoch)[1]))


def test_forward_is_the_function(logits, device):
    student, teacher = logits
    mask = torch.arange(6, device=device) % 2 == 0
    for reduction in ("mean", "batchmean", "sum", "none"):
        criterion = AnnealingKDLoss(4, reduction=reduction).to(device)
        for T in (4, 3, 2, 1):
            phi = criterion.set_temperature(T)
            assert torch.equal(
                criterion(student, teacher), annealed_mse_loss(student, teacher, phi, reduction=reduction)
            )
            with_mask = annealed_mse_loss(student, teacher, phi, reduction=reduction, mask=mask)
            assert torch.equal(criterion(student, teacher, mask), with_mask)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", ["batchmean", "sum", "mean", "none"])
def test_kl_is_table_10(dtype, reduction, device):
    """KL(softmax(phi t) || softmax(s)) against torch's own kl_div on float64 probabilities."""
    student = torch.randn(6, 5, device=device).to(dtype).requires_grad_()
    teacher = torch.randn(6, 5, device=device).to(dtype)
    criterion = AnnealingKDLoss(4, loss="kl", reduction=reduction).to(device)
    criterion.set_temperature(2)
    loss = criterion(student, teacher)
    loss.sum().backward()
    wide = student.detach().double().requires_grad_()
    target = (0.75 * teacher.double()).softmax(-1)
    expected = F.kl_div(wide.log_softmax(-1), target, reduction=reduction)
    expected.sum().backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(student.grad.double(), wide.grad, rtol=4 * max(eps, 1e-7), atol=4 * max(eps, 1e-7))


def test_kl_defaults_to_batchmean_and_mse_to_mean():
    assert AnnealingKDLoss(4).reduction == "mean"
    assert AnnealingKDLoss(4, loss="kl").reduction == "batchmean"


def test_kl_of_the_same_logits_is_zero_at_the_end(logits):
    criterion = AnnealingKDLoss(4, loss="kl").to(logits[0].device)
    criterion.set_temperature(1)
    assert criterion(logits[0], logits[0]).abs() < 1e-6


def test_kl_masked_rows_do_not_leak(device):
    student = torch.randn(4, 5, device=device)
    student[1] = torch.nan
    student.requires_grad_()
    teacher = torch.randn(4, 5, device=device)
    teacher[1] = torch.inf
    mask = torch.tensor([True, False, True, True], device=device)
    criterion = AnnealingKDLoss(4, loss="kl").to(device)
    loss = criterion(student, teacher, mask)
    loss.backward()
    keep = mask.nonzero().flatten()
    other = student.detach()[keep].requires_grad_()
    expected = criterion(other, teacher[keep])
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(student.grad[keep], other.grad)
    assert (student.grad[1] == 0).all()


def test_nothing_goes_into_the_state_dict():
    """The epoch restores phi; a checkpoint made without the loss must load strictly, and the other way round."""
    assert AnnealingKDLoss(4).state_dict() == {}
    model = nn.ModuleDict({"student": nn.Linear(3, 2), "criterion": AnnealingKDLoss(4)})
    model.load_state_dict({f"student.{k}": v for k, v in nn.Linear(3, 2).state_dict().items()}, strict=True)
    assert list(AnnealingKDLoss(4).parameters()) == []


def test_save_and_load_a_module_that_holds_the_loss(logits):
    model = nn.ModuleDict({"student": nn.Linear(3, 2), "criterion": AnnealingKDLoss(4)})
    model["criterion"].set_temperature(2)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert loaded["criterion"].temperature == 2
    assert loaded["criterion"].phi.item() == 0.75
    student, teacher = (x.cpu() for x in logits)
    assert torch.equal(loaded["criterion"](student, teacher), model["criterion"](student, teacher))


@pytest.mark.parametrize("annealing", ["linear", half_until_the_end])
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"]
)
def test_copies_are_independent(annealing, duplicate):
    criterion = AnnealingKDLoss(4, annealing)
    criterion.set_temperature(2)
    twin = duplicate(criterion)
    assert (twin.temperature, twin.phi.item()) == (2, criterion.phi.item())
    twin.set_temperature(1)
    assert (criterion.temperature, twin.temperature) == (2, 1)
    assert criterion.phi.item() != twin.phi.item()
    assert twin.set_epoch(0, 8) == AnnealingSchedule(4, 8, annealing)(0)


def test_phi_follows_the_module_to_a_device(device):
    criterion = AnnealingKDLoss(4).to(device)
    assert criterion.phi.device.type == device
    memory = criterion.phi.data_ptr()
    criterion.set_epoch(5, 8)
    assert criterion.phi.data_ptr() == memory, "a captured graph reads the old place"


@pytest.mark.parametrize("cast", [nn.Module.half, nn.Module.bfloat16, nn.Module.double])
def test_phi_is_not_rounded_by_a_cast_of_the_model(cast, logits):
    """``model.half()`` around a criterion is common; a phi of 0.3 must not become 0.30078."""
    holder = cast(nn.Sequential(AnnealingKDLoss(10), nn.Linear(2, 2)))
    criterion = holder[0]
    for T in range(10, 0, -1):
        phi = criterion.set_temperature(T)
        assert criterion.phi.item() == pytest.approx(phi, rel=1e-7)
    student, teacher = (x.cpu() for x in logits)
    criterion.set_temperature(8)
    torch.testing.assert_close(criterion(student, teacher), annealed_mse_loss(student, teacher, 0.3))


def test_phi_stays_where_another_process_or_graph_reads_it():
    """Moves that change nothing keep the tensor; ``share_memory`` shares the phi that the module goes on using."""
    criterion = AnnealingKDLoss(4)
    phi = criterion.phi
    assert criterion.to("cpu").float().phi is phi
    assert criterion.share_memory().phi.is_shared()
    assert criterion.to("meta").to_empty(device="cpu").phi.item() == 0.25


def test_training_mode_changes_nothing(logits):
    criterion = AnnealingKDLoss(4).to(logits[0].device)
    train = criterion(*logits)
    assert torch.equal(criterion.eval()(*logits), train)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_set_temperature_between_loss_and_backward(logits, dtype):
    """The gradient is that of the temperature the loss was computed with."""
    student, teacher = (x.to(dtype) for x in logits)
    student.requires_grad_()
    criterion = AnnealingKDLoss(4).to(student.device)
    (expected,) = torch.autograd.grad(criterion(student, teacher), student)
    loss = criterion(student, teacher)
    criterion.set_temperature(1)
    (got,) = torch.autograd.grad(loss, student)
    assert torch.equal(got, expected)


def test_made_under_inference_mode(logits):
    """Set up or moved on to the next epoch while evaluating, then used for training."""
    student, teacher = logits
    with torch.inference_mode():
        criterion = AnnealingKDLoss(4).to(student.device)
    leaf = student.clone().requires_grad_()
    criterion(leaf, teacher).backward()
    assert leaf.grad.isfinite().all()
    criterion = AnnealingKDLoss(4).to(student.device)
    with torch.inference_mode():
        criterion.set_epoch(3, 4)
    assert torch.equal(criterion(leaf, teacher).detach(), annealed_mse_loss(student, teacher, 1.0))


def test_a_meta_module_comes_to_life():
    """Large models are made on the meta device and filled later; the temperature gives phi back."""
    with torch.device("meta"):
        criterion = AnnealingKDLoss(4)
    criterion.to_empty(device="cpu")
    criterion.set_epoch(3, 8)
    assert criterion.phi.item() == 0.5


def test_repr_names_what_matters():
    text = repr(AnnealingKDLoss(4, "cosine", loss="kl"))
    for part in ("tau_max=4", "annealing='cosine'", "loss='kl'", "reduction='batchmean'"):
        assert part in text
    assert "class_dim" not in text
    assert "class_dim=1" in repr(AnnealingKDLoss(4, class_dim=1))


def test_class_dim_is_checked_when_the_loss_is_made():
    with pytest.raises(TypeError, match="class_dim is a str; accepted: an integer"):
        AnnealingKDLoss(4, class_dim="1")


def test_the_temperature_is_a_property_that_sets_phi():
    criterion = AnnealingKDLoss(tau_max=4)
    criterion.temperature = 1
    assert (criterion.temperature, criterion.phi.item()) == (1, 1.0)
    assert criterion(torch.ones(2, 3), torch.ones(2, 3)).item() == 0.0
    with pytest.raises(ValueError, match="temperature is 5"):
        criterion.temperature = 5
    for name in ("tau_max", "annealing"):
        with pytest.raises(AttributeError):
            setattr(criterion, name, 2)
    assert "temperature=1, phi=1," in repr(criterion)


def test_training_at_a_temperature_that_nobody_set_warns_once():
    criterion, logits = AnnealingKDLoss(tau_max=4), torch.ones(2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        criterion.eval()(logits, logits)
    with pytest.warns(UserWarning, match="tau_max = 4.*set_epoch"):
        criterion.train()(logits, logits)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        criterion(logits, logits)
        told = AnnealingKDLoss(tau_max=4)
        told.set_epoch(0, 4)
        told(logits, logits)


def test_one_restored_without_its_epoch_warns():
    trained = AnnealingKDLoss(tau_max=4)
    trained.set_epoch(3, 4)
    restored = AnnealingKDLoss(tau_max=4)
    restored.load_state_dict(trained.state_dict())
    with pytest.warns(UserWarning, match="after a restart"):
        restored(torch.ones(2, 3), torch.ones(2, 3))


def test_numbers_of_numpy_and_of_a_schedules_arithmetic():
    numpy = pytest.importorskip("numpy")
    student = torch.ones(2, 3)
    expected = annealed_mse_loss(student, student, 1.0)
    for phi in (numpy.float32(1), numpy.float64(1), numpy.int64(1), 1 + 2e-16, 1 + 9e-7, 1):
        assert torch.equal(annealed_mse_loss(student, student, phi), expected)
    assert annealed_mse_loss(student, student, -1e-9).item() == 1.0
    criterion = AnnealingKDLoss(numpy.int64(4))
    assert criterion.set_epoch(numpy.int64(1), numpy.int32(4)) == (3, 0.5)
    assert criterion.set_temperature(numpy.int64(2)) == 0.75
    assert AnnealingSchedule(numpy.int64(4), numpy.int64(8))(numpy.int64(7)) == (1, 1.0)


def test_a_callable_that_nearly_ends_at_one():
    criterion = AnnealingKDLoss(3, annealing=lambda T, tau_max: 0.9999999999999999 / T)
    criterion.set_temperature(1)
    assert criterion.phi.item() == 1.0
    assert AnnealingSchedule(3, 3, lambda T, tau_max: 1.0000000000000002 / T).phi(2) == 1.0


def test_kl_checks_phi():
    criterion = AnnealingKDLoss(3, loss="kl")
    criterion.phi.fill_(2.0)
    with pytest.raises(ValueError, match="phi is 2.0"):
        criterion(torch.ones(2, 3), torch.ones(2, 3))


def test_strided_nested_tensors_get_a_sentence():
    nested = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)])
    with pytest.raises(TypeError, match="student is a nested tensor"):
        annealed_mse_loss(nested, nested, 0.5)


def test_made_in_inference_mode_and_used_outside():
    with torch.inference_mode():
        criterion = AnnealingKDLoss(tau_max=4)
    criterion.set_epoch(1, 4)
    student = torch.ones(2, 3, requires_grad=True)
    for loss in ("mse", "kl"):
        criterion.loss = loss
        criterion(student, torch.ones(2, 3)).backward()


@pytest.mark.parametrize("loss", ["mse", "kl"])
def test_swapped_logits_are_said(logits, loss):
    """The gradient would be right, but for a student that follows z / Phi."""
    student, teacher = logits[0].clone().requires_grad_(), logits[1]
    criterion = AnnealingKDLoss(4, loss=loss)
    criterion.set_epoch(0, 4)
    with pytest.warns(UserWarning, match="are they swapped") as said:
        criterion(teacher, student)
        annealed_mse_loss(teacher, student, 0.5)
        annealed_mse_loss(teacher, student, 0.5, reduction="none")
    assert [one.filename for one in said] == [__file__] * 3  # the line that swaps them
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        criterion(student, teacher).backward()
        criterion(teacher, teacher)
        with torch.no_grad():
            criterion(teacher, student)
