"""Every public function refuses a wrong argument with a TypeError or ValueError that names it: one argument at a time."""

import pytest
import torch

import akd_ext
from akd_ext import AnnealingKDLoss, AnnealingSchedule, annealed_mse_loss, annealing_functions

INT = torch.ones(4, 3, dtype=torch.int64)
COMPLEX = torch.ones(4, 3, dtype=torch.complex64)
META = torch.ones(4, 3, device="meta")


@pytest.fixture
def good():
    return {"student": torch.randn(4, 3), "teacher": torch.randn(4, 3), "phi": 0.5, "reduction": "mean", "mask": None}


# (argument, what is wrong with it, the error, what the message must say beside the argument's name)
LOGITS = [
    ("not a tensor", [[1.0, 2.0, 3.0]] * 4, TypeError, "list"),
    ("None", None, TypeError, "NoneType"),
    ("integers", INT, TypeError, "torch.int64"),
    ("booleans", INT.bool(), TypeError, "torch.bool"),
    ("complex", COMPLEX, TypeError, "complex64"),
    ("float8", torch.ones(4, 3).to(torch.float8_e4m3fn), TypeError, "float8"),
    ("sparse", torch.eye(4, 3).to_sparse(), TypeError, "sparse"),
    ("sparse rows", torch.eye(4, 3).to_sparse_csr(), TypeError, "sparse"),
]
SHAPES = [(3,), (4,), (4, 1), (1, 3), (1,), (), (3, 4), (2, 4, 3), (4, 3, 1), (0, 3), (4, 0)]
PHIS = [
    ("below 0", -0.001, ValueError),
    ("above 1", 1.001, ValueError),
    ("NaN", float("nan"), ValueError),
    ("infinite", float("inf"), ValueError),
    ("text", "0.5", TypeError),
    ("None", None, TypeError),
    ("a boolean", True, TypeError),
    ("complex", 0.5j, TypeError),
    ("a list", [0.5], TypeError),
    ("one dimension", torch.tensor([0.5]), ValueError),
    ("an integer tensor", torch.tensor(1), TypeError),
    ("a boolean tensor", torch.tensor(True), TypeError),
    ("a complex tensor", torch.tensor(0.5j), TypeError),
    ("a tensor below 0", torch.tensor(-0.001), ValueError),
    ("a tensor above 1", torch.tensor(1.5), ValueError),
    ("a NaN tensor", torch.tensor(float("nan")), ValueError),
    ("a NaN parameter", torch.nn.Parameter(torch.tensor(float("nan")), requires_grad=False), ValueError),
    ("wants a gradient", torch.tensor(0.5, requires_grad=True), ValueError),
    ("another device", torch.tensor(0.5, device="meta"), ValueError),
    ("sparse", torch.tensor(0.5).to_sparse(), TypeError),
]
REDUCTIONS = [("unknown", "average", ValueError), ("upper case", "MEAN", ValueError), ("empty", "", ValueError)]
REDUCTIONS += [("None", None, TypeError), ("a number", 1, TypeError), ("a list", ["mean"], TypeError)]
MASKS = [
    ("not a tensor", [True] * 4, TypeError),
    ("integers", torch.ones(4, dtype=torch.int64), TypeError),
    ("bytes", torch.ones(4, dtype=torch.uint8), TypeError),
    ("floats", torch.ones(4), TypeError),
    ("sparse", torch.ones(4, dtype=torch.bool).to_sparse(), TypeError),
    ("another length", torch.ones(3, dtype=torch.bool), ValueError),
    ("one value", torch.ones((), dtype=torch.bool), ValueError),
    ("the logits' shape", torch.ones(4, 3, dtype=torch.bool), ValueError),
    ("a trailing one", torch.ones(4, 1, dtype=torch.bool), ValueError),
    ("another device", torch.ones(4, dtype=torch.bool, device="meta"), ValueError),
]


def refused(function, error, argument, says=""):
    with pytest.raises((TypeError, ValueError)) as caught:
        function()
    assert type(caught.value) is error, f"{type(caught.value).__name__}: {caught.value}"
    assert argument in str(caught.value)
    assert says in str(caught.value)


@pytest.mark.parametrize("argument", ["student", "teacher"])
@pytest.mark.parametrize(("value", "error", "says"), [pytest.param(*c[1:], id=c[0]) for c in LOGITS])
def test_logits(good, argument, value, error, says):
    refused(lambda: annealed_mse_loss(**{**good, argument: value}), error, argument, says)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_teacher_of_another_shape_is_never_broadcast(good, shape):
    good["teacher"] = torch.zeros(shape)
    refused(lambda: annealed_mse_loss(**good), ValueError, "teacher", str(shape))


@pytest.mark.parametrize(
    ("one", "other"), [((4,), (4, 1)), ((4, 1), (4,)), ((1, 4), (4,)), ((2, 1, 3), (2, 4, 3))], ids=str
)
def test_column_against_row(good, one, other):
    """[B, 1] against [B] is the classic: broadcast to [B, B] it gives a loss, and a wrong one."""
    refused(lambda: annealed_mse_loss(torch.zeros(one), torch.zeros(other), 0.5), ValueError, "teacher", str(other))


def test_logits_without_a_dimension():
    refused(lambda: annealed_mse_loss(torch.tensor(1.0), torch.tensor(1.0), 0.5), ValueError, "student", "()")


def test_teacher_on_another_device(good):
    refused(lambda: annealed_mse_loss(**{**good, "teacher": META}), ValueError, "teacher", "meta")
    refused(lambda: annealed_mse_loss(**{**good, "student": META}), ValueError, "teacher", "cpu")


@pytest.mark.parametrize(("value", "error"), [pytest.param(*c[1:], id=c[0]) for c in PHIS])
def test_phi(good, value, error):
    refused(lambda: annealed_mse_loss(**{**good, "phi": value}), error, "phi")


@pytest.mark.parametrize(("value", "error"), [pytest.param(*c[1:], id=c[0]) for c in REDUCTIONS])
def test_reduction(good, value, error):
    refused(lambda: annealed_mse_loss(**{**good, "reduction": value}), error, "reduction", "batchmean")
    refused(lambda: AnnealingKDLoss(4, reduction=value), error, "reduction") if value is not None else None


@pytest.mark.parametrize(("value", "error"), [pytest.param(*c[1:], id=c[0]) for c in MASKS])
def test_mask(good, value, error):
    refused(lambda: annealed_mse_loss(**{**good, "mask": value}), error, "mask")
    for loss in ("mse", "kl"):
        refused(lambda loss=loss: AnnealingKDLoss(4, loss=loss)(good["student"], good["teacher"], value), error, "mask")


def test_mask_of_one_vector_has_no_dimension():
    student = torch.randn(3)
    kept = annealed_mse_loss(student, torch.zeros(3), 0.5, mask=torch.tensor(True))
    torch.testing.assert_close(kept, student.square().mean())
    refused(lambda: annealed_mse_loss(student, student, 0.5, mask=torch.ones(1, dtype=torch.bool)), ValueError, "mask")


def test_a_bad_argument_is_refused_under_no_grad_too(good):
    with torch.no_grad():
        refused(lambda: annealed_mse_loss(**{**good, "phi": 2.0}), ValueError, "phi")


@pytest.mark.parametrize("loss", ["mse", "kl"])
@pytest.mark.parametrize("argument", ["student", "teacher"])
@pytest.mark.parametrize(("value", "error", "says"), [pytest.param(*c[1:], id=c[0]) for c in LOGITS])
def test_module_logits(good, loss, argument, value, error, says):
    arguments = {"student": good["student"], "teacher": good["teacher"], argument: value}
    refused(lambda: AnnealingKDLoss(4, loss=loss)(**arguments), error, argument, says)


@pytest.mark.parametrize("loss", ["mse", "kl"])
def test_module_shapes(good, loss):
    refused(lambda: AnnealingKDLoss(4, loss=loss)(good["student"], torch.zeros(4, 1)), ValueError, "teacher", "(4, 1)")


TAU_MAX = [(0, ValueError), (-3, ValueError), (2.0, TypeError), ("4", TypeError), (None, TypeError), (True, TypeError)]
ANNEALINGS = [
    ("unknown", "quadratic", ValueError, "quadratic"),
    ("misspelt", "cosin", ValueError, "cosine"),
    ("None", None, TypeError, "NoneType"),
    ("a number", 0.5, TypeError, "float"),
    ("above 1", lambda T, tau_max: 2.0, ValueError, "[0, 1]"),
    ("below 0", lambda T, tau_max: 1.0 if T == 1 else -0.5, ValueError, "[0, 1]"),
    ("NaN", lambda T, tau_max: float("nan"), ValueError, "[0, 1]"),
    ("grows with T", lambda T, tau_max: 1.0 if T == 1 else T / tau_max / 2, ValueError, "grow"),
    ("not 1 in the end", lambda T, tau_max: 0.5, ValueError, "T = 1"),
    ("no number", lambda T, tau_max: "much", TypeError, "number"),
    ("takes no argument", lambda: 1.0, TypeError, ""),
    ("takes three arguments", lambda T, tau_max, epoch: 1.0, TypeError, ""),
]
TAKES_ANNEALING = {
    "get": lambda annealing, tau_max: annealing_functions.get(annealing, tau_max),
    "schedule": lambda annealing, tau_max: AnnealingSchedule(tau_max, 8, annealing),
    "module": lambda annealing, tau_max: AnnealingKDLoss(tau_max, annealing),
}


@pytest.mark.parametrize("entry", TAKES_ANNEALING)
@pytest.mark.parametrize(("value", "error"), TAU_MAX, ids=str)
def test_tau_max(entry, value, error):
    refused(lambda: TAKES_ANNEALING[entry]("linear", value), error, "tau_max")


@pytest.mark.parametrize("entry", TAKES_ANNEALING)
@pytest.mark.parametrize(("value", "error", "says"), [pytest.param(*c[1:], id=c[0]) for c in ANNEALINGS])
def test_annealing(entry, value, error, says):
    refused(lambda: TAKES_ANNEALING[entry](value, 4), error, "annealing", says)


@pytest.mark.parametrize(("value", "error"), TAU_MAX, ids=str)
def test_num_epochs(value, error):
    refused(lambda: AnnealingSchedule(4, value), error, "num_epochs")
    refused(lambda: AnnealingKDLoss(4).set_epoch(0, value), error, "num_epochs")


@pytest.mark.parametrize(
    ("value", "error"),
    [(-1, ValueError), (8, ValueError), (0.0, TypeError), ("0", TypeError), (None, TypeError), (True, TypeError)],
)
def test_epoch(value, error):
    schedule = AnnealingSchedule(4, 8)
    for call in (schedule, schedule.phi, schedule.temperature, lambda epoch: AnnealingKDLoss(4).set_epoch(epoch, 8)):
        refused(lambda call=call: call(value), error, "epoch")


@pytest.mark.parametrize(
    ("value", "error"),
    [(0, ValueError), (5, ValueError), (2.0, TypeError), ("2", TypeError), (None, TypeError), (True, TypeError)],
)
def test_temperature(value, error):
    criterion = AnnealingKDLoss(4)
    refused(lambda: criterion.set_temperature(value), error, "temperature")
    assert criterion.temperature == 4, "a refused call must change nothing"
    assert criterion.phi == 0.25


@pytest.mark.parametrize("value", ["ce", "", None, 1])
def test_module_loss(value):
    refused(lambda: AnnealingKDLoss(4, loss=value), ValueError if isinstance(value, str) else TypeError, "loss")


@pytest.mark.parametrize("value", [None, 1, torch.device("cpu")], ids=str)
def test_backend(value):
    refused(lambda: akd_ext.backend(value), TypeError, "device_type")


def test_backend_of_an_unknown_device_is_the_reference():
    assert akd_ext.backend("mps") == "reference"
    assert akd_ext.backend("meta") == "reference"
