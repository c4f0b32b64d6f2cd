"""akd-reproduce figure2 and figure3: the mathematics behind them, what they write, what they say to bad input."""

import json
import math
import types

import pytest

pytest.importorskip("torchdistill", reason="the plug-in needs torchdistill: pip install '.[test]'")
pytest.importorskip("torchvision.datasets", reason="torchdistill needs torchvision: pip install '.[test]'")
pytest.importorskip("scipy", reason="confidence intervals come from scipy: pip install '.[test]'")
pytest.importorskip("matplotlib", reason="the figures need matplotlib: pip install '.[test]'")

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.func import functional_call, hessian
from torch.nn.functional import mse_loss
from torchvision import datasets

from akd_ext import reference
from akd_ext.reproduce import cli as reproduce
from akd_ext.reproduce import pool
from akd_ext.reproduce.figures import landscape, loss_landscape, students
from akd_ext.reproduce.figures import loss_landscape_report as figure3_report
from akd_ext.reproduce.figures import toy_regression as figure2
from akd_ext.torchdistill import FastCIFAR10, resnet8

# ---------------------------------------------------------------- figure 2


def test_f_where_its_values_are_known():
    x = torch.tensor([0.0, 1 / 18, 1 / 6, 1 / 3], dtype=torch.float64)
    expected = torch.tensor([0.0, 0.5 + math.sqrt(3) / 2 + 1, 1 + 0 - 1, 0.0], dtype=torch.float64)
    torch.testing.assert_close(figure2.f(x), expected)


def test_the_networks_are_linear_sigmoid_linear():
    networks = figure2.Networks(7, [torch.Generator().manual_seed(seed) for seed in (0, 1)])
    x = torch.rand(2, 5, 1)
    for seed in (0, 1):
        first, second = nn.Linear(1, 7), nn.Linear(7, 1)
        first.weight.data, first.bias.data = networks.weight1[seed].t(), networks.bias1[seed, 0]
        second.weight.data, second.bias.data = networks.weight2[seed].t(), networks.bias2[seed, 0]
        standardized = (x[seed] - 0.5) / math.sqrt(1 / 12)
        torch.testing.assert_close(networks(x)[seed], second(torch.sigmoid(first(standardized))))


@pytest.mark.integration
def test_a_seed_decides_its_own_curves_and_no_other_seed_does():
    both, again, alone = figure2.curves([0, 1], 30), figure2.curves([0, 1], 30), figure2.curves([1], 30)
    for name in ("points", "teacher", "kd", "alone"):
        assert torch.equal(getattr(both, name), getattr(again, name)), name
        # 30 steps in float32, whose sums may be taken in another order for another batch.
        torch.testing.assert_close(getattr(both, name)[1:], getattr(alone, name), rtol=1e-3, atol=1e-4)
        assert not torch.equal(getattr(both, name)[0], getattr(both, name)[1]), name


@pytest.mark.integration
def test_the_students_differ_in_their_goals_alone(monkeypatch):
    """With one temperature, a perfect teacher and no other difference, all three would be the same student."""
    monkeypatch.setattr(figure2, "annealed_mse_loss", lambda out, goal, phi, reduction: out.square().sum())
    curves = figure2.curves([0], 20)
    assert torch.equal(curves.alone, curves.kd)
    assert torch.equal(curves.alone, curves.annealed[1])


@pytest.mark.integration
def test_the_student_is_kept_at_the_end_of_each_temperature():
    curves = figure2.curves([0], 200)
    assert list(curves.annealed) == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]
    found = figure2.errors(curves)
    # Phi(10) = 0.1, and the mean square of f is 1.5: whoever follows Phi z_t is 0.9 z_t away from z_t.
    assert found["Annealing-KD, T = 10"]["annealed teacher"][0] < 0.05
    assert found["Annealing-KD, T = 10"]["teacher"][0] > 0.5
    assert found[figure2.ANNEALING]["annealed teacher"] == found[figure2.ANNEALING]["teacher"]
    kd = (curves.kd - curves.teacher).double().square().mean().item()
    assert found[figure2.KD]["teacher"] == [pytest.approx(kd, rel=1e-5)]


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        ([0.1, 0.11, 0.12], "than without KD: yes: -0.40000"),
        ([0.9, 0.91, 0.92], "than without KD: no, worse: +0.40000"),
        ([0.1, 0.5, 0.9], "than without KD: not shown: -0.01000"),
        ([0.1], "than without KD: one seed cannot say: -0.40000"),
    ],
)
def test_the_verdict_follows_the_interval(ours, verdict):
    theirs = [0.5, 0.51, 0.52][: len(ours)]
    errors = {name: {"teacher": theirs, "f": theirs} for name in ("teacher", figure2.KD, figure2.ALONE)}
    text = figure2.table({**errors, figure2.ANNEALING: {"teacher": ours, "f": ours}})
    assert verdict in text, text


@pytest.mark.integration
def test_figure2_writes_a_picture_and_its_numbers(tmp_path, capsys):
    arguments = ["--seeds", "2", "--steps", "20"]
    assert reproduce.main(["figure2", *arguments, "--output_dir", str(tmp_path)]) == 0, capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figure2.json", "figure2.png"]
    assert (tmp_path / "figure2.png").read_bytes().startswith(b"\x89PNG\r\n")
    data = json.loads((tmp_path / "figure2.json").read_text())
    by_seed = data["mse"][figure2.ALONE]["teacher"]["by_seed"]
    assert by_seed == figure2.errors(figure2.curves([0, 1], 20))[figure2.ALONE]["teacher"]
    assert data["mse"][figure2.ALONE]["teacher"]["mean"] == pytest.approx(sum(by_seed) / 2)
    assert data["command"] == f"akd-reproduce figure2 --seeds 2 --steps 20 --output_dir {tmp_path}"
    assert "text" in data["note"] and "caption" in data["note"]
    assert "Does Annealing-KD match the teacher better?" in capsys.readouterr().out


def test_a_failure_leaves_the_old_files_and_no_half_of_a_new_one(tmp_path, monkeypatch, capsys):
    def break_off(figure, path, **kwargs):
        with open(path, "wb") as file:
            file.write(b"half a picture")
        raise OSError("no space left")

    (tmp_path / "figure2.png").write_text("old")
    monkeypatch.setattr(Figure, "savefig", break_off)
    command = ["figure2", "--seeds", "1", "--steps", "10", "--output_dir", str(tmp_path)]
    assert reproduce.main(command) == 1
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("figure2.png", "old")]
    assert capsys.readouterr().err == "akd-reproduce figure2: error: OSError: no space left\n"


# ---------------------------------------------------------------- figure 3: the surface


@pytest.fixture
def student():
    """A student in the middle of training: BatchNorm's statistics are no longer those it began with."""
    model = resnet8().train()
    with torch.no_grad():
        model(torch.randn(16, 3, 32, 32))
    return model


@pytest.fixture
def directions(student):
    generator = torch.Generator().manual_seed(3)
    return landscape.random_direction(student, generator), landscape.random_direction(student, generator)


IMAGES, TAUGHT = torch.randn(6, 3, 32, 32), 5 * torch.randn(6, 10)
AXIS = [-1.0, 0.0, 1.0]


def test_every_filter_of_a_direction_is_as_long_as_the_weights_filter(student, directions):
    weights = dict(student.named_parameters())
    for name, drawn in directions[0].items():
        for filter_, other, weight in zip(drawn, directions[1][name], weights[name], strict=True):
            torch.testing.assert_close(filter_.norm(), weight.norm())
            assert not torch.equal(filter_, other)
    left_out = weights.keys() - directions[0].keys()
    assert left_out == {name for name in weights if "bn" in name or "downsample.1" in name or name.endswith("bias")}


def test_the_direction_scales_with_the_weights():
    """Li et al.: what a filter is scaled by must not change the picture."""
    layer = nn.Conv2d(3, 4, 3)
    before = landscape.random_direction(layer, torch.Generator().manual_seed(0))["weight"]
    layer.weight.data[0] *= 8
    layer.weight.data[1] = 0
    after = landscape.random_direction(layer, torch.Generator().manual_seed(0))["weight"]
    torch.testing.assert_close(after[0], 8 * before[0])
    assert torch.equal(after[1], torch.zeros_like(after[1]))
    torch.testing.assert_close(after[2:], before[2:])


@pytest.mark.integration
def test_the_centre_is_the_plain_loss_and_the_student_stays_as_it_is(student, directions):
    before = {name: value.clone() for name, value in student.state_dict().items()}
    found = landscape.surfaces(student, IMAGES, TAUGHT, [0.3], directions, AXIS)
    plain = mse_loss(student.eval()(IMAGES), 0.3 * TAUGHT).item()
    assert found[0, 1, 1].item() == pytest.approx(plain, rel=1e-6)
    assert found[0, 0, 1].item() != pytest.approx(plain, rel=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_rows_and_columns_are_steps_along_the_second_and_the_first_direction(student, directions):
    found = landscape.surfaces(student, IMAGES, TAUGHT, [1.0], directions, AXIS)
    with torch.no_grad():
        for name, weight in student.named_parameters():
            if name in directions[0]:
                weight += 1.0 * directions[0][name] - 1.0 * directions[1][name]
    moved = mse_loss(student.eval()(IMAGES), TAUGHT).item()
    assert found[0, 0, 2].item() == pytest.approx(moved, rel=1e-5)


@pytest.mark.integration
def test_surfaces_of_one_student_differ_by_a_term_linear_in_phi(student, directions):
    """||s - phi t||^2 = ||s||^2 - 2 phi <s, t> + phi^2 ||t||^2; at phi = 0 the teacher plays no part."""
    zero, half, one = landscape.surfaces(student, IMAGES, TAUGHT, [0.0, 0.5, 1.0], directions, AXIS)
    silent = landscape.surfaces(student, IMAGES, torch.zeros_like(TAUGHT), [1.0], directions, AXIS)[0]
    torch.testing.assert_close(zero, silent)
    square = TAUGHT.double().square().mean()
    inner = zero + square - one  # 2 <s, t>
    torch.testing.assert_close(half, zero - 0.5 * inner + 0.25 * square, rtol=1e-5, atol=1e-5)


@pytest.mark.integration
def test_the_surface_does_not_depend_on_the_batches(student, directions, monkeypatch):
    whole = landscape.surfaces(student, IMAGES, TAUGHT, [1.0], directions, AXIS)
    monkeypatch.setattr(landscape, "BATCH", 4)
    torch.testing.assert_close(landscape.surfaces(student, IMAGES, TAUGHT, [1.0], directions, AXIS), whole)


def test_the_curvature_is_the_second_derivative():
    """A linear student has an exactly quadratic loss, so central differences of any step are exact."""
    model = nn.Linear(4, 3).double()
    images, taught = torch.randn(8, 4).double(), torch.randn(8, 3).double()
    generator = torch.Generator().manual_seed(0)
    directions = landscape.random_direction(model, generator), landscape.random_direction(model, generator)
    directions = tuple({name: value.double() for name, value in d.items()} for d in directions)

    def loss(steps):
        moved = {"weight": model.weight + steps[0] * directions[0]["weight"] + steps[1] * directions[1]["weight"]}
        return reference.annealed_mse(functional_call(model, moved, (images,)), taught, 0.7)

    at = torch.zeros(2, dtype=torch.float64)
    surface = landscape.surfaces(model, images, taught, [0.7], directions, AXIS)[0]
    found = landscape.sharpness(surface, AXIS, scale=2.0)
    assert found["curvature"] == pytest.approx(hessian(loss)(at).diagonal().mean().item(), rel=1e-9)
    ends = [loss(torch.tensor(step).double()).item() for step in ([1, 0], [-1, 0], [0, 1], [0, -1])]
    assert found["rise"] == pytest.approx(np.mean(ends) - loss(at).item(), rel=1e-9)
    assert found["relative_rise"] == found["rise"] / 2


def test_the_claim_is_judged_by_the_numbers():
    phis, taught, axis = {10: 0.1, 5: 0.6, 1: 1.0}, torch.full((2, 2), 2.0), [-1.0, 0.0, 1.0]
    bowl = torch.tensor([[a * a + b * b for a in axis] for b in axis], dtype=torch.float64)
    grows = figure3_report.measure({T: phi**2 * bowl for T, phi in phis.items()}, phis, taught, axis)
    assert grows["sharper_as_T_falls"] == {"curvature": True, "rise": True, "relative_rise": False}
    assert [entry["relative_rise"] for entry in grows["temperatures"].values()] == [pytest.approx(0.25)] * 3
    mixed = {10: bowl, 5: 3 * bowl, 1: 2 * bowl}
    assert not figure3_report.measure(mixed, phis, taught, axis)["sharper_as_T_falls"]["curvature"]
    assert "by curvature: yes" in figure3_report.table(grows)


# ---------------------------------------------------------------- figure 3: students and command


@pytest.fixture
def cifar(monkeypatch):
    """24 random images in the place of CIFAR-10."""
    random = np.random.default_rng(0)
    found = types.SimpleNamespace(
        data=random.integers(0, 256, (24, 32, 32, 3), dtype=np.uint8),
        targets=random.integers(0, 10, 24).tolist(),
        classes=[],
        class_to_idx={},
    )
    monkeypatch.setattr(FastCIFAR10, "_read", staticmethod(lambda root, train, download: found))
    return FastCIFAR10("nowhere")


@pytest.fixture
def figure3(tmp_path, cifar):
    """Runs akd-reproduce figure3 with a teacher of its own, and returns exit code and figure3.json."""
    torch.save(resnet8().state_dict(), tmp_path / "teacher.pt")

    def run(*arguments, output_dir=tmp_path / "out"):
        small = ["--images", "8", "--grid", "3", "--output_dir", str(output_dir)]
        teacher = ["--teacher_model", "resnet8", "--teacher_ckpt", str(tmp_path / "teacher.pt")]
        code = reproduce.main(["figure3", *teacher, *small, *arguments])
        file = output_dir / "figure3.json"
        return code, json.loads(file.read_text()) if file.exists() else None

    return run


@pytest.mark.integration
def test_figure3_trains_draws_and_draws_again(figure3, tmp_path, capsys, monkeypatch):
    class InThisProcess(pool.JobPool):
        """Random images have taken CIFAR's place here; another process would not know."""

        def run(self):
            for job in self._jobs:
                self._prepare(job)
                assert students.main([self._train[-1], *job.arguments(), "--quiet"]) == 0, capsys.readouterr().err

    monkeypatch.setattr(loss_landscape, "JobPool", InThisProcess)
    code, data = figure3("--epochs", "10", "--device", "cpu")
    said = capsys.readouterr()
    assert code == 0, said.err
    run = tmp_path / "out" / "runs" / "annealing_kd" / "seed0"
    epochs = json.loads((run / "results.json").read_text())["epochs"]
    assert [epoch["T"] for epoch in epochs] == [*range(10, 0, -1), None]
    kept = {T: torch.load(run / f"student-T{T}.pt", weights_only=True)["model"] for T in range(1, 11)}
    # One batch of the 24 images an epoch: the student of temperature T has seen 11 - T of them.
    assert {T: state["bn1.num_batches_tracked"].item() for T, state in kept.items()} == {T: 11 - T for T in kept}
    assert not torch.equal(kept[2]["fc.weight"], kept[1]["fc.weight"])
    assert (tmp_path / "out" / "figure3.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert list(data["temperatures"]) == ["10", "5", "1"]
    assert "Is the surface flatter the higher T is" in said.out
    again = next(line for line in said.out.splitlines() if "--checkpoint" in line).partition("--checkpoint ")[2].split()
    code, redrawn = figure3("--checkpoint", *reversed(again), output_dir=tmp_path / "again")
    assert code == 0, capsys.readouterr().err
    assert list(redrawn["temperatures"]) == ["10", "5", "1"]
    assert redrawn["temperatures"] == data["temperatures"]


@pytest.mark.integration
def test_one_student_at_all_temperatures(figure3, tmp_path, capsys):
    torch.save(resnet8().state_dict(), tmp_path / "student.pt")
    code, data = figure3("--checkpoint", str(tmp_path / "student.pt"), "--temperatures", "3", "7", "--radius", "0.5")
    assert code == 0, capsys.readouterr().err
    assert {T: entry["phi"] for T, entry in data["temperatures"].items()} == {"7": pytest.approx(0.4), "3": 0.8}
    assert data["axis"] == [-0.5, 0.0, 0.5]
    assert data["students"] == "one for all temperatures, given"


def test_a_checkpoint_that_would_run_code_is_refused(figure3, tmp_path, capsys):
    import os
    import pickle

    class Code:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    evil = tmp_path / "evil.pt"
    evil.write_bytes(pickle.dumps({"state_dict": Code()}))
    for flag in ("--teacher_ckpt", "--checkpoint"):
        assert figure3(flag, str(evil), "--temperatures", "1") == (2, None)
        assert f"{flag}: '{evil}' cannot be read as a checkpoint: it holds more than weights" in capsys.readouterr().err
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--grid", "4"], "--grid: 4 is not an odd number"),
        (["--radius", "0"], "--radius: 0 is not a number above 0"),
        (["--teacher_kwargs", "{depth: 56}"], "--teacher_kwargs: '{depth: 56}' is not JSON"),
        (["--teacher_kwargs", "[1]"], "--teacher_kwargs: '[1]' is not a JSON object"),
        (["--epochs", "9"], "--epochs: 9 is less than one for each of the 10 temperatures"),
        (["--temperatures", "11"], "T = 11 is not from 1 to tau_max = 10"),
        (["--checkpoint", "a.pt", "b.pt"], "several files need a temperature each"),
        (["--checkpoint", "10=a.pt", "10=b.pt"], "several files need a temperature each, and each its own"),
        (["--checkpoint", "10=a.pt", "--temperatures", "1"], "name different temperatures"),
        (["--checkpoint", "nowhere.pt"], "--checkpoint: 'nowhere.pt' cannot be read as a checkpoint"),
        (["--teacher_model", "plain_cnm2"], "there is no model 'plain_cnm2'; the nearest is 'plain_cnn2'"),
        (["--student_kwargs", '{"deep": 1}', "--checkpoint", "a.pt"], "--student_model: building 'resnet8' failed"),
        (["--images", "25"], "--images: 25 are more than the 24 training images there are"),
        (["--std", "1", "0", "1"], "std is [1.0, 0.0, 1.0]"),
        (["--device", "gpu"], "--device: 'gpu' is no device"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_work_is_one_sentence(figure3, capsys, tmp_path, arguments, sentence):
    assert figure3(*arguments) == (2, None)
    error = capsys.readouterr().err.splitlines()
    assert sentence in error[-1]
    assert error[-1].startswith("akd-reproduce figure3: error: ")


def test_no_data_is_one_sentence(tmp_path, capsys):
    command = ["figure3", "--teacher_ckpt", "t.pt", "--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    assert reproduce.main(command) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"no {datasets.CIFAR10.base_folder} from there" in error and "--download" in error


@pytest.mark.parametrize("arguments", [["--steps", "9"], ["--seeds", "0"], ["--seed", "1"]])
def test_figure2_refuses_what_it_cannot_do(arguments, capsys):
    assert reproduce.main(["figure2", *arguments]) == 2
    assert arguments[0] in capsys.readouterr().err


def test_an_output_folder_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert reproduce.main(["figure2", "--output_dir", str(tmp_path / "file" / "out")]) == 2
    assert "--output_dir: " in capsys.readouterr().err
