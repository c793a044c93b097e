"""Learning-rate schedules: each equals its formula, and one that cannot serve its run is refused by name."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from fl_protocol.specs.schedules import (
    ConstantSchedule,
    CosineSchedule,
    ExponentialSchedule,
    Schedule,
    StepSchedule,
    check_schedule,
    learning_rate,
)

SCHEDULE = TypeAdapter(Schedule)
FACTORS = st.floats(1e-3, 1)
ROUNDS = st.integers(1, 500)
COSINE_BITS = ["0x1.9999999999999p-4", "0x1.9999999999999p-3", "0x1.18cc6b1b0b541p-2", "0x1.c8f8d01d67eeap-5"]
POWER_BITS = ["0x1.29fbe76c8b439p-2", "0x1.f06cb681c0eb8p-3", "0x1.4962822d7343dp-46"]
WARMUPS = st.integers(0, 100)


def expected_rate(base, warmup, round_number, factor):
    """The rate by the page's formulas; `factor` is a function of the rounds since the warm-up."""
    return base * round_number / (warmup + 1) if round_number <= warmup else base * factor(round_number - warmup - 1)


@given(st.floats(1e-6, 1e3), WARMUPS, ROUNDS)
def test_a_constant_schedule_keeps_the_rate_after_its_warmup(base, warmup, at):
    schedule = ConstantSchedule(warmup_rounds=warmup)
    assert learning_rate(schedule, base, at) == pytest.approx(expected_rate(base, warmup, at, lambda _: 1), rel=1e-15)
    assert learning_rate(schedule, base, warmup + 1) == base


@given(FACTORS, st.integers(1, 50), WARMUPS, ROUNDS)
def test_a_step_schedule_multiplies_after_every_so_many_rounds(factor, every, warmup, at):
    schedule = StepSchedule(kind="step", every=every, factor=factor, warmup_rounds=warmup)
    expected = expected_rate(0.3, warmup, at, lambda elapsed: factor ** (elapsed // every))
    assert learning_rate(schedule, 0.3, at) == pytest.approx(expected, rel=1e-13, abs=1e-300)


@given(FACTORS, WARMUPS, ROUNDS)
def test_an_exponential_schedule_multiplies_after_each_round(factor, warmup, at):
    schedule = ExponentialSchedule(kind="exponential", factor=factor, warmup_rounds=warmup)
    expected = expected_rate(0.3, warmup, at, lambda elapsed: factor**elapsed)
    assert learning_rate(schedule, 0.3, at) == pytest.approx(expected, rel=1e-12, abs=1e-300)


@given(st.floats(0, 1), WARMUPS, ROUNDS, st.integers(1, 500))
def test_a_cosine_schedule_falls_along_half_a_cosine_that_ends_after_the_last_round(final, warmup, length, at):
    schedule = CosineSchedule(kind="cosine", num_rounds=warmup + length, final_factor=final, warmup_rounds=warmup)

    def factor(elapsed):
        return final + (1 - final) * (1 + math.cos(math.pi * min(elapsed / length, 1))) / 2

    assert learning_rate(schedule, 2.0, at) == pytest.approx(expected_rate(2.0, warmup, at, factor), abs=1e-14)
    assert learning_rate(schedule, 2.0, warmup + 1) == 2.0
    assert learning_rate(schedule, 2.0, warmup + length) > 0
    assert learning_rate(schedule, 2.0, warmup + length + 1) == 2 * final


def test_rates_are_the_same_bits_on_every_platform():
    """Written down once: no C library's `cos` or `pow` takes part."""
    cosine = CosineSchedule(kind="cosine", num_rounds=7, final_factor=0.1, warmup_rounds=2)
    power = ExponentialSchedule(kind="exponential", factor=0.97)
    assert [learning_rate(cosine, 0.3, at).hex() for at in (1, 2, 4, 7)] == COSINE_BITS
    assert [learning_rate(power, 0.3, at).hex() for at in (2, 8, 1000)] == POWER_BITS


def test_a_schedule_without_kind_is_constant_and_an_unknown_one_is_refused():
    assert SCHEDULE.validate_python({}) == ConstantSchedule()
    assert SCHEDULE.validate_python({"warmup_rounds": 3}) == ConstantSchedule(warmup_rounds=3)
    assert SCHEDULE.validate_json('{"kind": "step", "every": 2, "factor": 0.5}').kind == "step"
    for wrong in ({"kind": "linear"}, {"every": 2}, {"kind": "cosine"}, {"kind": "exponential", "factor": 0}):
        with pytest.raises(ValidationError):
            SCHEDULE.validate_python(wrong)


@pytest.mark.parametrize(
    ("schedule", "num_rounds", "message"),
    [
        (
            {"kind": "cosine", "num_rounds": 5},
            10,
            "training.schedule.num_rounds 5 ends before num_rounds 10; it must be at least that",
        ),
        (
            {"warmup_rounds": 10},
            10,
            "training.schedule.warmup_rounds 10 does not end before num_rounds 10; it must be at most 9",
        ),
        (
            {"kind": "exponential", "factor": 1e-3},
            1000,
            "training.schedule of kind exponential brings learning_rate 0.1 to 0 before num_rounds 1000",
        ),
    ],
)
def test_a_schedule_that_cannot_serve_its_run_is_refused(schedule, num_rounds, message):
    with pytest.raises(ValueError, match="^" + message + "$"):
        check_schedule(SCHEDULE.validate_python(schedule), 0.1, field="training.schedule", num_rounds=num_rounds)


@pytest.mark.parametrize(
    "schedule",
    [
        {},
        {"warmup_rounds": 9},
        {"kind": "cosine", "num_rounds": 10, "warmup_rounds": 9},
        {"kind": "cosine", "num_rounds": 90},
    ],
)
def test_a_schedule_that_just_lasts_is_accepted(schedule):
    check_schedule(SCHEDULE.validate_python(schedule), 0.1, field="training.schedule", num_rounds=10)
