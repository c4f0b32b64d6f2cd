"""Temperature and Phi over the epochs of stage I (Algorithm 1 and equation 3 of the paper)."""

import copy
import math
import pickle

import pytest

from akd_ext import AnnealingSchedule, annealing_functions

NAMES = list(annealing_functions.NAMES)


def halves(T, tau_max):
    """A callable at module level, so that it pickles."""
    return 1.0 if T == 1 else 0.5


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("tau_max", [1, 2, 7, 10])
def test_every_temperature_lasts_k_epochs(tau_max, k):
    """num_epochs = k tau_max: exactly the double loop of Algorithm 1."""
    schedule = AnnealingSchedule(tau_max, k * tau_max)
    expected = [T for T in range(tau_max, 0, -1) for _ in range(k)]
    assert [schedule.temperature(epoch) for epoch in range(len(schedule))] == expected


def test_linear_is_equation_3():
    schedule = AnnealingSchedule(10, 10)
    for epoch in range(10):
        T, phi = schedule(epoch)
        assert T == 10 - epoch
        assert phi == 1 - (T - 1) / 10
    assert schedule.phi(0) == pytest.approx(0.1)


@pytest.mark.parametrize("annealing", NAMES)
@pytest.mark.parametrize("tau_max", [1, 2, 3, 7, 10, 14, 100])
def test_any_number_of_epochs(tau_max, annealing):
    """In range, never rising T, never falling Phi, and Phi = 1 at the end: whatever the number of epochs."""
    for num_epochs in [*range(1, 45), 99, 100, 101, 350, 1001]:
        schedule = AnnealingSchedule(tau_max, num_epochs, annealing)
        pairs = [schedule(epoch) for epoch in range(num_epochs)]
        temperatures, phis = zip(*pairs, strict=True)
        assert set(temperatures) <= set(range(1, tau_max + 1))
        assert all(0.0 <= phi <= 1.0 for phi in phis)
        assert list(temperatures) == sorted(temperatures, reverse=True)
        assert list(phis) == sorted(phis)
        assert pairs[-1] == (1, 1.0)
        if num_epochs > 1:
            assert temperatures[0] == tau_max


@pytest.mark.parametrize(("tau_max", "num_epochs"), [(10, 23), (7, 20), (10, 101), (3, 8), (14, 15)])
def test_evenly(tau_max, num_epochs):
    """More epochs than temperatures: none is left out, and no two last more than one epoch apart."""
    schedule = AnnealingSchedule(tau_max, num_epochs)
    temperatures = [schedule.temperature(epoch) for epoch in range(num_epochs)]
    lengths = [temperatures.count(T) for T in range(1, tau_max + 1)]
    assert max(lengths) - min(lengths) <= 1


def test_fewer_epochs_than_temperatures_keep_both_ends_evenly():
    schedule = AnnealingSchedule(10, 4)
    assert [schedule.temperature(epoch) for epoch in range(4)] == [10, 7, 4, 1]
    assert AnnealingSchedule(10, 1)(0) == (1, 1.0)
    assert [AnnealingSchedule(10, 2).temperature(epoch) for epoch in (0, 1)] == [10, 1]


def test_resuming_needs_only_the_epoch():
    """Asked in any order, any number of times, by a fresh schedule or a used one: the same answer."""
    schedule = AnnealingSchedule(7, 20, "cosine")
    straight = [schedule(epoch) for epoch in range(20)]
    assert [schedule(epoch) for epoch in reversed(range(20))] == straight[::-1]
    assert [AnnealingSchedule(7, 20, "cosine")(epoch) for epoch in range(13, 20)] == straight[13:]


def test_steps_instead_of_epochs():
    """A million steps cost no memory and no loop."""
    schedule = AnnealingSchedule(10, 1_000_000)
    assert schedule(0) == (10, pytest.approx(0.1))
    assert schedule(999_999) == (1, 1.0)
    assert schedule.temperature(500_000) == 5


@pytest.mark.parametrize("name", NAMES)
def test_phi_of_every_function(name):
    function = annealing_functions.get(name, 10)
    expected = {
        "linear": lambda T: 1 - (T - 1) / 10,
        "cosine": lambda T: math.cos(math.pi * (T - 1) / 20) ** 2,
        "exponential": lambda T: math.exp(-math.log(10) * (T - 1) / 9),
        "step": lambda T: 1.0 if T <= 5 else 0.5,
    }[name]
    for T in range(1, 11):
        assert function(T, 10) == pytest.approx(expected(T), abs=1e-15)
    assert function(1, 10) == 1.0
    assert function(1, 1) == 1.0


def test_a_callable_of_your_own():
    schedule = AnnealingSchedule(4, 8, halves)
    assert [schedule.phi(epoch) for epoch in range(8)] == [0.5] * 6 + [1.0] * 2
    assert annealing_functions.get(halves, 4) is halves


def test_a_callable_of_the_temperature_alone():
    schedule = AnnealingSchedule(4, 4, lambda T: 1 / T)
    assert [schedule.phi(epoch) for epoch in range(4)] == [1 / 4, 1 / 3, 1 / 2, 1.0]


def test_a_callable_is_checked_when_it_is_given():
    """Not in epoch 190, when it is used for the first time."""
    with pytest.raises(ValueError, match="grow"):
        AnnealingSchedule(10, 200, lambda T, tau_max: {1: 1.0, 9: 0.9}.get(T, 0.5))


def test_a_callable_may_return_other_numbers():
    from fractions import Fraction

    import torch

    schedule = AnnealingSchedule(4, 4, lambda T, tau_max: Fraction(1, T))
    assert schedule(1) == (3, pytest.approx(1 / 3))
    assert all(type(schedule.phi(epoch)) is float for epoch in range(4))
    assert AnnealingSchedule(4, 4, lambda T, tau_max: torch.tensor(1.0 / T)).phi(2) == 0.5


@pytest.mark.parametrize("annealing", [*NAMES, halves])
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_and_pickles(annealing, duplicate):
    schedule = AnnealingSchedule(7, 20, annealing)
    twin = duplicate(schedule)
    assert [twin(epoch) for epoch in range(20)] == [schedule(epoch) for epoch in range(20)]
    assert len(twin) == 20


def test_repr_shows_how_to_make_it():
    assert repr(AnnealingSchedule(4, 8, "cosine")) == "AnnealingSchedule(tau_max=4, num_epochs=8, annealing='cosine')"
